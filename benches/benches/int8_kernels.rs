//! Int8 and low-bit kernels on shapes of real networks.
//!
//! `cargo bench -p mnnq-bench --bench int8_kernels` runs the criterion groups; with `-- --table` it prints one line per
//! shape instead, and with `-- --json` one JSON object: GOPS (two per multiply-add) of every kernel and the share of
//! this CPU's instruction peak, measured in the same run; for one row of low-bit weights GB/s and the share of the
//! memory bandwidth that a plain sum over the same amount of memory reaches. The time of packing the weights stands apart.
//! `--all` takes every kernel of the machine instead of the best, `--only TEXT` the cases whose group or shape has that text.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use mnnq_kernels::conv_i8::{PackedConvI8, conv_i8};
use mnnq_kernels::depthwise_i8::{DepthwiseI8, PackedDepthwiseI8, depthwise_i8};
use mnnq_kernels::gemm_i8::{Dequantize, GemmI8, Output, PackedI8, Requantize, gemm_i8, scratch_len};
use mnnq_kernels::gemm_w4::{BlockRows, BlockWeights, GemmW4, PackedBlocks, gemm_w4};
use mnnq_kernels::geometry::{Sliding, Window};
use mnnq_kernels::parallel::Serial;
use mnnq_kernels::simd::{Simd, SimdOp, VectorIsa};
use mnnq_kernels::testing::Rng;
use mnnq_kernels::winograd_i8::{PackedWinogradI8, WinogradI8, winograd_i8};
use mnnq_kernels::{AlignedBytes, AlignedVec, Epilogue};

/// `(m, n, k, where it occurs)`.
const GEMM_SHAPES: &[(usize, usize, usize, &str)] = &[
    (512, 1024, 1024, "square-like"),
    (3136, 256, 64, "resnet50 1x1 expand"),
    (3136, 64, 256, "resnet50 1x1 reduce"),
    (784, 512, 128, "resnet50 1x1 expand"),
    (196, 1024, 256, "resnet50 1x1 expand"),
    (196, 256, 1024, "resnet50 1x1 reduce"),
    (49, 2048, 512, "resnet50 1x1 expand"),
    (49, 512, 2048, "resnet50 1x1 reduce"),
    (12544, 16, 32, "mobilenetv2 project"),
    (12544, 96, 16, "mobilenetv2 expand"),
    (196, 576, 96, "mobilenetv2 expand"),
    (196, 96, 576, "mobilenetv2 project"),
    (49, 1280, 320, "mobilenetv2 head"),
    (128, 768, 768, "bert attention"),
    (128, 3072, 768, "bert feed-forward"),
    (128, 768, 3072, "bert feed-forward"),
    (1, 1000, 2048, "resnet50 classifier"),
];

/// `(size, channels, output channels, kernel, stride, where it occurs)`, square images and windows.
const CONV_SHAPES: &[(usize, usize, usize, usize, usize, &str)] = &[
    (224, 3, 64, 7, 2, "resnet50 stem"),
    (56, 64, 64, 3, 1, "resnet50 layer1"),
    (28, 128, 128, 3, 1, "resnet50 layer2"),
    (14, 256, 256, 3, 1, "resnet50 layer3"),
    (7, 512, 512, 3, 1, "resnet50 layer4"),
    (56, 128, 128, 3, 2, "resnet50 layer2 down"),
    (224, 3, 32, 3, 2, "mobilenetv2 stem"),
];

/// `(size, channels, kernel, stride, where it occurs)`.
const DEPTHWISE_SHAPES: &[(usize, usize, usize, usize, &str)] = &[
    (112, 32, 3, 1, "mobilenetv2"),
    (112, 96, 3, 2, "mobilenetv2"),
    (56, 144, 3, 1, "mobilenetv2"),
    (14, 576, 3, 1, "mobilenetv2"),
    (7, 960, 3, 1, "mobilenetv2"),
    (28, 120, 5, 1, "mobilenetv3"),
];

/// `(m, n, k, block, where it occurs)` of 4-bit weights.
const W4_SHAPES: &[(usize, usize, usize, usize, &str)] = &[
    (1, 5632, 2048, 32, "llama decode"),
    (1, 5632, 2048, 128, "llama decode"),
    (1, 2048, 5632, 32, "llama decode"),
    (1, 2048, 5632, 128, "llama decode"),
    (128, 5632, 2048, 32, "llama prefill"),
    (128, 2048, 5632, 128, "llama prefill"),
];

/// Bytes that no cache holds.
const MEMORY: usize = 256 << 20;

/// A prepared call.
type Call = Box<dyn FnMut()>;

/// One measured case.
struct Case {
    group: &'static str,
    kernel: &'static str,
    shape: String,
    /// Multiply-adds of a call.
    products: usize,
    /// Bytes of weights that a call has to read, for calls bound by memory.
    weight_bytes: Option<usize>,
    /// Packing the weights once, in seconds.
    packing: f64,
    call: Call,
}

/// What `pack` makes, and its seconds.
fn timed<T>(pack: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let packed = pack();
    (packed, start.elapsed().as_secs_f64())
}

fn gemm_case(kernel: GemmI8, (m, n, k, place): (usize, usize, usize, &str)) -> Case {
    let mut rng = Rng::new(1);
    let a = rng.bytes_i8(m * k);
    let weights = rng.bytes_i8(n * k);
    let (packed, packing) = timed(|| PackedI8::new(&kernel, &weights, k, n, k, 0).unwrap());
    let (scale, bias) = (rng.floats(n, 1e-4, 1e-3), rng.floats(n, -1.0, 1.0));
    let mut out = vec![0_i8; m * n];
    let mut scratch = AlignedBytes::zeros(scratch_len(&kernel, k));
    let call = move || {
        let requantize = Requantize::new(&scale, Some(&bias), 0);
        let output = Output::Int8 { data: &mut out, row_stride: n, requantize };
        gemm_i8(&kernel, m, &a, k, &packed, output, &mut scratch, &Serial).unwrap();
    };
    let shape = format!("{m}x{n}x{k} {place}");
    let products = m * n * k;
    Case {
        group: "gemm_i8",
        kernel: kernel.name(),
        shape,
        products,
        weight_bytes: None,
        packing,
        call: Box::new(call),
    }
}

fn gemm_float_case(kernel: GemmI8, (m, n, k, place): (usize, usize, usize, &str)) -> Case {
    let mut rng = Rng::new(1);
    let a = rng.bytes_i8(m * k);
    let weights = rng.bytes_i8(n * k);
    let (packed, packing) = timed(|| PackedI8::new(&kernel, &weights, k, n, k, 0).unwrap());
    let (scale, bias) = (rng.floats(n, 1e-4, 1e-3), rng.floats(n, -1.0, 1.0));
    let rows = rng.floats(m, 0.1, 1.0);
    let mut out = vec![0_f32; m * n];
    let mut scratch = AlignedBytes::zeros(scratch_len(&kernel, k));
    let call = move || {
        let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
        let dequantize = Dequantize::symmetric(&rows, &scale, epilogue);
        let output = Output::Float { data: &mut out, row_stride: n, dequantize };
        gemm_i8(&kernel, m, &a, k, &packed, output, &mut scratch, &Serial).unwrap();
    };
    let shape = format!("{m}x{n}x{k} {place}");
    let products = m * n * k;
    Case {
        group: "gemm_i8_f32",
        kernel: kernel.name(),
        shape,
        products,
        weight_bytes: None,
        packing,
        call: Box::new(call),
    }
}

fn conv_case(
    kernel: GemmI8,
    (size, ic, oc, window, stride, place): (usize, usize, usize, usize, usize, &str),
) -> Case {
    let mut rng = Rng::new(2);
    let axis = Window::new(window, stride, window / 2);
    let g = Sliding::new([1, size, size, ic], axis, axis).unwrap();
    let input = rng.bytes_i8(size * size * ic);
    let taps = window * window;
    let weights = rng.bytes_i8(oc * ic * taps);
    let (packed, packing) = timed(|| PackedConvI8::new(&kernel, &weights, [oc, ic, taps], 1, 0).unwrap());
    let (scale, bias) = (rng.floats(oc, 1e-4, 1e-3), rng.floats(oc, -1.0, 1.0));
    let mut out = vec![0_i8; g.out_pixels() * oc];
    let mut scratch = AlignedBytes::zeros(packed.scratch_len(&kernel));
    let products = g.out_pixels() * oc * ic * taps;
    let call = move || {
        let requantize = Requantize::new(&scale, Some(&bias), 0);
        let output = Output::Int8 { data: &mut out, row_stride: oc, requantize };
        conv_i8(&kernel, &g, &input, 0, &packed, output, &mut scratch, &Serial).unwrap();
    };
    let shape = format!("{size}x{size}x{ic}->{oc} {window}x{window}/{stride} {place}");
    Case {
        group: "conv_i8",
        kernel: kernel.name(),
        shape,
        products,
        weight_bytes: None,
        packing,
        call: Box::new(call),
    }
}

/// The 3 x 3 convolutions without stride by Winograd's algorithm; the products are those of the direct sum.
fn winograd_case(
    kernel: WinogradI8,
    (size, ic, oc, window, stride, place): (usize, usize, usize, usize, usize, &str),
) -> Option<Case> {
    if (window, stride) != (3, 1) {
        return None;
    }
    let mut rng = Rng::new(2);
    let axis = Window::new(3, 1, 1);
    let g = Sliding::new([1, size, size, ic], axis, axis).unwrap();
    let input = rng.bytes_i8(size * size * ic);
    // As large as trained weights are on average.
    let weights: Vec<i8> = rng.bytes_i8(oc * ic * 9).iter().map(|code| code / 3).collect();
    let (packed, packing) = timed(|| PackedWinogradI8::new(&kernel, &weights, oc, ic, 0).unwrap());
    let (scale, bias) = (rng.floats(oc, 1e-4, 1e-3), rng.floats(oc, -1.0, 1.0));
    let mut out = vec![0_i8; g.out_pixels() * oc];
    let mut scratch = vec![0_i32; packed.scratch_len()];
    let products = g.out_pixels() * oc * ic * 9;
    let call = move || {
        let requantize = Requantize::new(&scale, Some(&bias), 0);
        let output = Output::Int8 { data: &mut out, row_stride: oc, requantize };
        winograd_i8(&g, &input, 0, &packed, output, &mut scratch, &Serial).unwrap();
    };
    Some(Case {
        group: "winograd_i8",
        kernel: kernel.name(),
        shape: format!("{size}x{size}x{ic}->{oc} 3x3/1 {place}"),
        products,
        weight_bytes: None,
        packing,
        call: Box::new(call),
    })
}

fn depthwise_case(
    kernel: DepthwiseI8,
    (size, channels, window, stride, place): (usize, usize, usize, usize, &str),
) -> Case {
    let mut rng = Rng::new(3);
    let axis = Window::new(window, stride, window / 2);
    let g = Sliding::new([1, size, size, channels], axis, axis).unwrap();
    let input = rng.bytes_i8(size * size * channels);
    let weights = rng.bytes_i8(channels * window * window);
    let (packed, packing) =
        timed(|| PackedDepthwiseI8::new(&kernel, &weights, channels, [window, window], 0).unwrap());
    let (scale, bias) = (rng.floats(channels, 1e-4, 1e-3), rng.floats(channels, -1.0, 1.0));
    let mut out = vec![0_i8; g.out_pixels() * channels];
    let mut scratch = AlignedBytes::zeros(packed.scratch_len(&kernel, &g));
    let products = g.out_pixels() * channels * window * window;
    let call = move || {
        let requantize = Requantize::new(&scale, Some(&bias), 0);
        let output = Output::Int8 { data: &mut out, row_stride: channels, requantize };
        depthwise_i8(&kernel, &g, &input, 0, &packed, output, &mut scratch, &Serial).unwrap();
    };
    let shape = format!("{size}x{size}x{channels} {window}x{window}/{stride} {place}");
    Case {
        group: "depthwise_i8",
        kernel: kernel.name(),
        shape,
        products,
        weight_bytes: None,
        packing,
        call: Box::new(call),
    }
}

fn w4_case(
    kernel: GemmW4,
    (m, n, k, block, place): (usize, usize, usize, usize, &str),
    memory: usize,
) -> Case {
    let mut rng = Rng::new(4);
    let blocks = k / block;
    let codes: Vec<i8> = (0..n * k).map(|_| rng.integer(-8, 7) as i8).collect();
    let scales = rng.floats(n * blocks, 0.01, 0.1);
    let weights = BlockWeights { codes: &codes, n, k, block, bits: 4, scales: &scales, offsets: None };
    let (packed, packing) = timed(|| PackedBlocks::new(&kernel, &weights).unwrap());
    let weight_bytes = packed.bytes();
    // Decoding streams the weights of a whole model: enough copies that no cache holds them.
    let copies = if m == 1 { memory.div_ceil(weight_bytes).max(1) } else { 1 };
    let packed: Vec<PackedBlocks> = vec![packed; copies];
    let (a, row_scales) = (rng.bytes_i8(m * k), rng.floats(m, 0.1, 1.0));
    let sums: Vec<i32> =
        a.chunks(block).map(|codes| codes.iter().map(|&code| i32::from(code)).sum()).collect();
    let mut out = vec![0.0; m * n];
    let mut next = 0;
    let call = move || {
        let rows = BlockRows { m, codes: &a, row_stride: k, scales: &row_scales, offsets: None, sums: &sums };
        next = (next + 1) % packed.len();
        gemm_w4(&kernel, &rows, &packed[next], &Epilogue::default(), &mut out, n, &mut [], &Serial).unwrap();
    };
    Case {
        group: "gemm_w4",
        kernel: kernel.name(),
        shape: format!("{m}x{n}x{k} block {block} {place}"),
        products: m * n * k,
        weight_bytes: (m == 1).then_some(weight_bytes),
        packing,
        call: Box::new(call),
    }
}

/// All cases; `every` kernel or the best of each family.
fn cases(every: bool) -> impl Iterator<Item = Case> {
    fn pick<T: Copy>(mut all: Vec<T>, every: bool) -> Vec<T> {
        if !every {
            all.drain(..all.len() - 1);
        }
        all
    }
    let memory = MEMORY;
    let gemm = pick(GemmI8::all_available(), every);
    let depthwise = pick(DepthwiseI8::all_available(), every);
    let w4 = pick(GemmW4::all_available(), every);
    let winograd = pick(WinogradI8::all_available(), every);
    let floats = [GEMM_SHAPES[0], GEMM_SHAPES[13], GEMM_SHAPES[14], GEMM_SHAPES[15]];
    let convs = gemm.clone();
    let float_kernels = gemm.clone();
    let products = GEMM_SHAPES
        .iter()
        .flat_map(move |&shape| gemm.clone().into_iter().map(move |kernel| gemm_case(kernel, shape)));
    let floats = floats.into_iter().flat_map(move |shape| {
        float_kernels.clone().into_iter().map(move |kernel| gemm_float_case(kernel, shape))
    });
    let convs = CONV_SHAPES
        .iter()
        .flat_map(move |&shape| convs.clone().into_iter().map(move |kernel| conv_case(kernel, shape)));
    let depthwise = DEPTHWISE_SHAPES.iter().flat_map(move |&shape| {
        depthwise.clone().into_iter().map(move |kernel| depthwise_case(kernel, shape))
    });
    let w4 = W4_SHAPES
        .iter()
        .flat_map(move |&shape| w4.clone().into_iter().map(move |kernel| w4_case(kernel, shape, memory)));
    let winograd = CONV_SHAPES.iter().flat_map(move |&shape| {
        winograd.clone().into_iter().filter_map(move |kernel| winograd_case(kernel, shape))
    });
    products.chain(floats).chain(convs).chain(winograd).chain(depthwise).chain(w4)
}

/// Seconds per call: the best of many short rounds, so that a busy machine disturbs few of them.
fn best_time(budget: Duration, call: &mut dyn FnMut()) -> f64 {
    call();
    let start = Instant::now();
    call();
    let once = start.elapsed().max(Duration::from_nanos(100)).as_secs_f64();
    let calls = (50e-6 / once).ceil() as usize;
    let deadline = Instant::now() + budget;
    let mut best = f64::INFINITY;
    for round in 0.. {
        let start = Instant::now();
        for _ in 0..calls {
            call();
        }
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
        if round >= 5 && Instant::now() >= deadline {
            break;
        }
    }
    best
}

/// Multiply-adds per second of the best int8 kernel's tile on operands that stay in the first-level cache: what the
/// dot-product instructions of this CPU reach when nothing else is in their way.
fn peak_products() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = mnnq_kernels::cpu::Avx512Vnni::detect() {
        return peak_vnni(token);
    }
    let mut case = gemm_case(*GemmI8::all_available().last().unwrap(), (56, 128, 512, "peak"));
    case.products as f64 / best_time(Duration::from_millis(400), &mut *case.call)
}

/// The peak of `vpdpbusd` on registers.
#[cfg(target_arch = "x86_64")]
fn peak_vnni(_proof: mnnq_kernels::cpu::Avx512Vnni) -> f64 {
    use std::arch::x86_64::*;

    const ROUNDS: usize = 10_000;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn body() -> __m512i {
        let x = black_box(_mm512_set1_epi8(3));
        let y = black_box(_mm512_set1_epi8(5));
        let mut acc = [_mm512_setzero_si512(); 16];
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm512_dpbusd_epi32(*a, x, y);
            }
            // Keeps the loop from being replaced by a multiplication.
            acc = black_box_registers(acc);
        }
        acc.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn black_box_registers(mut acc: [__m512i; 16]) -> [__m512i; 16] {
        for a in &mut acc {
            // SAFETY: no instruction; the value only becomes unknown to the compiler.
            unsafe {
                std::arch::asm!("/* {0} */", inout(zmm_reg) * a, options(nomem, nostack, preserves_flags))
            };
        }
        acc
    }

    let mut call = || {
        // SAFETY: the token proves the instructions.
        black_box(unsafe { body() });
    };
    (ROUNDS * 16 * 64) as f64 / best_time(Duration::from_millis(400), &mut call)
}

/// Bytes per second of sums over pieces of a memory that no cache holds, on huge pages where the system has them.
fn bandwidth() -> f64 {
    const PIECE: usize = 1 << 20;
    let isa = VectorIsa::all_available().pop().unwrap();
    let memory = AlignedVec::zeros(MEMORY / 4);
    let mut next = 0;
    let mut call = || {
        let piece = &memory[next..next + PIECE];
        next = (next + PIECE) % memory.len();
        black_box(isa.run(Sum(piece)));
    };
    (4 * PIECE) as f64 / best_time(Duration::from_millis(600), &mut call)
}

/// The sum of a slice whose length is a multiple of 128.
struct Sum<'a>(&'a [f32]);

impl SimdOp for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 8];
        for chunk in self.0.chunks_exact(8 * S::LANES) {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load_slice(&chunk[v * S::LANES..(v + 1) * S::LANES]));
            }
        }
        sums.iter().map(|&sum| s.sum_lanes(sum)).sum()
    }
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn print(json: bool, every: bool, only: &str) {
    let (peak, bandwidth) = (peak_products(), bandwidth());
    if json {
        println!(
            "{{\"peak_gops\": {:.1}, \"bandwidth_gb_s\": {:.2}, \"cases\": [",
            2e-9 * peak,
            1e-9 * bandwidth
        );
    } else {
        println!("peak {:.0} GOPS, bandwidth {:.1} GB/s, one thread", 2e-9 * peak, 1e-9 * bandwidth);
    }
    let mut first = true;
    for mut case in cases(every) {
        if !case.group.contains(only) && !case.shape.contains(only) {
            continue;
        }
        let seconds = best_time(Duration::from_millis(200), &mut *case.call);
        let rate = case.products as f64 / seconds;
        let memory = case.weight_bytes.map(|bytes| bytes as f64 / seconds);
        if json {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            let memory = memory.map_or(String::new(), |rate| {
                format!(", \"gb_s\": {:.2}, \"of_bandwidth\": {:.3}", 1e-9 * rate, rate / bandwidth)
            });
            println!(
                "{comma}{{\"group\": \"{}\", \"kernel\": \"{}\", \"shape\": \"{}\", \"us\": {:.2}, \"packing_us\": {:.1}, \"gops\": {:.1}, \
                 \"of_peak\": {:.3}{memory}}}",
                case.group,
                case.kernel,
                case.shape,
                1e6 * seconds,
                1e6 * case.packing,
                2e-9 * rate,
                rate / peak,
            );
        } else {
            let memory = memory.map_or(String::new(), |rate| {
                format!("  {:6.2} GB/s {:3.0} % of bandwidth", 1e-9 * rate, 100.0 * rate / bandwidth)
            });
            println!(
                "{:12} {:46} {:26} {:9.1} us {:7.1} GOPS {:3.0} %  packing {:8.1} us{memory}",
                case.group,
                case.shape,
                case.kernel,
                1e6 * seconds,
                2e-9 * rate,
                100.0 * rate / peak,
                1e6 * case.packing,
            );
        }
    }
    if json {
        println!("]}}");
    }
}

fn benches(criterion: &mut Criterion) {
    for mut case in cases(false) {
        let mut group = criterion.benchmark_group(case.group);
        group.throughput(Throughput::Elements(case.products as u64));
        group.bench_function(BenchmarkId::new(case.kernel, &case.shape), |b| b.iter(|| (case.call)()));
        group.finish();
    }
}

fn main() {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    if has("--table") || has("--json") {
        let only = std::env::args().skip_while(|argument| argument != "--only").nth(1).unwrap_or_default();
        print(has("--json"), has("--all"), &only);
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
}
