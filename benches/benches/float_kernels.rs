//! Float kernels on shapes of real networks.
//!
//! `cargo bench -p mnnq-bench --bench float_kernels` runs the criterion groups; with `-- --table` it prints one line
//! per shape instead: GFLOP/s of every kernel, the share of this CPU's measured peak, and the `gemm` crate as a peer.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use mnnq_kernels::Epilogue;
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::gemm_f32::{GemmF32, PackedB, gemm_f32, scratch_len};
use mnnq_kernels::parallel::Serial;
use mnnq_kernels::simd::{Simd, SimdOp, VectorIsa};
use mnnq_kernels::testing::Rng;

/// `(m, n, k, where it occurs)`.
const GEMM_SHAPES: &[(usize, usize, usize, &str)] = &[
    (3136, 64, 576, "resnet18 layer1"),
    (784, 128, 1152, "resnet18 layer2"),
    (196, 256, 2304, "resnet18 layer3"),
    (49, 512, 4608, "resnet18 layer4"),
    (12544, 16, 32, "mobilenetv2 project"),
    (12544, 96, 16, "mobilenetv2 expand"),
    (3136, 24, 96, "mobilenetv2 project"),
    (196, 96, 576, "mobilenetv2 project"),
    (49, 320, 960, "mobilenetv2 project"),
    (49, 1280, 320, "mobilenetv2 head"),
    (128, 768, 768, "bert attention"),
    (128, 3072, 768, "bert feed-forward"),
    (128, 768, 3072, "bert feed-forward"),
    (1, 1000, 512, "resnet18 classifier"),
    (1, 1000, 1280, "mobilenetv2 classifier"),
    (4, 1000, 512, "small batch"),
];

struct Peak(usize);

impl SimdOp for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.splat(0.0); 12];
        let (x, y) = (s.splat(0.999), s.splat(1e-3));
        for _ in 0..self.0 {
            for a in &mut acc {
                *a = s.fma(*a, x, y);
            }
        }
        acc.iter().map(|&a| s.sum_lanes(a)).sum()
    }
}

/// The best of several runs, each at least 5 ms long: seconds per call.
fn best_time(mut call: impl FnMut()) -> f64 {
    call();
    let mut best = f64::INFINITY;
    let mut repeats = 1_u32;
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        let start = Instant::now();
        for _ in 0..repeats {
            call();
        }
        let elapsed = start.elapsed();
        best = best.min(elapsed.as_secs_f64() / f64::from(repeats));
        if elapsed < Duration::from_millis(5) {
            repeats *= 2;
        }
    }
    best
}

/// Measured multiply-add peak of one core, in GFLOP/s.
fn peak(isa: VectorIsa) -> f64 {
    let rounds = 20_000;
    let seconds = best_time(|| {
        std::hint::black_box(isa.run(Peak(rounds)));
    });
    (2 * 12 * rounds * isa.lanes()) as f64 / seconds / 1e9
}

struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    out: Vec<f32>,
}

fn operands(m: usize, n: usize, k: usize) -> Operands {
    let mut rng = Rng::new(1);
    Operands {
        a: rng.floats(m * k, -1.0, 1.0),
        b: rng.floats(k * n, -1.0, 1.0),
        bias: rng.floats(n, -1.0, 1.0),
        out: vec![0.0; m * n],
    }
}

fn peer_gemm((m, n, k): (usize, usize, usize), data: &mut Operands) {
    let out = data.out.as_mut_ptr();
    // SAFETY: the slices hold m x k, k x n and m x n values in row-major order, as the strides say.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            false,
            data.a.as_ptr(),
            1,
            k as isize,
            data.b.as_ptr(),
            1,
            n as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn table() {
    for kernel in GemmF32::all_available() {
        println!("{:28} peak {:7.1} GFLOP/s", kernel.name(), peak(kernel.isa()));
    }
    for &(m, n, k, what) in GEMM_SHAPES {
        let mut data = operands(m, n, k);
        let work = (2 * m * n * k) as f64 / 1e9;
        let mut scratch = vec![0.0; scratch_len()];
        print!("{m:6} x {n:5} x {k:5} {what:24}");
        for kernel in GemmF32::all_available() {
            let b = PackedB::from_rows(&kernel, &data.b, k, n, n).expect("shapes fit");
            let epilogue = Epilogue::new(Some(&data.bias), Unary::Relu);
            let out = &mut data.out;
            let seconds = best_time(|| {
                gemm_f32(&kernel, m, &data.a, k, &b, &epilogue, out, n, &mut scratch, &Serial).expect("shapes fit");
            });
            let rate = work / seconds;
            print!("  {} {rate:6.1} ({:4.1} %)", kernel.isa().level(), 100.0 * rate / peak(kernel.isa()));
        }
        println!("  gemm crate {:6.1}", work / best_time(|| peer_gemm((m, n, k), &mut data)));
    }
}

fn gemm_group(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm_f32");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500)).sample_size(20);
    let Some(kernel) = GemmF32::all_available().pop() else { return };
    for &(m, n, k, what) in GEMM_SHAPES {
        let mut data = operands(m, n, k);
        group.throughput(Throughput::Elements((m * n * k) as u64));
        let id = format!("{m}x{n}x{k} {what}");
        let b = PackedB::from_rows(&kernel, &data.b, k, n, n).expect("shapes fit");
        let mut scratch = vec![0.0; scratch_len()];
        group.bench_function(BenchmarkId::new(kernel.name(), &id), |bencher| {
            let epilogue = Epilogue::new(Some(&data.bias), Unary::Relu);
            bencher.iter(|| {
                gemm_f32(&kernel, m, &data.a, k, &b, &epilogue, &mut data.out, n, &mut scratch, &Serial)
            });
        });
        group.bench_function(BenchmarkId::new("gemm crate (no epilogue)", &id), |bencher| {
            bencher.iter(|| peer_gemm((m, n, k), &mut data));
        });
    }
    group.finish();
}

fn main() {
    if std::env::args().any(|argument| argument == "--table") {
        table();
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    gemm_group(&mut criterion);
    criterion.final_summary();
}
