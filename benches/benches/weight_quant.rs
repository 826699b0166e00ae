//! Weight quantizers on a 1024 x 4096 matrix: weights per second per method, one thread, per instruction-set level;
//! then strided input, and packing with the encoder of the file format.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mnnq_core::quant::weight::{StridedMatrix, WeightSource, quantize_at};
use mnnq_core::quant::{BitWidth, Granularity, ScaleStorage, Scheme, WeightMethod, WeightQuantSpec};
use mnnq_format::weight_blob::{self, EncodeOptions};
use mnnq_kernels::multiversion::Level;

const ROWS: usize = 1024;
const ROW_LEN: usize = 4096;

/// Bell-shaped weights of a standard deviation of about 0.02.
fn weights() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..ROWS * ROW_LEN).map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * 0.035).collect()
}

fn spec(bits: u32, block: Option<usize>, scheme: Scheme, method: WeightMethod) -> WeightQuantSpec {
    WeightQuantSpec {
        bits: BitWidth::new(bits).expect("a supported width"),
        scheme,
        granularity: block.map_or(Granularity::PerChannel, |len| Granularity::PerBlock { len }),
        method,
        scale_storage: ScaleStorage::F32,
        gain_correction: false,
    }
}

fn methods(c: &mut Criterion) {
    let data = weights();
    let source = StridedMatrix::row_major(&data, [ROWS, ROW_LEN]).expect("a matrix");
    let mut group = c.benchmark_group("weight_quant");
    group.throughput(Throughput::Elements((ROWS * ROW_LEN) as u64)).sample_size(10);
    let cases = [
        ("rtn_asym_w8_channel", spec(8, None, Scheme::Asymmetric, WeightMethod::RoundToNearest)),
        ("rtn_asym_w4_b64", spec(4, Some(64), Scheme::Asymmetric, WeightMethod::RoundToNearest)),
        ("rtn_sym_w4_b32", spec(4, Some(32), Scheme::Symmetric, WeightMethod::RoundToNearest)),
        ("hqq_w4_b64", spec(4, Some(64), Scheme::Asymmetric, WeightMethod::Hqq)),
        ("hqq_ref_w4_b64", spec(4, Some(64), Scheme::Asymmetric, WeightMethod::HqqReference)),
        ("search_asym_w4_b64", spec(4, Some(64), Scheme::Asymmetric, WeightMethod::Search)),
        ("search_asym_w8_b64", spec(8, Some(64), Scheme::Asymmetric, WeightMethod::Search)),
        ("search_sym_w4_b32", spec(4, Some(32), Scheme::Symmetric, WeightMethod::Search)),
    ];
    for (name, spec) in cases {
        for level in Level::available() {
            if level == Level::BASELINE && spec.method != WeightMethod::RoundToNearest {
                continue;
            }
            group.bench_function(BenchmarkId::new(name, level.name()), |b| {
                b.iter(|| quantize_at(level, black_box(&source), &spec, Some(1)).expect("finite weights"));
            });
        }
    }
    group.finish();
}

fn layouts(c: &mut Criterion) {
    let data = weights();
    let halves: Vec<half::f16> = data.iter().map(|&w| half::f16::from_f32(w)).collect();
    let spec = spec(4, Some(64), Scheme::Asymmetric, WeightMethod::RoundToNearest);
    let shape = [ROWS, ROW_LEN];
    let sources: [(&str, &dyn WeightSource); 3] = [
        ("transposed_f32", &StridedMatrix::new(&data, shape, [1, ROWS]).expect("a matrix")),
        ("row_major_f16", &StridedMatrix::row_major(&halves, shape).expect("a matrix")),
        ("transposed_f16", &StridedMatrix::new(&halves, shape, [1, ROWS]).expect("a matrix")),
    ];
    let mut group = c.benchmark_group("weight_quant_layout");
    group.throughput(Throughput::Elements((ROWS * ROW_LEN) as u64)).sample_size(10);
    for (name, source) in sources {
        group.bench_function(name, |b| {
            b.iter(|| quantize_at(Level::best(), black_box(source), &spec, Some(1)).expect("finite weights"));
        });
    }
    group.finish();
}

fn packing(c: &mut Criterion) {
    let data = weights();
    let source = StridedMatrix::row_major(&data, [ROWS, ROW_LEN]).expect("a matrix");
    let mut group = c.benchmark_group("weight_quant_pack");
    group.throughput(Throughput::Elements((ROWS * ROW_LEN) as u64)).sample_size(10);
    for bits in [3, 4, 8] {
        let spec = spec(bits, Some(64), Scheme::Asymmetric, WeightMethod::RoundToNearest);
        let quantized = quantize_at(Level::best(), &source, &spec, Some(1)).expect("finite weights").weights;
        group.bench_function(BenchmarkId::new("dense", bits), |b| {
            b.iter(|| weight_blob::encode(black_box(&quantized), &EncodeOptions::default()).expect("small"));
        });
    }
    group.finish();
}

criterion_group!(benches, methods, layouts, packing);
criterion_main!(benches);
