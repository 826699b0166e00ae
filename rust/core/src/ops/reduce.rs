//! Reductions over axes: `Reduction`, `ArgMax`, `ArgMin`; and global pooling, which is one.

use std::borrow::Cow;
use std::cmp::Ordering;

use mnnq_format::schema::{OpType, ReductionType, TableKind, arg_max, reduction_param};
use mnnq_kernels::reduce::{Reduce as Function, reduce_f32};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferError, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, ints, kernels, split_at_axis};
use crate::runtime::config::PrecisionMode;
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Layout, MAX_RANK, Shape, TensorDesc};

/// What the elements become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// A function of the kernel library.
    Function(Function),
    /// 1 if any is not 0.
    Any,
    /// 1 if none is 0.
    All,
}

/// `Reduction(operation, dim, keepDims)`; axes from the table or input 1; none: all.
pub(super) struct Reduce {
    code: Code,
    axes: Option<Vec<i64>>,
    keep: bool,
}

impl Reduce {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::ReductionParam)?;
        let operation = table.get(reduction_param::OPERATION);
        let code = match operation {
            ReductionType::SUM => Code::Function(Function::Sum),
            ReductionType::ASUM => Code::Function(Function::SumOfMagnitudes),
            ReductionType::SUMSQ => Code::Function(Function::SumOfSquares),
            ReductionType::MEAN => Code::Function(Function::Mean),
            ReductionType::MAXIMUM => Code::Function(Function::Max),
            ReductionType::MINIMUM => Code::Function(Function::Min),
            ReductionType::PROD => Code::Function(Function::Product),
            ReductionType::ANY => Code::Any,
            ReductionType::ALL => Code::All,
            other => return Err(OpError::attribute("operation", other, "a code of ReductionType")),
        };
        Ok(Self {
            code,
            axes: ints(table.get(reduction_param::DIM)).filter(|axes| !axes.is_empty()),
            keep: table.get(reduction_param::KEEP_DIMS),
        })
    }

    /// The mean or maximum over all spatial axes, for global pooling.
    pub(super) fn spatial(function: Function) -> GlobalPool {
        GlobalPool { function }
    }

    fn axes(&self, inputs: &Facts<'_>) -> InferResult<SmallVec<[usize; MAX_RANK]>> {
        let rank = inputs.shape(0)?.rank();
        let all = || (0..rank).collect();
        Ok(match &self.axes {
            Some(axes) => super::support::axes(axes, rank)?,
            None if inputs.get(1).is_none() => all(),
            // An empty list reduces nothing.
            None => super::support::axes(&inputs.integers(1)?, rank)?,
        })
    }
}

fn reduced(shape: &Shape, axes: &[usize], keep: bool) -> OpResult<Shape> {
    let dims: SmallVec<[usize; MAX_RANK]> = (0..shape.rank())
        .filter(|a| keep || !axes.contains(a))
        .map(|a| if axes.contains(&a) { 1 } else { shape[a] })
        .collect();
    Ok(Shape::new(&dims)?)
}

impl Operator for Reduce {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let supported = matches!(
            (self.code, desc.dtype),
            (Code::Function(_), DType::F32 | DType::I32) | (Code::Any | Code::All, DType::I32)
        );
        if !supported {
            let wanted = "float32 or int32".to_owned();
            return Err(InferError::Op(OpError::InputType { input: 0, wanted, got: desc.dtype }));
        }
        let axes = self.axes(inputs)?;
        Ok(vec![desc.with_shape(reduced(&desc.shape, &axes, self.keep)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        let plain = Layouts::plain(inputs.len(), outputs.len());
        let (Some(fact), Ok(axes)) = (inputs.get(0), self.axes(inputs)) else { return plain };
        if self.keep {
            return Layouts::follow(inputs, outputs.len());
        }
        // Without the reduced axes, what remains must come in logical order.
        let spatial_kept = (2..fact.desc.shape.rank()).any(|a| !axes.contains(&a));
        let mut layouts = plain;
        if axes.contains(&1) || !spatial_kept {
            layouts.inputs[0] = None;
        }
        layouts
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let axes = self.axes(&context.inputs).map_err(|_| OpError::unsupported("axes that are not known"))?;
        Ok(reduce_kernel(self.code, &desc, &axes, context))
    }
}

fn reduce_kernel(
    code: Code,
    desc: &TensorDesc,
    axes: &[usize],
    context: &PrepareContext<'_>,
) -> Box<dyn Kernel> {
    Box::new(ReduceKernel {
        code,
        dtype: desc.dtype,
        passes: passes(desc, axes),
        double: context.options.precision == PrecisionMode::High,
    })
}

/// The reduction as reductions of one run of axes each, in memory order: `[outer, len, inner]`.
fn passes(desc: &TensorDesc, axes: &[usize]) -> Vec<[usize; 3]> {
    let rank = desc.shape.rank();
    let order = desc.layout.order(rank);
    let mut dims = desc.layout.physical(&desc.shape);
    let reduced: Vec<bool> = order[..rank].iter().map(|a| axes.contains(a)).collect();
    let mut passes = Vec::new();
    // The last run first: it makes the most of memory order.
    let mut end = rank;
    while end > 0 {
        if !reduced[end - 1] {
            end -= 1;
            continue;
        }
        let start = (0..end).rev().take_while(|&a| reduced[a]).last().unwrap_or(end - 1);
        let len: usize = dims[start..end].iter().product();
        let (outer, inner) = (dims[..start].iter().product(), dims[end..rank].iter().product());
        passes.push([outer, len, inner]);
        dims[start..end].fill(1);
        end = start;
    }
    if passes.is_empty() {
        passes.push([desc.shape.count(), 1, 1]);
    }
    passes
}

struct ReduceKernel {
    code: Code,
    dtype: DType,
    passes: Vec<[usize; 3]>,
    double: bool,
}

impl ReduceKernel {
    /// Elements between the first and the second pass, the largest in between.
    fn between(&self) -> usize {
        if self.passes.len() < 2 { 0 } else { self.passes[0][0] * self.passes[0][2] }
    }
}

impl Kernel for ReduceKernel {
    fn label(&self) -> Cow<'static, str> {
        let sums = if self.double && self.dtype == DType::F32 { ", sums in float64" } else { "" };
        format!("reduce {:?} {}{sums}", self.code, self.dtype).to_lowercase().into()
    }

    fn scratch(&self) -> usize {
        2 * self.between() * size_of::<f32>()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        if self.dtype == DType::I32 {
            let code = self.code;
            self.run_passes::<i32>(io, |first, dims, x, out| reduce_i32(code, first, dims, x, out))
        } else if self.double {
            let Code::Function(function) = self.code else { return Ok(()) };
            self.run_passes::<f32>(io, |first, dims, x, out| reduce_f64(next(function, first), dims, x, out))
        } else {
            let Code::Function(function) = self.code else { return Ok(()) };
            self.run_passes::<f32>(io, |first, dims, x, out| {
                Ok(reduce_f32(kernels().reduce_f32, next(function, first), dims, x, out)?)
            })
        }
    }
}

/// The function of the second and later passes.
fn next(function: Function, first: bool) -> Function {
    match function {
        Function::SumOfSquares | Function::SumOfMagnitudes if !first => Function::Sum,
        other => other,
    }
}

type Pass<'a, T> = dyn Fn(bool, [usize; 3], &[T], &mut [T]) -> OpResult<()> + Sync + 'a;

impl ReduceKernel {
    fn run_passes<T: crate::tensor::Element>(
        &self,
        io: &mut StepIo<'_, '_>,
        pass: impl Fn(bool, [usize; 3], &[T], &mut [T]) -> OpResult<()> + Sync,
    ) -> OpResult<()> {
        let parallel = io.parallel;
        let x = io.input(0).data::<T>();
        let scratch: &mut [T] = super::support::typed(io.scratch);
        let (mut now, mut then) = scratch.split_at_mut(self.between());
        let last = self.passes.len() - 1;
        for (index, &dims) in self.passes.iter().enumerate() {
            let wanted = dims[0] * dims[2];
            let source = if index == 0 { x } else { &now[..dims.iter().product()] };
            if index == last {
                return run_pass(parallel, &pass, index == 0, dims, source, io.outputs[0].data::<T>());
            }
            run_pass(parallel, &pass, index == 0, dims, source, &mut then[..wanted])?;
            std::mem::swap(&mut now, &mut then);
        }
        Ok(())
    }
}

/// One pass, outer indices in parallel.
fn run_pass<T: crate::tensor::Element>(
    parallel: &Parallel,
    pass: &Pass<'_, T>,
    first: bool,
    [_, len, inner]: [usize; 3],
    x: &[T],
    out: &mut [T],
) -> OpResult<()> {
    if inner == 0 || out.is_empty() {
        return Ok(());
    }
    let rows = 16384_usize.div_ceil((len * inner).max(1)).max(1);
    let failed = std::sync::Mutex::new(None);
    parallel.for_each_chunk(out, rows * inner, |index, out| {
        let outer = out.len() / inner;
        let x = &x[index * rows * len * inner..][..outer * len * inner];
        if let Err(error) = pass(first, [outer, len, inner], x, out) {
            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

fn reduce_i32(
    code: Code,
    first: bool,
    [outer, len, inner]: [usize; 3],
    x: &[i32],
    out: &mut [i32],
) -> OpResult<()> {
    for o in 0..outer {
        for i in 0..inner {
            let values = (0..len).map(|l| i64::from(x[(o * len + l) * inner + i]));
            let y = match code {
                Code::Any => i64::from(values.into_iter().any(|v| v != 0)),
                Code::All => i64::from(values.into_iter().all(|v| v != 0)),
                Code::Function(function) => match next(function, first) {
                    Function::Sum => values.fold(0, i64::wrapping_add),
                    Function::Mean => values.fold(0, i64::wrapping_add) / (len as i64).max(1),
                    Function::SumOfSquares => values.map(|v| v * v).fold(0, i64::wrapping_add),
                    Function::SumOfMagnitudes => values.map(i64::abs).fold(0, i64::wrapping_add),
                    Function::Product => values.fold(1, |p, v| i64::from((p as i32).wrapping_mul(v as i32))),
                    Function::Max => values.max().unwrap_or(i32::MIN.into()),
                    Function::Min => values.min().unwrap_or(i32::MAX.into()),
                    other => return Err(OpError::unsupported(format!("{other:?} of integers"))),
                },
            };
            out[o * inner + i] = y as i32;
        }
    }
    Ok(())
}

fn reduce_f64(
    function: Function,
    [outer, len, inner]: [usize; 3],
    x: &[f32],
    out: &mut [f32],
) -> OpResult<()> {
    if matches!(function, Function::Max | Function::Min) {
        return Ok(reduce_f32(kernels().reduce_f32, function, [outer, len, inner], x, out)?);
    }
    for o in 0..outer {
        for i in 0..inner {
            let values = (0..len).map(|l| f64::from(x[(o * len + l) * inner + i]));
            let y = match function {
                Function::Sum => values.sum::<f64>(),
                Function::Mean => values.sum::<f64>() / len as f64,
                Function::SumOfSquares => values.map(|v| v * v).sum(),
                Function::SumOfMagnitudes => values.map(f64::abs).sum(),
                Function::Product => values.product(),
                other => return Err(OpError::unsupported(format!("{other:?} in double precision"))),
            };
            out[o * inner + i] = y as f32;
        }
    }
    Ok(())
}

/// Mean or maximum over all axes from 2 on, kept with length 1.
pub(super) struct GlobalPool {
    function: Function,
}

impl Operator for GlobalPool {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        if desc.shape.rank() < 3 {
            return Err(OpError::shape(0, desc.shape, "[N, C, spatial...]").into());
        }
        let axes: SmallVec<[usize; MAX_RANK]> = (2..desc.shape.rank()).collect();
        Ok(vec![desc.with_shape(reduced(&desc.shape, &axes, true)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let axes: SmallVec<[usize; MAX_RANK]> = (2..desc.shape.rank()).collect();
        Ok(reduce_kernel(Code::Function(self.function), &desc, &axes, context))
    }
}

/// `ArgMax`, `ArgMin`: position of the first extreme element along an axis, INT32, without the axis.
pub(super) struct ArgReduce {
    axis: i64,
    max: bool,
}

impl ArgReduce {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::ArgMax)?;
        let top = table.get(arg_max::TOP_K);
        if top > 1 {
            return Err(OpError::attribute("topK", top, "1"));
        }
        if table.get(arg_max::OUT_MAX_VAL) != 0 {
            return Err(OpError::attribute("outMaxVal", table.get(arg_max::OUT_MAX_VAL), "0"));
        }
        Ok(Self { axis: table.get(arg_max::AXIS).into(), max: source.op_type == OpType::ArgMax })
    }
}

impl Operator for ArgReduce {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        if !matches!(desc.dtype, DType::F32 | DType::I32) {
            let wanted = "float32 or int32".to_owned();
            return Err(OpError::InputType { input: 0, wanted, got: desc.dtype }.into());
        }
        let position = axis(self.axis, desc.shape.rank())?;
        if desc.shape[position] == 0 {
            return Err(OpError::shape(0, desc.shape, format!("elements along axis {position}")).into());
        }
        Ok(vec![TensorDesc::new(DType::I32, reduced(&desc.shape, &[position], false)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        debug_assert_eq!(desc.layout, Layout::Plain);
        let (_, len, inner) = split_at_axis(&desc.shape, axis(self.axis, desc.shape.rank())?);
        Ok(Box::new(ArgKernel { len, inner, max: self.max, dtype: desc.dtype }))
    }
}

struct ArgKernel {
    len: usize,
    inner: usize,
    max: bool,
    dtype: DType,
}

impl Kernel for ArgKernel {
    fn label(&self) -> Cow<'static, str> {
        if self.max { "argmax" } else { "argmin" }.into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match self.dtype {
            DType::F32 => self.find(io.input(0).data::<f32>(), io),
            _ => self.find(io.input(0).data::<i32>(), io),
        }
        Ok(())
    }
}

impl ArgKernel {
    fn find<T: crate::tensor::Element>(&self, x: &[T], io: &mut StepIo<'_, '_>) {
        let wanted = if self.max { Ordering::Greater } else { Ordering::Less };
        io.parallel.for_each_chunk(io.outputs[0].data::<i32>(), 64, |chunk, out| {
            for (at, y) in out.iter_mut().enumerate() {
                let at = chunk * 64 + at;
                let start = at / self.inner * self.len * self.inner + at % self.inner;
                let mut best = 0;
                for l in 1..self.len {
                    let order = x[start + l * self.inner].partial_cmp(&x[start + best * self.inner]);
                    if order == Some(wanted) {
                        best = l;
                    }
                }
                *y = best as i32;
            }
        });
    }
}
