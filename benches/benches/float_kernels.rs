//! Float kernels on shapes of real networks.
//!
//! `cargo bench -p mnnq-bench --bench float_kernels` runs the criterion groups; with `-- --table` it prints one line
//! per shape instead: GFLOP/s of every kernel, the share of this CPU's measured peak, and the `gemm` crate as a peer.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use mnnq_kernels::conv_f32::{PackedConv, conv_f32, conv_scratch_len};
use mnnq_kernels::depthwise_f32::{PackedDepthwise, depthwise_f32};
use mnnq_kernels::elementwise::{Unary, unary};
use mnnq_kernels::gemm_f32::{GemmF32, PackedB, gemm_f32, scratch_len};
use mnnq_kernels::geometry::{Sliding, Window};
use mnnq_kernels::parallel::Serial;
use mnnq_kernels::simd::{Simd, SimdOp, VectorIsa};
use mnnq_kernels::testing::Rng;
use mnnq_kernels::{AlignedVec, Epilogue};

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

/// `(size, channels, output channels, kernel, stride, where it occurs)`, square images and windows.
const CONV_SHAPES: &[(usize, usize, usize, usize, usize, &str)] = &[
    (224, 3, 64, 7, 2, "resnet18 stem"),
    (224, 3, 32, 3, 2, "mobilenetv2 stem"),
    (56, 64, 64, 3, 1, "resnet18 layer1"),
    (28, 128, 128, 3, 1, "resnet18 layer2"),
    (14, 256, 256, 3, 1, "resnet18 layer3"),
    (7, 512, 512, 3, 1, "resnet18 layer4"),
    (56, 64, 128, 3, 2, "resnet18 layer2 down"),
    (112, 32, 16, 1, 1, "mobilenetv2 project"),
    (56, 144, 24, 1, 1, "mobilenetv2 project"),
    (14, 96, 576, 1, 1, "mobilenetv2 expand"),
];

/// `(size, channels, kernel, stride, where it occurs)`.
const DEPTHWISE_SHAPES: &[(usize, usize, usize, usize, &str)] = &[
    (112, 32, 3, 1, "mobilenetv2"),
    (112, 96, 3, 2, "mobilenetv2"),
    (56, 144, 3, 1, "mobilenetv2"),
    (14, 576, 3, 1, "mobilenetv2"),
    (7, 960, 3, 1, "mobilenetv2"),
    (28, 120, 5, 1, "mobilenetv3"),
    (56, 96, 7, 1, "convnext"),
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
    a: AlignedVec,
    b: AlignedVec,
    bias: AlignedVec,
    out: AlignedVec,
}

/// Aligned random data, as a runtime keeps its tensors.
fn floats(rng: &mut Rng, count: usize) -> AlignedVec {
    AlignedVec::from(&rng.floats(count, -1.0, 1.0)[..])
}

fn operands(m: usize, n: usize, k: usize) -> Operands {
    let mut rng = Rng::new(1);
    Operands {
        a: floats(&mut rng, m * k),
        b: floats(&mut rng, k * n),
        bias: floats(&mut rng, n),
        out: AlignedVec::zeros(m * n),
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
        let mut scratch = AlignedVec::zeros(scratch_len());
        print!("{m:6} x {n:5} x {k:5} {what:24}");
        for kernel in GemmF32::all_available() {
            let b = PackedB::from_rows(&kernel, &data.b, k, n, n).expect("shapes fit");
            let epilogue = Epilogue::new(Some(&data.bias), Unary::Relu);
            let out = &mut data.out;
            let seconds = best_time(|| {
                gemm_f32(&kernel, m, &data.a, k, &b, &epilogue, out, n, &mut scratch, &Serial)
                    .expect("shapes fit");
            });
            let rate = work / seconds;
            print!("  {} {rate:6.1} ({:4.1} %)", kernel.isa().level(), 100.0 * rate / peak(kernel.isa()));
        }
        println!("  gemm crate {:6.1}", work / best_time(|| peer_gemm((m, n, k), &mut data)));
    }
    conv_table();
    depthwise_table();
    unary_table();
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn conv_table() {
    let mut rng = Rng::new(2);
    let mut scratch = AlignedVec::zeros(conv_scratch_len());
    for &(size, channels, oc, kernel_size, stride, what) in CONV_SHAPES {
        let window = Window::new(kernel_size, stride, kernel_size / 2);
        let g = Sliding::new([1, size, size, channels], window, window).expect("valid window");
        let input = floats(&mut rng, size * size * channels);
        let weights = floats(&mut rng, oc * channels * g.taps());
        let bias = floats(&mut rng, oc);
        let mut out = AlignedVec::zeros(g.out_pixels() * oc);
        let work = (2 * g.out_pixels() * oc * channels * g.taps()) as f64 / 1e9;
        print!("conv {size:4} {channels:4} -> {oc:4} {kernel_size}x{kernel_size}/{stride} {what:24}");
        for kernel in GemmF32::all_available() {
            let packed = PackedConv::new(&kernel, &weights, [oc, channels, g.taps()], 1).expect("shapes fit");
            let epilogue = Epilogue::new(Some(&bias), Unary::Relu);
            let seconds = best_time(|| {
                conv_f32(&kernel, &g, &input, &packed, &epilogue, &mut out, &mut scratch, &Serial)
                    .expect("shapes fit");
            });
            let rate = work / seconds;
            print!("  {} {rate:6.1} ({:4.1} %)", kernel.isa().level(), 100.0 * rate / peak(kernel.isa()));
        }
        println!();
    }
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn depthwise_table() {
    let mut rng = Rng::new(3);
    for &(size, channels, kernel_size, stride, what) in DEPTHWISE_SHAPES {
        let window = Window::new(kernel_size, stride, kernel_size / 2);
        let g = Sliding::new([1, size, size, channels], window, window).expect("valid window");
        let input = floats(&mut rng, size * size * channels);
        let weights = floats(&mut rng, channels * g.taps());
        let bias = floats(&mut rng, channels);
        let mut out = AlignedVec::zeros(g.out_pixels() * channels);
        let work = (2 * g.out_pixels() * channels * g.taps()) as f64 / 1e9;
        print!("depthwise {size:4} x {channels:4} {kernel_size}x{kernel_size}/{stride} {what:16}");
        let packed = PackedDepthwise::new(&weights, channels, g.taps()).expect("shapes fit");
        for isa in VectorIsa::all_available() {
            let epilogue = Epilogue::new(Some(&bias), Unary::Relu);
            let seconds = best_time(|| {
                depthwise_f32(isa, &g, &input, &packed, &epilogue, &mut out, &Serial).expect("shapes fit");
            });
            let rate = work / seconds;
            print!("  {} {rate:6.1} ({:4.1} %)", isa.level(), 100.0 * rate / peak(isa));
        }
        println!();
    }
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn unary_table() {
    let x = Rng::new(4).floats(8192, -4.0, 4.0);
    let mut out = vec![0.0; x.len()];
    let functions = [
        Unary::Relu,
        Unary::Exp,
        Unary::Log,
        Unary::Sigmoid,
        Unary::Silu,
        Unary::Tanh,
        Unary::Gelu,
        Unary::GeluMnn,
    ];
    for f in functions {
        print!("{:12}", format!("{f:?}"));
        for isa in VectorIsa::all_available() {
            let seconds = best_time(|| unary(isa, f, &x, &mut out));
            print!("  {} {:5.2} ns/element", isa.level(), seconds * 1e9 / x.len() as f64);
        }
        println!();
    }
}

fn gemm_group(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm_f32");
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20);
    let Some(kernel) = GemmF32::all_available().pop() else { return };
    for &(m, n, k, what) in GEMM_SHAPES {
        let mut data = operands(m, n, k);
        group.throughput(Throughput::Elements((m * n * k) as u64));
        let id = format!("{m}x{n}x{k} {what}");
        let b = PackedB::from_rows(&kernel, &data.b, k, n, n).expect("shapes fit");
        let mut scratch = AlignedVec::zeros(scratch_len());
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
