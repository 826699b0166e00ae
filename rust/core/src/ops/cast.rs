//! Conversions of element types: `Cast`, `CastLike`.

use std::borrow::Cow;

use half::f16;
use mnnq_format::schema::{DataType, TableKind, cast_param};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Alias, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::CHUNK;
use crate::tensor::{DType, Element, TensorDesc};

/// `Cast(dstT)` and `CastLike` (the type of input 1).
///
/// Floats become integers by truncation, saturating. In our own files a cast to DT_BOOL gives 0 or 1.
pub(super) struct Cast {
    /// `None`: the type of input 1.
    to: Option<DType>,
    boolean: bool,
}

impl Cast {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let wire = source.param(TableKind::CastParam)?.get(cast_param::DST_T);
        let to = match wire {
            // There is no arithmetic in half precision: such values stay floats.
            DataType::DT_HALF | DataType::DT_BFLOAT16 => DType::F32,
            wire => {
                DType::from_wire(wire).ok_or_else(|| OpError::attribute("dstT", wire, "a number type"))?
            }
        };
        Ok(Self { to: Some(to), boolean: wire == DataType::DT_BOOL })
    }

    pub(super) fn like(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { to: None, boolean: false })
    }
}

impl Operator for Cast {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let dtype = match self.to {
            Some(dtype) => dtype,
            None => inputs.desc(1)?.dtype,
        };
        Ok(vec![TensorDesc { dtype, ..desc }])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn alias(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        let same = inputs.get(0)?.desc.dtype == outputs.first()?.dtype;
        (same && !self.boolean).then(|| smallvec::smallvec![Alias { input: 0, offset: 0 }])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (from, to) = (context.inputs.desc(0)?.dtype, context.outputs[0].dtype);
        Ok(Box::new(CastKernel { from, to, boolean: self.boolean }))
    }
}

struct CastKernel {
    from: DType,
    to: DType,
    boolean: bool,
}

impl Kernel for CastKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("cast {} to {}", self.from, self.to).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match self.from {
            DType::F32 => self.from::<f32>(io, |x| x, |x| x as i32),
            DType::F16 => self.from::<f16>(io, f16::to_f32, |x| x.to_f32() as i32),
            DType::I32 => self.from::<i32>(io, |x| x as f32, |x| x),
            DType::U8 => self.from::<u8>(io, f32::from, i32::from),
            DType::I8 => self.from::<i8>(io, f32::from, i32::from),
        }
        Ok(())
    }
}

impl CastKernel {
    fn from<T: Element>(&self, io: &mut StepIo<'_, '_>, float: fn(T) -> f32, int: fn(T) -> i32) {
        if self.boolean {
            return convert::<T, i32>(io, |x| i32::from(float(x) != 0.0));
        }
        let integer = self.from.is_integer();
        match self.to {
            DType::F32 => convert::<T, f32>(io, float),
            DType::F16 => convert::<T, f16>(io, |x| f16::from_f32(float(x))),
            DType::I32 => convert::<T, i32>(io, int),
            // Integers wrap, floats saturate.
            DType::U8 if integer => convert::<T, u8>(io, |x| int(x) as u8),
            DType::I8 if integer => convert::<T, i8>(io, |x| int(x) as i8),
            DType::U8 => convert::<T, u8>(io, |x| float(x) as u8),
            DType::I8 => convert::<T, i8>(io, |x| float(x) as i8),
        }
    }
}

fn convert<A: Element, B: Element>(io: &mut StepIo<'_, '_>, function: impl Fn(A) -> B + Sync + Send) {
    let source = io.input(0).data::<A>();
    io.parallel.for_each_chunk(io.outputs[0].data::<B>(), CHUNK, |chunk, out| {
        for (y, &x) in out.iter_mut().zip(&source[chunk * CHUNK..]) {
            *y = function(x);
        }
    });
}
