//! The interface between operators and the planner.
//!
//! An [`Operator`] is built once per node when a file is loaded: its attributes are parsed and checked there. For
//! every set of input shapes the planner asks for the outputs ([`Operator::infer`]), the memory layouts
//! ([`Operator::layouts`]) and a [`Kernel`] specialised to them ([`Operator::prepare`]). Only kernels run.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use mnnq_kernels::elementwise_i8::{AddI8, TableI8};
use smallvec::SmallVec;

use super::dynamic::QuantizedRows;
use super::epilogue::{Activation, Epilogue};
use super::error::{OpError, OpResult};
use crate::runtime::config::SessionOptions;
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Layout, Shape, Tensor, TensorDesc, TensorView, TensorViewMut};

/// What is known of an input while planning.
#[derive(Debug, Clone, Copy)]
pub struct Fact<'a> {
    /// Type, shape and, once decided, layout.
    pub desc: TensorDesc,
    /// The contents, row-major, if they are known before running.
    pub value: Option<&'a Tensor>,
}

/// Why shapes cannot be inferred (yet).
#[derive(Debug)]
pub enum InferError {
    /// The contents of this input must be known. The plan is cut: what comes before is run, then the operator is
    /// asked again with the contents.
    NeedsValue(usize),
    /// The output shapes are known only by running. The plan is cut and [`Operator::evaluate`] called.
    Dynamic,
    /// The inputs do not fit the operator.
    Op(OpError),
}

impl<E: Into<OpError>> From<E> for InferError {
    fn from(error: E) -> Self {
        Self::Op(error.into())
    }
}

/// Short for results of shape rules.
pub type InferResult<T = Vec<TensorDesc>> = Result<T, InferError>;

/// The inputs of an operator while planning.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    inputs: &'a [Option<Fact<'a>>],
}

impl<'a> Facts<'a> {
    /// The inputs in order; `None` for absent optional ones.
    #[must_use]
    pub fn new(inputs: &'a [Option<Fact<'a>>]) -> Self {
        Self { inputs }
    }

    /// Number of inputs, absent ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Whether there are no inputs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// An optional input.
    #[must_use]
    pub fn get(&self, input: usize) -> Option<Fact<'a>> {
        self.inputs.get(input).copied().flatten()
    }

    /// The description of a mandatory input.
    ///
    /// # Errors
    /// [`OpError::MissingInput`].
    pub fn desc(&self, input: usize) -> OpResult<TensorDesc> {
        self.get(input).map(|fact| fact.desc).ok_or(OpError::MissingInput { input })
    }

    /// The shape of a mandatory input.
    ///
    /// # Errors
    /// [`OpError::MissingInput`].
    pub fn shape(&self, input: usize) -> OpResult<Shape> {
        Ok(self.desc(input)?.shape)
    }

    /// The description of a mandatory input of type `dtype`.
    ///
    /// # Errors
    /// [`OpError::MissingInput`], [`OpError::InputType`].
    pub fn typed(&self, input: usize, dtype: DType) -> OpResult<TensorDesc> {
        let desc = self.desc(input)?;
        if desc.dtype != dtype {
            return Err(OpError::InputType { input, wanted: dtype.to_string(), got: desc.dtype });
        }
        Ok(desc)
    }

    /// The contents of a mandatory input.
    ///
    /// # Errors
    /// [`InferError::NeedsValue`] if they are not known, [`OpError::MissingInput`].
    pub fn value(&self, input: usize) -> InferResult<&'a Tensor> {
        let fact = self.get(input).ok_or(OpError::MissingInput { input })?;
        fact.value.ok_or(InferError::NeedsValue(input))
    }

    /// The contents of a mandatory integer input.
    ///
    /// # Errors
    /// [`InferError::NeedsValue`] if they are not known, [`OpError::InputType`] if they are no integers.
    pub fn integers(&self, input: usize) -> InferResult<Vec<i64>> {
        let desc = self.desc(input)?;
        if !desc.dtype.is_integer() {
            let wanted = "an integer type".to_owned();
            return Err(OpError::InputType { input, wanted, got: desc.dtype }.into());
        }
        Ok(self.value(input)?.integers().unwrap_or_default())
    }

    /// The inputs in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Fact<'a>>> + use<'a> {
        self.inputs.iter().copied()
    }
}

/// Which layouts an operator wants its inputs in and gives its outputs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layouts {
    /// Per input: the layout it must be in, `None` if any will do.
    pub inputs: SmallVec<[Option<Layout>; 4]>,
    /// Per output.
    pub outputs: SmallVec<[Layout; 2]>,
}

impl Layouts {
    /// Everything row-major.
    #[must_use]
    pub fn plain(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs: smallvec::smallvec![Some(Layout::Plain); inputs],
            outputs: smallvec::smallvec![Layout::Plain; outputs],
        }
    }

    /// First input and all outputs in `layout`, other inputs row-major.
    #[must_use]
    pub fn first(layout: Layout, inputs: usize, outputs: usize) -> Self {
        let mut layouts = Self::plain(inputs, outputs);
        if let Some(first) = layouts.inputs.first_mut() {
            *first = Some(layout);
        }
        layouts.outputs.fill(layout);
        layouts
    }

    /// First input as it comes, outputs like it, other inputs row-major.
    #[must_use]
    pub fn follow(facts: &Facts<'_>, outputs: usize) -> Self {
        let layout = facts.get(0).map_or(Layout::Plain, |fact| fact.desc.layout);
        Self::first(layout, facts.len(), outputs)
    }
}

/// An output that is part of an input: nothing is computed or copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// The input whose bytes are used.
    pub input: usize,
    /// Where they start, in elements.
    pub offset: usize,
}

/// Everything a kernel can be specialised to.
#[derive(Debug, Clone, Copy)]
pub struct PrepareContext<'a> {
    /// The inputs, with their final layouts; those of the epilogue follow the operator's own.
    pub inputs: Facts<'a>,
    /// The outputs, with their layouts.
    pub outputs: &'a [TensorDesc],
    /// What to apply to output 0 before storing it; empty unless the operator
    /// [accepts](Operator::accepts_epilogue) it.
    pub epilogue: &'a Epilogue,
    /// The input, of shape `[N, C, 1, 1]`, that input 0 is to be multiplied by; only if the operator
    /// [accepts](Operator::accepts_input_scale) it.
    pub input_scale: Option<usize>,
    /// Modes and threads.
    pub options: &'a SessionOptions,
    /// The input of the step that holds what [`Operator::quantized_input`] asked for, if it is there.
    pub quantized: Option<usize>,
}

/// The tensors of one step while it runs.
pub struct StepIo<'a, 'b> {
    /// The inputs; `None` where absent, or where output 0 already holds the input's contents.
    pub inputs: &'a [Option<TensorView<'b>>],
    /// The outputs, contents undefined (but see [`in_place`](Self::in_place)).
    pub outputs: &'a mut [TensorViewMut<'b>],
    /// The input whose contents output 0 already holds, to be overwritten.
    pub in_place: Option<usize>,
    /// As many bytes as [`Kernel::scratch`] asked for, 64-byte aligned, contents undefined.
    pub scratch: &'a mut [u8],
    /// Threads to work on.
    pub parallel: &'a Parallel,
}

impl<'b> StepIo<'_, 'b> {
    /// A mandatory input that is not overwritten in place.
    ///
    /// # Panics
    /// If it is absent: the shape rule of the operator has let this pass.
    #[must_use]
    pub fn input(&self, input: usize) -> TensorView<'b> {
        match self.inputs.get(input) {
            Some(Some(view)) => *view,
            _ => panic!("input {input} of a kernel is absent"),
        }
    }

    /// An optional input.
    #[must_use]
    pub fn optional(&self, input: usize) -> Option<TensorView<'b>> {
        self.inputs.get(input).copied().flatten()
    }
}

/// One operator for one set of input shapes and layouts, ready to run.
pub trait Kernel: Send + Sync {
    /// What runs, for the profile: "conv f32 gemm", ...
    fn label(&self) -> Cow<'static, str>;

    /// Bytes of scratch memory.
    fn scratch(&self) -> usize {
        0
    }

    /// Products that are summed in one run, by convolutions, matrix products and the like; 0 for everything else.
    fn multiply_adds(&self) -> u64 {
        0
    }

    /// Computes the outputs.
    ///
    /// # Errors
    /// [`OpError`] for contents that the operator cannot take, e.g. an index out of range.
    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()>;
}

/// A node's operator: attributes parsed and checked.
///
/// `infer` and `prepare` are mandatory; the defaults of the rest fit an operator that works on row-major tensors.
pub trait Operator: Any + Send + Sync {
    /// The outputs' types and shapes. Layouts in the answer are ignored.
    ///
    /// # Errors
    /// [`InferError`].
    fn infer(&self, inputs: &Facts<'_>) -> InferResult;

    /// A kernel for these shapes and layouts.
    ///
    /// # Errors
    /// [`OpError`] if the operator cannot run on them.
    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>>;

    /// The outputs' contents if they follow from the inputs' shapes alone (`Shape`, `Rank`, `Size`).
    fn fold(&self, inputs: &Facts<'_>) -> Option<Vec<Tensor>> {
        let _ = inputs;
        None
    }

    /// Layouts for these inputs (whose descriptions carry the layouts they come in).
    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::plain(inputs.len(), outputs.len())
    }

    /// Per output, the input it is a part of, if no output needs computing. Asked with final layouts.
    fn alias(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        let _ = (inputs, outputs);
        None
    }

    /// Inputs whose memory output 0 may take over, best first. They must have the size of the output, and the
    /// kernel must look at [`StepIo::in_place`].
    fn in_place(&self) -> &'static [usize] {
        &[]
    }

    /// Whether `prepare` applies [`PrepareContext::epilogue`] to output 0.
    fn accepts_epilogue(&self) -> bool {
        false
    }

    /// How input 0 should be quantized by another step, for a kernel that then reads the codes instead of the input.
    /// Consumers of a tensor that want the same share the codes. Asked with final layouts.
    ///
    /// # Errors
    /// [`OpError`] if the operator cannot run on these inputs.
    fn quantized_input(
        &self,
        inputs: &Facts<'_>,
        options: &SessionOptions,
    ) -> OpResult<Option<QuantizedRows>> {
        let _ = (inputs, options);
        Ok(None)
    }

    /// Whether `prepare` multiplies input 0 by [`PrepareContext::input_scale`].
    fn accepts_input_scale(&self) -> bool {
        false
    }

    /// Whether it takes and gives the codes of described tensors, instead of floats.
    fn takes_codes(&self) -> bool {
        false
    }

    /// The operator as the last step of another one, if it is element-wise.
    fn as_epilogue(&self) -> Option<AsEpilogue> {
        None
    }

    /// Computes an operator whose `infer` answers [`InferError::Dynamic`].
    ///
    /// # Errors
    /// [`OpError`].
    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], parallel: &Parallel) -> OpResult<Vec<Tensor>> {
        let _ = (inputs, parallel);
        Err(OpError::unsupported("evaluation without a plan"))
    }
}

/// How an operator can be applied to the output of the one before it.
#[derive(Debug, Clone, PartialEq)]
pub enum AsEpilogue {
    /// A function of one float.
    Activation(Activation),
    /// The sum of two tensors, then perhaps an activation.
    Add(Option<Activation>),
    /// The product of two tensors, then perhaps an activation.
    Mul(Option<Activation>),
    /// The sum of two tensors of codes.
    AddCodes(AddI8),
    /// A function of one code.
    TableCodes(Arc<TableI8>),
}
