//! Sums, products and functions of codes.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::schema::{BinaryOpOperation, OpType, TableKind, UnaryOpOperation, binary_op, unary_op};
use mnnq_kernels::elementwise_i8::{AddI8, MulI8, TableI8, add_i8, lookup_i8, mul_i8};

use super::super::epilogue::{Activation, QuantInfo};
use super::super::error::{OpError, OpResult};
use super::super::operator::{
    AsEpilogue, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo,
};
use super::super::registry::OpSource;
use super::super::support::kernels;
use super::super::unary::Unary;
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// The operator of a `BinaryOp` on codes; `None` if it has no integer form.
pub(crate) fn binary(source: &OpSource<'_>) -> OpResult<Option<Arc<dyn Operator>>> {
    let table = source.param(TableKind::BinaryOp)?;
    let (Some((a, out)), Some((b, _))) = (super::described(source, 0), super::described(source, 1)) else {
        return Ok(None);
    };
    let relu = match table.get(binary_op::ACTIVATION_TYPE) {
        0 => false,
        1 => true,
        _ => return Ok(None),
    };
    let ([a_codes, b_codes], codes) = ([a.codes(), b.codes()], out.codes());
    let lo = if relu { codes.lo.max(codes.zero).min(codes.hi) } else { codes.lo };
    let (zero, hi) = (codes.zero, codes.hi);
    let ratio = |scale: f64| (scale / f64::from(out.scale)) as f32;
    let add = |sign: f64| {
        Function::Add(AddI8 {
            a_scale: ratio(f64::from(a.scale)),
            a_zero: a_codes.zero,
            b_scale: ratio(sign * f64::from(b.scale)),
            b_zero: b_codes.zero,
            zero,
            lo,
            hi,
        })
    };
    let function = match table.get(binary_op::OP_TYPE) {
        BinaryOpOperation::ADD => add(1.0),
        BinaryOpOperation::SUB => add(-1.0),
        BinaryOpOperation::MUL => Function::Mul(MulI8 {
            scale: ratio(f64::from(a.scale) * f64::from(b.scale)),
            a_zero: a_codes.zero,
            b_zero: b_codes.zero,
            zero,
            lo,
            hi,
        }),
        _ => return Ok(None),
    };
    Ok(Some(Arc::new(IntBinary { function })))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Add(AddI8),
    Mul(MulI8),
}

/// `BinaryOp` ADD, SUB or MUL on codes. An operand that is one vector of channels per image is repeated over the pixels; other
/// ones that must be stretched are stretched first.
struct IntBinary {
    function: Function,
}

impl IntBinary {
    /// The common shape by NumPy's rule.
    fn shape(inputs: &Facts<'_>) -> OpResult<Shape> {
        let (a, b) = (inputs.typed(0, DType::I8)?.shape, inputs.typed(1, DType::I8)?.shape);
        let rank = a.rank().max(b.rank());
        let length = |shape: &Shape, axis: usize| {
            (axis + shape.rank()).checked_sub(rank).map_or(1, |position| shape[position])
        };
        let mut dims = Vec::with_capacity(rank);
        for axis in 0..rank {
            dims.push(match (length(&a, axis), length(&b, axis)) {
                (x, y) if x == y => x,
                (1, y) => y,
                (x, 1) => x,
                _ => return Err(OpError::shape(1, b, format!("what can be stretched with {a}"))),
            });
        }
        Ok(Shape::new(&dims)?)
    }
}

/// How the smaller operand is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stretch {
    /// Both have the shape of the output.
    None,
    /// Operand 0 or 1 is repeated: so many images, in each so many elements of it.
    Rows { operand: usize, images: usize, row: usize },
    /// Both, element by element.
    General,
}

impl Operator for IntBinary {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![TensorDesc::new(DType::I8, Self::shape(inputs)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        let mut layouts = Layouts::plain(inputs.len(), outputs.len());
        let layout = super::super::support::largest_layout(
            inputs.iter().flatten().map(|fact| fact.desc).collect::<Vec<_>>().iter(),
        );
        let rank = outputs.first().map_or(0, |desc| desc.shape.rank());
        layouts.outputs.fill(layout);
        for (wish, fact) in layouts.inputs.iter_mut().zip(inputs.iter()) {
            *wish = fact.map(|f| if f.desc.shape.rank() == rank { layout } else { Layout::Plain });
        }
        layouts
    }

    fn as_epilogue(&self) -> Option<AsEpilogue> {
        match self.function {
            Function::Add(how) => Some(AsEpilogue::AddCodes(how)),
            Function::Mul(_) => None,
        }
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let out = context.outputs[0];
        let descs = [context.inputs.desc(0)?, context.inputs.desc(1)?];
        let full = |desc: &TensorDesc| desc.shape == out.shape;
        let per_image = |desc: &TensorDesc| match (desc.shape.dims(), out.shape.dims()) {
            (&[n, c, 1, 1], &[images, channels, ..]) => {
                out.layout == Layout::ChannelsLast && n == images && c == channels
            }
            _ => false,
        };
        let stretch = match (full(&descs[0]), full(&descs[1])) {
            (true, true) => Stretch::None,
            (true, false) if per_image(&descs[1]) => {
                Stretch::Rows { operand: 1, images: out.shape[0], row: out.shape[1] }
            }
            (false, true) if per_image(&descs[0]) => {
                Stretch::Rows { operand: 0, images: out.shape[0], row: out.shape[1] }
            }
            _ => Stretch::General,
        };
        let strides = descs.map(|desc| super::super::support::broadcast_strides(&desc, &out).to_vec());
        let rank = out.shape.rank();
        let dims = out.layout.order(rank).iter().take(rank).map(|&axis| out.shape[axis]).collect();
        Ok(Box::new(IntBinaryKernel { function: self.function, stretch, dims, strides }))
    }
}

struct IntBinaryKernel {
    function: Function,
    stretch: Stretch,
    /// Of the output, in memory order.
    dims: Vec<usize>,
    strides: [Vec<usize>; 2],
}

impl IntBinaryKernel {
    fn run_rows(&self, a: &[i8], b: &[i8], out: &mut [i8], parallel: &Parallel) -> OpResult<()> {
        let isa = kernels().elementwise_f32;
        match self.function {
            Function::Add(how) => add_i8(isa, how, a, b, out, parallel)?,
            Function::Mul(how) => mul_i8(isa, how, a, b, out, parallel)?,
        }
        Ok(())
    }

    fn general(&self, a: &[i8], b: &[i8], out: &mut [i8]) {
        let mut position = vec![0; self.dims.len()];
        for code in out {
            let at = |strides: &[usize]| -> usize { position.iter().zip(strides).map(|(p, s)| p * s).sum() };
            let (a, b) = (a[at(&self.strides[0])], b[at(&self.strides[1])]);
            *code = match self.function {
                Function::Add(how) => how.reference(a, b),
                Function::Mul(how) => how.reference(a, b),
            };
            for (p, &length) in position.iter_mut().zip(&self.dims).rev() {
                *p += 1;
                if *p < length {
                    break;
                }
                *p = 0;
            }
        }
    }
}

impl Kernel for IntBinaryKernel {
    fn label(&self) -> Cow<'static, str> {
        let isa = kernels().elementwise_f32.level();
        let name = if matches!(self.function, Function::Add(_)) { "add" } else { "mul" };
        match self.stretch {
            Stretch::General => format!("{name} int8, broadcast element by element").into(),
            _ => format!("{name} int8 elementwise_i8_{isa}").into(),
        }
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (a, b) = (io.input(0).data::<i8>(), io.input(1).data::<i8>());
        let out = io.outputs[0].data::<i8>();
        match (self.stretch, self.function) {
            (Stretch::None, _) => self.run_rows(a, b, out, io.parallel)?,
            (Stretch::Rows { operand, images, row }, Function::Mul(how)) if images > 0 => {
                let (full, rows) = if operand == 1 { (a, b) } else { (b, a) };
                let how =
                    if operand == 1 { how } else { MulI8 { a_zero: how.b_zero, b_zero: how.a_zero, ..how } };
                let image = out.len() / images;
                for (index, out) in out.chunks_exact_mut(image.max(1)).enumerate() {
                    let (full, row) = (&full[index * image..][..image], &rows[index * row..][..row]);
                    mul_i8(kernels().elementwise_f32, how, full, row, out, io.parallel)?;
                }
            }
            _ => self.general(a, b, out),
        }
        Ok(())
    }
}

/// The operator of a function of one element on codes: `UnaryOp`, `ReLU`, `ReLU6` and the like. `UnaryOp`s use the
/// table of the file if there is one: entry `i` is the result of code `i - 127`, and -128 has that of -127.
pub(crate) fn table(source: &OpSource<'_>) -> OpResult<Option<Arc<dyn Operator>>> {
    let Some((input, output)) = super::described(source, 0) else { return Ok(None) };
    let function = match source.op_type {
        OpType::UnaryOp => {
            let table = source.param(TableKind::UnaryOp)?;
            let stored = table.get(unary_op::TABLE_INT8).and_then(|table| table.as_i8());
            if let Some(stored) = stored.filter(|stored| stored.len() == 255) {
                let entry = |code: i8| stored[usize::try_from(i32::from(code).max(-127) + 127).unwrap_or(0)];
                return Ok(Some(Arc::new(IntTable::new("table", TableI8::new(entry)))));
            }
            let code = table.get(unary_op::OP_TYPE);
            if code == UnaryOpOperation::ERFINV {
                return Ok(None);
            }
            Unary::new(source)?.activation()
        }
        OpType::ReLU | OpType::ReLU6 | OpType::Sigmoid | OpType::TanH | OpType::ELU | OpType::Selu => {
            Unary::plain(source)?.activation()
        }
        _ => return Ok(None),
    };
    Ok(Some(Arc::new(IntTable::new(function.describe(), of_real(&input, &output, function)))))
}

/// `code' = round(f((code - zero) * scale) / scale') + zero'`.
fn of_real(input: &QuantInfo, output: &QuantInfo, function: Activation) -> TableI8 {
    let (from, to) = (input.codes(), output.codes());
    TableI8::of_real(from.scale, from.zero, to, |x| {
        let mut value = [x];
        function.apply(&mut value);
        value[0]
    })
}

/// The operator that changes codes to those of another scale and zero point: real number, then its code.
pub(crate) fn rescale(from: &QuantInfo, to: &QuantInfo) -> Arc<dyn Operator> {
    let codes = from.codes();
    Arc::new(IntTable::new("rescale", TableI8::rescale(codes.scale, codes.zero, to.codes())))
}

/// A function of one code.
#[derive(Clone)]
struct IntTable {
    name: Cow<'static, str>,
    table: Arc<TableI8>,
}

impl IntTable {
    fn new(name: impl Into<Cow<'static, str>>, table: TableI8) -> Self {
        Self { name: name.into(), table: Arc::new(table) }
    }
}

impl Operator for IntTable {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![inputs.typed(0, DType::I8)?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn as_epilogue(&self) -> Option<AsEpilogue> {
        Some(AsEpilogue::TableCodes(self.table.clone()))
    }

    fn prepare(&self, _: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for IntTable {
    fn label(&self) -> Cow<'static, str> {
        format!("{} int8 lookup_i8_{}", self.name, kernels().elementwise_f32.level()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input = io.input(0);
        lookup_i8(kernels().elementwise_f32, &self.table, input.data(), io.outputs[0].data(), io.parallel)?;
        Ok(())
    }
}
