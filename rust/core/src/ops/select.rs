//! Choosing by a condition: `Select`, `Where`.

use std::borrow::Cow;

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferError, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{CHUNK, Nest, broadcast_strides, signed};
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Shape, Tensor, TensorDesc, TensorView};

/// `Select(condition, a, b)`: a where the condition is not 0, else b; all three stretched to a common shape.
pub(super) struct Select;

impl Select {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for Select {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (condition, a, b) = (inputs.desc(0)?, inputs.desc(1)?, inputs.desc(2)?);
        if condition.dtype == DType::F16 {
            let wanted = "float32 or an integer type".to_owned();
            return Err(OpError::InputType { input: 0, wanted, got: condition.dtype }.into());
        }
        if a.dtype != b.dtype {
            return Err(OpError::InputType { input: 2, wanted: a.dtype.to_string(), got: b.dtype }.into());
        }
        let shape = condition.shape.broadcast(&a.shape)?.broadcast(&b.shape)?;
        Ok(vec![TensorDesc::new(a.dtype, shape)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        super::binary::elementwise_layouts(inputs, outputs)
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let out = context.outputs[0];
        let rank = out.shape.rank();
        let mut strides = Vec::new();
        for input in 0..3 {
            strides.push(signed(&broadcast_strides(&context.inputs.desc(input)?, &out)[..rank]));
        }
        let dims = out.layout.physical(&out.shape);
        let nest = Nest::new(&dims[..rank], [&strides[0], &strides[1], &strides[2]]);
        Ok(Box::new(SelectKernel { condition: context.inputs.desc(0)?.dtype, nest, size: out.dtype.size() }))
    }
}

struct SelectKernel {
    condition: DType,
    nest: Nest<3>,
    size: usize,
}

impl Kernel for SelectKernel {
    fn label(&self) -> Cow<'static, str> {
        "select".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match self.size {
            4 => self.select::<u32>(io),
            2 => self.select::<u16>(io),
            _ => self.select::<u8>(io),
        }
        Ok(())
    }
}

impl SelectKernel {
    fn select<T: bytemuck::Pod + Send + Sync>(&self, io: &mut StepIo<'_, '_>) {
        let condition = io.input(0);
        match self.condition {
            DType::F32 => self.by::<T>(io, &|i| condition.data::<f32>()[i] != 0.0),
            DType::I32 => self.by::<T>(io, &|i| condition.data::<i32>()[i] != 0),
            _ => self.by::<T>(io, &|i| condition.bytes()[i] != 0),
        }
    }

    fn by<T: bytemuck::Pod + Send + Sync>(
        &self,
        io: &mut StepIo<'_, '_>,
        test: &(dyn Fn(usize) -> bool + Sync),
    ) {
        let (a, b) = (io.input(1).bytes(), io.input(2).bytes());
        let (a, b): (&[T], &[T]) = (elements(a), elements(b));
        let out: &mut [T] = bytemuck::cast_slice_mut(io.outputs[0].bytes());
        let [sc, sa, sb] = self.nest.inner();
        io.parallel.for_each_chunk(out, CHUNK, |chunk, out| {
            let first = chunk * CHUNK;
            self.nest.rows(first, out.len(), |at, [c, oa, ob], len| {
                for (i, x) in out[at - first..][..len].iter_mut().enumerate() {
                    let i = i as isize;
                    let yes = test((c + i * sc) as usize);
                    *x = if yes { a[(oa + i * sa) as usize] } else { b[(ob + i * sb) as usize] };
                }
            });
        });
    }
}

fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> &[T] {
    if bytes.is_empty() { &[] } else { bytemuck::cast_slice(bytes) }
}

/// `Where`: the indices of the elements that are not 0, `[count, rank]`, INT32, in row-major order.
pub(super) struct Where;

impl Where {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        if source.inputs != 1 {
            return Err(OpError::unsupported(format!("{} inputs", source.inputs)));
        }
        Ok(Self)
    }
}

impl Operator for Where {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        inputs.desc(0)?;
        Err(InferError::Dynamic)
    }

    fn prepare(&self, _: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Err(OpError::unsupported("a plan without contents"))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], _: &Parallel) -> OpResult<Vec<Tensor>> {
        let view = inputs.first().copied().flatten().ok_or(OpError::MissingInput { input: 0 })?;
        let shape = view.shape();
        let strides = shape.strides();
        let mut found = Vec::new();
        let mut push = |position: usize| {
            for axis in 0..shape.rank() {
                found.push((position / strides[axis] % shape[axis].max(1)) as i32);
            }
        };
        let count = shape.count();
        let mut total = 0_usize;
        let mut visit = |hit: bool, position: usize| {
            if hit {
                push(position);
                total += 1;
            }
        };
        match view.desc().dtype {
            DType::F32 => (0..count).for_each(|i| visit(view.data::<f32>()[i] != 0.0, i)),
            DType::I32 => (0..count).for_each(|i| visit(view.data::<i32>()[i] != 0, i)),
            DType::U8 | DType::I8 => (0..count).for_each(|i| visit(view.bytes()[i] != 0, i)),
            got => {
                let wanted = "float32 or an integer type".to_owned();
                return Err(OpError::InputType { input: 0, wanted, got });
            }
        }
        Ok(vec![Tensor::from_vec(Shape::new(&[total, shape.rank()])?, found)?])
    }
}
