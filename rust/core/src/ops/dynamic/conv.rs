//! The kernel of a convolution in integers.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::geometry::{Sliding, Window};
use mnnq_kernels::parallel::{Executor, Serial};
use mnnq_kernels::quantize_rows::{RowCodes, RowScheme};
use mnnq_kernels::quantize_windows::{Windows, pixel_ranges};
use mnnq_kernels::{Epilogue as KernelEpilogue, Residual};

use super::rows::{Codes, QuantizedRows, word};
use super::weights::DynamicWeights;
use crate::ops::conv_weights::kernel_epilogue;
use crate::ops::epilogue::Epilogue;
use crate::ops::error::{OpError, OpResult};
use crate::ops::operator::{Kernel, StepIo};
use crate::ops::support::kernels;
use crate::runtime::config::DynamicMode;

const LINE: usize = 64;

/// A dense or grouped convolution in integers.
pub(crate) struct IntegerConv {
    sliding: Sliding,
    weights: Arc<DynamicWeights>,
    bias: Vec<f32>,
    activation: Unary,
    residual: Option<(usize, Unary)>,
    /// What the kernels cannot apply themselves.
    rest: Epilogue,
    rows: Source,
    threads: usize,
    words: String,
}

/// Where the codes come from.
enum Source {
    /// Another step made them: how, and which input they are.
    Shared(QuantizedRows, usize),
    /// Windows of the float input, quantized in this step.
    Windows(RowScheme),
}

/// The codes that a convolution wants, if its input's pixels are its rows.
pub(crate) fn shared_rows(
    sliding: &Sliding,
    weights: &DynamicWeights,
    mode: DynamicMode,
) -> Option<QuantizedRows> {
    let point = |w: &Window| w.kernel == 1 && w.stride == 1 && w.pad_begin == 0 && w.pad_end == 0;
    let pointwise = point(&sliding.vertical) && point(&sliding.horizontal) && weights.groups() == 1;
    let rows = sliding.out_pixels();
    pointwise.then(|| QuantizedRows {
        scheme: scheme(mode, rows, false),
        rows,
        k: weights.k(),
        block: weights.block(),
    })
}

/// How the activations of a layer are quantized.
fn scheme(mode: DynamicMode, rows: usize, padded: bool) -> RowScheme {
    match mode {
        DynamicMode::Compat if rows > 1 => RowScheme::Symmetric,
        _ if padded => RowScheme::ZeroPoint,
        _ => RowScheme::Asymmetric,
    }
}

/// The parts of the scratch memory of one thread.
struct Scratch {
    rows: usize,
    sums: usize,
    product: usize,
}

impl IntegerConv {
    /// `shared`: the position of the input that holds the codes of [`shared_rows`].
    pub(crate) fn new(
        sliding: Sliding,
        weights: Arc<DynamicWeights>,
        bias: Vec<f32>,
        epilogue: &Epilogue,
        mode: DynamicMode,
        threads: usize,
        shared: Option<usize>,
    ) -> Self {
        let rows = shared_rows(&sliding, &weights, mode).zip(shared);
        let padded = [sliding.vertical, sliding.horizontal].iter().any(|w| w.pad_begin + w.pad_end > 0);
        let rows = match rows {
            Some((how, input)) => Source::Shared(how, input),
            None => Source::Windows(scheme(mode, sliding.out_pixels(), padded)),
        };
        let (activation, residual, rest) = kernel_epilogue(epilogue);
        let words = epilogue.describe();
        Self { sliding, weights, bias, activation, residual, rest, rows, threads, words }
    }

    /// Adds words to the profile.
    pub(crate) fn note(&mut self, words: &str) {
        self.words.push_str(words);
    }

    fn epilogue<'a>(&'a self, residual: Option<(&'a [f32], Unary)>, first: usize) -> KernelEpilogue<'a> {
        let n = self.weights.columns();
        let residual = residual.map(|(data, then)| Residual { data, row_stride: self.bias.len(), then });
        KernelEpilogue {
            scale: None,
            bias: Some(&self.bias[first..first + n]),
            activation: self.activation,
            residual,
        }
    }

    /// Output pixels of a task.
    fn rows_per_task(&self) -> usize {
        let pixels = self.sliding.out_pixels();
        self.weights.rows_per_task().min(pixels.div_ceil(self.threads)).max(1)
    }

    fn thread_scratch(&self) -> Scratch {
        let rows = self.rows_per_task();
        let sums = rows * (self.weights.k() / self.weights.block().max(1));
        Scratch { rows, sums, product: self.weights.scratch_len(rows) }
    }

    fn ranges(&self) -> usize {
        self.sliding.batch * self.sliding.height * self.sliding.width * self.weights.groups()
    }

    /// From codes that another step made.
    fn run_shared(&self, how: &QuantizedRows, input: usize, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let codes = how.read(io.input(input).data::<u8>());
        let residual = self.residual.map(|(position, then)| (io.input(position).data::<f32>(), then));
        let epilogue = self.epilogue(residual, 0);
        let out = io.outputs[0].data::<f32>();
        let target = (out, self.bias.len());
        self.weights.multiply(0, &codes, &epilogue, target, io.scratch, io.parallel)
    }

    /// From windows of the float input.
    fn run_windows(&self, scheme: RowScheme, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (g, isa) = (&self.sliding, kernels().elementwise_f32);
        let input = io.input(0).data::<f32>();
        let channels = g.channels / self.weights.groups();
        let residual = self.residual.map(|(position, then)| (io.input(position).data::<f32>(), then));
        let (ranges, scratch) = io.scratch.split_at_mut((8 * self.ranges()).next_multiple_of(LINE));
        let ranges: &mut [[f32; 2]] = &mut bytemuck::cast_slice_mut(ranges)[..self.ranges()];
        pixel_ranges(isa, input, channels, ranges, io.parallel)?;
        let job = Job { conv: self, input, ranges, scheme, residual };
        let out = io.outputs[0].data::<f32>();
        let sizes = self.thread_scratch();
        let (len, per_thread) = (sizes.rows * self.bias.len(), job.scratch_len(&sizes));
        if out.is_empty() {
            return Ok(());
        }
        let failed: Mutex<Option<OpError>> = Mutex::new(None);
        // One task: all threads on its products.
        let single = out.len() <= len;
        io.parallel.for_each_chunk_with(out, len, scratch, per_thread, |index, out, scratch| {
            let executor: &dyn Executor = if single { io.parallel } else { &Serial };
            if let Err(error) = job.task(index * sizes.rows, out, scratch, &sizes, executor) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// The windows of a run.
struct Job<'a> {
    conv: &'a IntegerConv,
    input: &'a [f32],
    ranges: &'a [[f32; 2]],
    scheme: RowScheme,
    residual: Option<(&'a [f32], Unary)>,
}

impl Job<'_> {
    /// Bytes of one thread's scratch: codes, scales and offsets, sums, the product's own.
    fn scratch_len(&self, sizes: &Scratch) -> usize {
        task_scratch(&self.conv.weights, sizes)
    }

    fn task(
        &self,
        first: usize,
        out: &mut [f32],
        scratch: &mut [u8],
        sizes: &Scratch,
        executor: &dyn Executor,
    ) -> OpResult<()> {
        let (conv, weights) = (self.conv, &self.conv.weights);
        let (k, n, channels) = (weights.k(), weights.columns(), conv.bias.len());
        let rows = out.len() / channels;
        let (codes, scratch) = scratch.split_at_mut((sizes.rows * k).next_multiple_of(LINE));
        let (floats, scratch) = scratch.split_at_mut((8 * sizes.rows).next_multiple_of(LINE));
        let (sums, product) = scratch.split_at_mut((4 * sizes.sums).next_multiple_of(LINE));
        let codes: &mut [i8] = &mut bytemuck::cast_slice_mut(codes)[..rows * k];
        let (scales, offsets) = bytemuck::cast_slice_mut::<u8, f32>(floats).split_at_mut(sizes.rows);
        let (scales, offsets) = (&mut scales[..rows], &mut offsets[..rows]);
        let sums: &mut [i32] = &mut bytemuck::cast_slice_mut(sums)[..rows * (sizes.sums / sizes.rows)];
        let per_group = conv.sliding.channels / weights.groups();
        for group in 0..weights.groups() {
            let windows = Windows {
                sliding: &conv.sliding,
                input: self.input,
                ranges: self.ranges,
                scheme: self.scheme,
                group,
                channels: per_group,
                block_channels: weights.block() / conv.sliding.taps(),
            };
            let to = RowCodes { codes, row_stride: k, scales, offsets, sums };
            windows.quantize(kernels().elementwise_f32, first..first + rows, to)?;
            let residual = self.residual.map(|(data, then)| (&data[first * channels + group * n..], then));
            let epilogue = conv.epilogue(residual, group * n);
            let rows = Codes { codes, scales, offsets, sums };
            let target = (&mut out[group * n..], channels);
            weights.multiply(group, &rows, &epilogue, target, product, executor)?;
        }
        Ok(())
    }
}

fn task_scratch(weights: &DynamicWeights, sizes: &Scratch) -> usize {
    let lines = |bytes: usize| bytes.next_multiple_of(LINE);
    lines(sizes.rows * weights.k()) + lines(8 * sizes.rows) + lines(4 * sizes.sums) + lines(sizes.product)
}

impl Kernel for IntegerConv {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        let (scheme, what) = match &self.rows {
            Source::Shared(how, _) => (how.scheme, "rows"),
            Source::Windows(scheme) => (*scheme, "windows"),
        };
        let (weights, scheme) = (self.weights.describe(), word(scheme));
        format!("conv {v}x{h} int8, {weights}, {scheme} {what}{}", self.words).into()
    }

    fn scratch(&self) -> usize {
        match self.rows {
            Source::Shared(how, _) => {
                let threads = if self.weights.scratch_per_thread() { self.threads } else { 1 };
                threads * self.weights.scratch_len(how.rows)
            }
            Source::Windows(_) => {
                let ranges = (8 * self.ranges()).next_multiple_of(LINE);
                ranges + self.threads * task_scratch(&self.weights, &self.thread_scratch())
            }
        }
    }

    fn multiply_adds(&self) -> u64 {
        let in_group = self.sliding.channels / self.weights.groups().max(1);
        crate::ops::conv::conv_products(&self.sliding, in_group, self.bias.len())
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match &self.rows {
            Source::Shared(how, input) => self.run_shared(how, *input, io)?,
            Source::Windows(scheme) => self.run_windows(*scheme, io)?,
        }
        self.rest.apply_all(io);
        Ok(())
    }
}
