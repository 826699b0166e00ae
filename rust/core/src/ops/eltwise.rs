//! `Eltwise` of any number of operands, of old files and of MNN's own rewrites.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::schema::{EltwiseType, TableKind, eltwise};
use mnnq_kernels::elementwise::{Binary as Function, Broadcast, binary_in_place};

use super::binary::{Binary, elementwise_layouts};
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::{OpSource, Subgraphs};
use super::support::{CHUNK, floats, kernels};
use crate::tensor::{DType, TensorDesc};

/// `Eltwise`: two operands are a binary operator, more are of one shape.
pub(super) fn create(source: &OpSource<'_>, _: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    if source.inputs <= 2 {
        return Ok(Arc::new(Binary::eltwise(source)?));
    }
    source.expect_outputs(1)?;
    let table = source.param(TableKind::Eltwise)?;
    let kind = table.get(eltwise::TYPE);
    let function = match kind {
        EltwiseType::PROD => Function::Mul,
        EltwiseType::SUM => Function::Add,
        EltwiseType::MAXIMUM => Function::Max,
        _ => return Err(OpError::attribute("type", kind, "PROD, SUM or MAXIMUM for more than two operands")),
    };
    if floats(table.get(eltwise::COEFF)).iter().any(|&c| c != 1.0) {
        return Err(OpError::unsupported("coeff other than 1"));
    }
    Ok(Arc::new(Many { function }))
}

/// `y = f(f(a, b), c) ...`
struct Many {
    function: Function,
}

impl Operator for Many {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let first = inputs.typed(0, DType::F32)?;
        for input in 1..inputs.len() {
            let shape = inputs.typed(input, DType::F32)?.shape;
            if shape != first.shape {
                return Err(OpError::shape(input, shape, format!("{}, as input 0", first.shape)).into());
            }
        }
        Ok(vec![first])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        let mut layouts = elementwise_layouts(inputs, outputs);
        let layout = layouts.outputs.first().copied();
        layouts.inputs.fill(layout);
        layouts
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        // The inputs of the epilogue follow.
        let extra = context.epilogue.inputs();
        let operands = context.inputs.len() - extra;
        Ok(Box::new(ManyKernel { function: self.function, operands, epilogue: context.epilogue.clone() }))
    }
}

struct ManyKernel {
    function: Function,
    operands: usize,
    epilogue: Epilogue,
}

impl Kernel for ManyKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("eltwise f32 {:?}{}", self.function, self.epilogue.describe()).to_lowercase().into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (inputs, epilogue) = (io.inputs, self.epilogue.bind(io.inputs));
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), CHUNK, |chunk, out| {
            let first = chunk * CHUNK;
            for (index, operand) in inputs.iter().take(self.operands).flatten().enumerate() {
                let operand = &operand.data::<f32>()[first..][..out.len()];
                if index == 0 {
                    out.copy_from_slice(operand);
                } else {
                    let isa = kernels().elementwise_f32;
                    binary_in_place(isa, self.function, out, operand, Broadcast::Same, out.len());
                }
            }
            epilogue.apply(first, out);
        });
        Ok(())
    }
}
