//! Convolution with weights that stay in the bits they are stored in: the low-memory mode.
//!
//! A task takes a few output pixels, copies their windows, and expands one output channel's weights at a time.

use std::borrow::Cow;
use std::sync::Arc;

use half::f16;
use mnnq_format::{ConvWeights, bitpack};
use mnnq_kernels::geometry::{Sliding, Window};

use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Kernel, StepIo};

/// Pixels whose windows are held at a time.
const PIXELS: usize = 16;

/// Weights `[output channels, k]`, expandable one output channel at a time.
pub(super) struct StoredWeights {
    store: Store,
    /// Weights per output channel.
    k: usize,
}

enum Store {
    Half(Vec<f16>),
    Codes {
        bits: u8,
        /// Packed codes, each output channel on a byte boundary.
        bytes: Vec<u8>,
        /// Bytes of an output channel.
        stride: usize,
        /// Weights that share a scale.
        block: usize,
        /// Per block: scale, and what code 0 stands for.
        scale: Vec<[f32; 2]>,
    },
}

impl StoredWeights {
    /// Quantized weights or half floats, in the order of the source.
    pub(super) fn new(weights: ConvWeights, channels: usize) -> OpResult<Self> {
        let k = weights.len() / channels.max(1);
        let quantized = match weights {
            ConvWeights::Half(values) => return Ok(Self { store: Store::Half(values), k }),
            ConvWeights::Quantized(quantized) => quantized,
            other => return Err(OpError::unsupported(format!("{} weights kept as stored", other.kind()))),
        };
        if quantized.rows() % channels.max(1) != 0 {
            let wanted = format!("a multiple of the {channels} output channels");
            return Err(OpError::attribute("alpha", format!("{} rows", quantized.rows()), wanted));
        }
        let (bits, block) = (quantized.bits(), quantized.row_len());
        let stride = (k * usize::from(bits)).div_ceil(8);
        let mut bytes = Vec::with_capacity(stride * channels);
        for row in quantized.codes().chunks_exact(k.max(1)) {
            bytes.extend(bitpack::pack_codes(row, bits));
        }
        let scale =
            (0..quantized.rows()).map(|row| [quantized.scale()[row], quantized.offset(row)]).collect();
        Ok(Self { store: Store::Codes { bits, bytes, stride, block, scale }, k })
    }

    /// The weights of an output channel as floats: `code * scale + offset`, rounded after each step.
    fn expand(&self, channel: usize, out: &mut [f32]) {
        match &self.store {
            Store::Half(values) => {
                mnnq_kernels::half_rows::f16_to_f32(&values[channel * self.k..][..self.k], out);
            }
            Store::Codes { bits, bytes, stride, block, scale } => {
                let row = &bytes[channel * stride..][..*stride];
                let half = (1_i32 << (bits - 1)) as f32;
                let (bits, mask) = (usize::from(*bits), (1_u32 << bits) - 1);
                let blocks = self.k / (*block).max(1);
                for (index, out) in out.chunks_mut((*block).max(1)).enumerate() {
                    let [scale, offset] = scale[channel * blocks + index];
                    for (j, w) in out.iter_mut().enumerate() {
                        let at = (index * block + j) * bits;
                        let next = row.get(at / 8 + 1).copied().unwrap_or(0);
                        let word = u32::from(row[at / 8]) << 8 | u32::from(next);
                        let code = word >> (16 - bits - at % 8) & mask;
                        *w = (code as f32 - half) * scale + offset;
                    }
                }
            }
        }
    }

    fn describe(&self) -> String {
        match &self.store {
            Store::Half(_) => "float16 weights".to_owned(),
            Store::Codes { bits, .. } => format!("{bits}-bit weights"),
        }
    }
}

/// The kernel: see the module.
pub(super) struct StoredConv {
    sliding: Sliding,
    group: usize,
    weights: Arc<StoredWeights>,
    bias: Vec<f32>,
    epilogue: Epilogue,
}

impl StoredConv {
    pub(super) fn new(
        sliding: Sliding,
        group: usize,
        weights: Arc<StoredWeights>,
        bias: Vec<f32>,
        epilogue: Epilogue,
    ) -> Self {
        Self { sliding, group, weights, bias, epilogue }
    }

    /// Floats of scratch of one task.
    fn task_floats(&self) -> usize {
        (PIXELS * self.group + 1) * self.weights.k
    }
}

/// Scratch is for so many threads at most; more would not have it.
const MAX_TASKS: usize = 64;

impl Kernel for StoredConv {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        let words = self.weights.describe();
        format!("conv {v}x{h} f32, {words} expanded while running{}", self.epilogue.describe()).into()
    }

    fn scratch(&self) -> usize {
        MAX_TASKS.min(self.sliding.out_pixels().div_ceil(PIXELS)).max(1)
            * self.task_floats()
            * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let in_group = self.sliding.channels / self.group.max(1);
        super::conv::conv_products(&self.sliding, in_group, self.bias.len())
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let g = &self.sliding;
        let input = io.input(0).data::<f32>();
        let epilogue = self.epilogue.bind(io.inputs);
        let (k, channels) = (self.weights.k, self.bias.len());
        let (in_group, out_group) = (g.channels / self.group, channels / self.group);
        let out = io.outputs[0].data::<f32>();
        let scratch: &mut [f32] = super::support::typed(io.scratch);
        let len = PIXELS * channels;
        let task = |index: usize, out: &mut [f32], scratch: &mut [f32]| {
            let (weights, windows) = scratch.split_at_mut(k);
            let pixels = out.len() / channels;
            for p in 0..pixels {
                for group in 0..self.group {
                    let row = &mut windows[(group * PIXELS + p) * k..][..k];
                    copy_window(
                        g,
                        input,
                        index * PIXELS + p,
                        group * in_group..(group + 1) * in_group,
                        0.0,
                        row,
                    );
                }
            }
            for channel in 0..channels {
                self.weights.expand(channel, weights);
                let first = channel / out_group * PIXELS;
                for p in 0..pixels {
                    let row = &windows[(first + p) * k..][..k];
                    out[p * channels + channel] = dot(row, weights) + self.bias[channel];
                }
            }
            epilogue.apply(index * len, out);
        };
        let tasks = out.len().div_ceil(len);
        if tasks <= io.parallel.threads().min(MAX_TASKS) || io.parallel.threads() <= MAX_TASKS {
            io.parallel.for_each_chunk_with(out, len, scratch, self.task_floats(), task);
        } else {
            for (index, chunk) in out.chunks_mut(len).enumerate() {
                task(index, chunk, &mut scratch[..self.task_floats()]);
            }
        }
        Ok(())
    }
}

/// The sum of products, in eight interleaved partial sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a8.zip(b8) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7] = sums;
    ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)) + tail
}

/// Copies the window of an output pixel of an NHWC image in the order `[channel, tap]`, `pad` outside the image.
pub(super) fn copy_window<T: Copy, U: From<T> + Copy>(
    g: &Sliding,
    input: &[T],
    pixel: usize,
    channels: std::ops::Range<usize>,
    pad: U,
    row: &mut [U],
) {
    let (x, rest) = (pixel % g.out_width, pixel / g.out_width);
    let (y, image) = (rest % g.out_height, rest / g.out_height);
    let taps = g.taps();
    let position = |w: &Window, output: usize, tap: usize, length: usize| {
        (output * w.stride + tap * w.dilation).checked_sub(w.pad_begin).filter(|&p| p < length)
    };
    for ky in 0..g.vertical.kernel {
        for kx in 0..g.horizontal.kernel {
            let tap = ky * g.horizontal.kernel + kx;
            let at = position(&g.vertical, y, ky, g.height).zip(position(&g.horizontal, x, kx, g.width));
            let targets = row[tap..].iter_mut().step_by(taps);
            match at {
                Some((iy, ix)) => {
                    let start = ((image * g.height + iy) * g.width + ix) * g.channels;
                    let source = &input[start + channels.start..start + channels.end];
                    targets.zip(source).for_each(|(target, &value)| *target = value.into());
                }
                None => targets.for_each(|target| *target = pad),
            }
        }
    }
}
