//! Operators that order elements: `TopKV2`, `Unique`.

use std::borrow::Cow;
use std::cmp::Ordering;

use mnnq_format::schema::{TableKind, top_kv2};

use super::error::{OpError, OpResult};
use super::gather_nd::axis_input;
use super::operator::{Facts, InferError, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{for_each_outer, split_at_axis, typed};
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Element, Shape, Tensor, TensorDesc, TensorView};

/// Order of two elements; NaN comes after all numbers and equals itself.
fn order<T: Element>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| {
        // Only a NaN does not compare with itself.
        let nan = |v: &T| v.partial_cmp(v).is_none();
        nan(a).cmp(&nan(b))
    })
}

/// `TopKV2(x, k[, axis])`: the k largest (smallest) elements along an axis in falling (rising) order, and their
/// positions, INT32. Equal elements come in the order of their positions; NaN counts as larger than any number. The
/// axis is the last one if absent.
pub(super) struct TopK {
    largest: bool,
}

impl TopK {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(2)?;
        let table = source.optional_param(TableKind::TopKV2)?;
        Ok(Self { largest: table.is_none_or(|table| table.get(top_kv2::LARGEST)) })
    }
}

impl Operator for TopK {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        if desc.dtype == DType::F16 {
            let wanted = "float32 or an integer type".to_owned();
            return Err(OpError::InputType { input: 0, wanted, got: desc.dtype }.into());
        }
        let along = axis_input(inputs, 2, -1, desc.shape.rank())?;
        let length = desc.shape[along];
        let listed = inputs.integers(1)?.first().copied().unwrap_or(-1);
        let k = usize::try_from(listed).ok().filter(|&k| k <= length);
        let k = k.ok_or_else(|| OpError::value(1, format!("k is {listed}, wanted 0 to {length}")))?;
        let mut dims = desc.shape.dims().to_vec();
        dims[along] = k;
        let shape = Shape::new(&dims)?;
        Ok(vec![TensorDesc::new(desc.dtype, shape), TensorDesc::new(DType::I32, shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let along = axis_input(&context.inputs, 2, -1, desc.shape.rank())
            .map_err(|_| OpError::unsupported("an axis that is not known"))?;
        let (_, length, inner) = split_at_axis(&desc.shape, along);
        if u32::try_from(length).is_err() {
            return Err(OpError::shape(0, desc.shape, "an axis of less than 2^32 elements"));
        }
        Ok(Box::new(TopKKernel {
            length,
            k: context.outputs[0].shape[along],
            inner,
            largest: self.largest,
            threads: context.options.threads,
        }))
    }
}

struct TopKKernel {
    length: usize,
    k: usize,
    inner: usize,
    largest: bool,
    threads: usize,
}

impl TopKKernel {
    fn find<T: Element>(&self, io: &mut StepIo<'_, '_>) {
        let (length, k, inner) = (self.length, self.k, self.inner);
        let x = io.input(0).data::<T>();
        let [values, indices, ..] = io.outputs else { return };
        let indices = indices.data::<i32>();
        if indices.is_empty() {
            return;
        }
        let scratch: &mut [u32] = typed(io.scratch);
        io.parallel.for_each_chunk_with(indices, k * inner, scratch, length, |outer, out, line| {
            for i in 0..inner {
                let at = |l: u32| &x[(outer * length + l as usize) * inner + i];
                let rank = |a: &u32, b: &u32| {
                    let by_value = order(at(*a), at(*b));
                    (if self.largest { by_value.reverse() } else { by_value }).then(a.cmp(b))
                };
                for (l, slot) in line.iter_mut().enumerate() {
                    *slot = l as u32;
                }
                if k < length {
                    line.select_nth_unstable_by(k, rank);
                }
                line[..k].sort_unstable_by(rank);
                for (l, &found) in line[..k].iter().enumerate() {
                    out[l * inner + i] = found as i32;
                }
            }
        });
        let indices = &*indices;
        for_each_outer(io.parallel, values.data::<T>(), k * inner, |outer, out| {
            for (at, y) in out.iter_mut().enumerate() {
                let l = indices[outer * k * inner + at] as usize;
                *y = x[(outer * length + l) * inner + at % inner];
            }
        });
    }
}

impl Kernel for TopKKernel {
    fn label(&self) -> Cow<'static, str> {
        if self.largest { "largest k" } else { "smallest k" }.into()
    }

    fn scratch(&self) -> usize {
        self.threads.max(1) * self.length * size_of::<u32>()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match io.input(0).desc().dtype {
            DType::F32 => self.find::<f32>(io),
            DType::I32 => self.find::<i32>(io),
            DType::U8 => self.find::<u8>(io),
            DType::I8 => self.find::<i8>(io),
            DType::F16 => return Err(OpError::unsupported("float16")),
        }
        Ok(())
    }
}

/// `Unique(x)`: the distinct elements in rising order; where each is first met; for every element of `x` its number
/// among the distinct ones; how often each occurs. Outputs 1 to 3 are optional. NaN come last and count as equal.
pub(super) struct Unique {
    outputs: usize,
}

impl Unique {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        if !(1..=4).contains(&source.outputs) {
            return Err(OpError::OutputCount { wanted: 4, got: source.outputs });
        }
        Ok(Self { outputs: source.outputs })
    }

    fn find<T: Element>(&self, x: &[T]) -> OpResult<Vec<Tensor>> {
        let mut by_value: Vec<usize> = (0..x.len()).collect();
        by_value.sort_by(|&a, &b| order(&x[a], &x[b]));
        let (mut values, mut first, mut counts) = (Vec::new(), Vec::<i32>::new(), Vec::<i32>::new());
        let mut inverse = vec![0_i32; x.len()];
        for &at in &by_value {
            let known = values.last().is_some_and(|last| order(last, &x[at]) == Ordering::Equal);
            match counts.last_mut().filter(|_| known) {
                Some(count) => *count += 1,
                None => {
                    values.push(x[at]);
                    first.push(at as i32);
                    counts.push(1);
                }
            }
            inverse[at] = values.len() as i32 - 1;
        }
        let vector = |list: Vec<i32>| Ok::<_, OpError>(Tensor::from_vec(Shape::new(&[list.len()])?, list)?);
        let mut outputs = vec![Tensor::from_vec(Shape::new(&[values.len()])?, values)?];
        for list in [first, inverse, counts].into_iter().take(self.outputs - 1) {
            outputs.push(vector(list)?);
        }
        Ok(outputs)
    }
}

impl Operator for Unique {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        if desc.dtype == DType::F16 {
            let wanted = "float32 or an integer type".to_owned();
            return Err(OpError::InputType { input: 0, wanted, got: desc.dtype }.into());
        }
        if i32::try_from(desc.shape.count()).is_err() {
            return Err(OpError::shape(0, desc.shape, "less than 2^31 elements").into());
        }
        Err(InferError::Dynamic)
    }

    fn prepare(&self, _: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Err(OpError::unsupported("a plan without contents"))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], _: &Parallel) -> OpResult<Vec<Tensor>> {
        let view = inputs.first().copied().flatten().ok_or(OpError::MissingInput { input: 0 })?;
        match view.desc().dtype {
            DType::F32 => self.find(view.data::<f32>()),
            DType::I32 => self.find(view.data::<i32>()),
            DType::U8 => self.find(view.data::<u8>()),
            DType::I8 => self.find(view.data::<i8>()),
            DType::F16 => Err(OpError::unsupported("float16")),
        }
    }
}
