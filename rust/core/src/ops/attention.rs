//! `Attention`, as MNN's converter fuses it.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use mnnq_format::schema::{TableKind, attention_param};
use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::gemm_f32::{PackedView, gemm_view_f32, scratch_len};
use mnnq_kernels::parallel::Serial;
use mnnq_kernels::softmax::{Softmax as Kind, softmax_f32};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{broadcast_strides, kernels, typed};
use crate::tensor::{DType, MAX_RANK, Shape, TensorDesc};

/// `Attention(q [B, T, heads, d], k [B, S, groups, d], v [B, S, groups, dv][, mask])`:
/// `softmax(q k^T scale + mask) v` per head, as `[B, T, heads dv]`. Heads share keys and values in groups of equal size;
/// the mask is added and stretched to `[B, heads, T, S]`. The scale is `1 / sqrt(d)` unless the file gives one.
pub(super) struct Attention {
    scale: Option<f32>,
}

impl Attention {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let Some(table) = source.optional_param(TableKind::AttentionParam)? else {
            return Err(OpError::unsupported("a cache of keys and values"));
        };
        if table.get(attention_param::KV_CACHE) {
            return Err(OpError::attribute("kv_cache", true, "false"));
        }
        if table.get(attention_param::OUTPUT_C4) {
            return Err(OpError::attribute("output_c4", true, "false"));
        }
        let scale = table.get(attention_param::ATTN_SCALE);
        Ok(Self { scale: (scale != 0.0).then_some(scale) })
    }

    fn dims(&self, inputs: &Facts<'_>) -> OpResult<Dims> {
        let shape = |input: usize| -> OpResult<[usize; 4]> {
            let shape = inputs.typed(input, DType::F32)?.shape;
            shape.dims().try_into().map_err(|_| OpError::shape(input, shape, "[batch, length, heads, size]"))
        };
        let ([batch, rows, heads, size], [kb, keys, groups, ks]) = (shape(0)?, shape(1)?);
        let [vb, vl, vg, value_size] = shape(2)?;
        if [kb, ks] != [batch, size] || groups == 0 || heads % groups != 0 {
            let wanted = format!("[{batch}, length, a divisor of {heads}, {size}]");
            return Err(OpError::shape(1, inputs.shape(1)?, wanted));
        }
        if [vb, vl, vg] != [batch, keys, groups] {
            return Err(OpError::shape(2, inputs.shape(2)?, format!("[{batch}, {keys}, {groups}, size]")));
        }
        let scores = Shape::new(&[batch, heads, rows, keys])?;
        if inputs.get(3).is_some() {
            let mask = inputs.typed(3, DType::F32)?.shape;
            if mask.rank() > 4 || mask.broadcast(&scores).ok() != Some(scores) {
                return Err(OpError::shape(3, mask, format!("what can be stretched to {scores}")));
            }
        }
        Ok(Dims { batch, rows, heads, size, keys, groups, value_size })
    }
}

#[derive(Debug, Clone, Copy)]
struct Dims {
    batch: usize,
    rows: usize,
    heads: usize,
    size: usize,
    keys: usize,
    groups: usize,
    value_size: usize,
}

impl Operator for Attention {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let dims = self.dims(inputs)?;
        let shape = Shape::new(&[dims.batch, dims.rows, dims.heads * dims.value_size])?;
        Ok(vec![TensorDesc::new(DType::F32, shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let dims = self.dims(&context.inputs)?;
        let scores = Shape::new(&[dims.batch, dims.heads, dims.rows, dims.keys])?;
        let scores = TensorDesc::new(DType::F32, scores);
        let mask = context.inputs.get(3).map(|mask| broadcast_strides(&mask.desc, &scores));
        let scale = self.scale.unwrap_or_else(|| 1.0 / (dims.size as f32).sqrt());
        Ok(Box::new(AttentionKernel { dims, mask, scale, threads: context.options.threads }))
    }
}

struct AttentionKernel {
    dims: Dims,
    /// Strides of the mask along the axes of the scores.
    mask: Option<[usize; MAX_RANK]>,
    scale: f32,
    threads: usize,
}

/// The tensors of a running step.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    mask: Option<&'a [f32]>,
}

impl AttentionKernel {
    /// Floats of one thread: packed keys or values, scores, probabilities, and what the products need.
    fn parts(&self) -> [usize; 4] {
        let Dims { rows, size, keys, value_size, .. } = self.dims;
        let kernel = &kernels().gemm_f32;
        let packed = PackedView::len(kernel, size, keys).max(PackedView::len(kernel, keys, value_size));
        // Each part starts at a cache line.
        let scores = (rows * keys).next_multiple_of(16);
        [packed.next_multiple_of(16), scores, scores, scratch_len()]
    }

    /// Floats of the results of all heads, one after the other.
    fn results(&self) -> usize {
        let Dims { batch, rows, heads, value_size, .. } = self.dims;
        (batch * heads * rows * value_size).next_multiple_of(16)
    }

    /// One head of one image: `out` is `[rows, value_size]`.
    fn head(&self, index: usize, io: Operands<'_>, out: &mut [f32], scratch: &mut [f32]) -> OpResult<()> {
        let Dims { rows, heads, size, keys, groups, value_size, .. } = self.dims;
        let (image, head) = (index / heads, index % heads);
        let group = head / (heads / groups);
        let [packed, scores, chances, _] = self.parts();
        let (packed, rest) = scratch.split_at_mut(packed);
        let (scores, rest) = rest.split_at_mut(scores);
        let (chances, gemm) = rest.split_at_mut(chances);
        let (scores, chances) = (&mut scores[..rows * keys], &mut chances[..rows * keys]);
        let kernel = &kernels().gemm_f32;
        let q = &io.q[(image * rows * heads + head) * size..];
        let k = &io.k[(image * keys * groups + group) * size..];
        let v = &io.v[(image * keys * groups + group) * value_size..];
        let epilogue = KernelEpilogue::default();
        let b = PackedView::from_columns(kernel, k, [size, keys], groups * size, packed)?;
        gemm_view_f32(kernel, rows, q, heads * size, b, &epilogue, scores, keys, gemm, &Serial)?;
        for (row, line) in scores.chunks_exact_mut(keys).enumerate() {
            line.iter_mut().for_each(|x| *x *= self.scale);
            if let (Some(strides), Some(mask)) = (self.mask, io.mask) {
                let start = image * strides[0] + head * strides[1] + row * strides[2];
                line.iter_mut().enumerate().for_each(|(i, x)| *x += mask[start + i * strides[3]]);
            }
        }
        softmax_f32(kernels().reduce_f32, Kind::Probabilities, [rows, keys, 1], scores, chances)?;
        let b = PackedView::from_rows(kernel, v, [keys, value_size], groups * value_size, packed)?;
        gemm_view_f32(kernel, rows, chances, keys, b, &epilogue, out, value_size, gemm, &Serial)?;
        Ok(())
    }
}

impl Kernel for AttentionKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("attention f32 {}", kernels().gemm_f32.name()).into()
    }

    fn scratch(&self) -> usize {
        (self.results() + self.threads * self.parts().iter().sum::<usize>()) * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let Dims { batch, rows, heads, size, keys, value_size, .. } = self.dims;
        [rows, heads, keys, size + value_size]
            .iter()
            .fold(batch as u64, |product, &n| product.saturating_mul(n as u64))
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let Dims { rows, heads, keys, value_size, .. } = self.dims;
        let operands = Operands {
            q: io.input(0).data(),
            k: io.input(1).data(),
            v: io.input(2).data(),
            mask: io.optional(3).map(|view| view.data()),
        };
        let out = io.outputs[0].data::<f32>();
        if out.is_empty() || keys == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let (results, scratch) = typed::<f32>(io.scratch).split_at_mut(self.results());
        let results = &mut results[..out.len()];
        let failed: Mutex<Option<OpError>> = Mutex::new(None);
        let (len, size) = (self.parts().iter().sum(), rows * value_size);
        io.parallel.for_each_chunk_with(results, size, scratch, len, |index, result, scratch| {
            if let Err(error) = self.head(index, operands, result, scratch) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        // From [batch, heads, rows, size] to [batch, rows, heads, size].
        for (at, line) in out.chunks_exact_mut(value_size).enumerate() {
            let (image, row, head) = (at / heads / rows, at / heads % rows, at % heads);
            line.copy_from_slice(
                &results[((image * heads + head) * rows + row) * value_size..][..value_size],
            );
        }
        Ok(())
    }
}
