//! What all convolutions share: the common attributes, and where their weights are.

use mnnq_format::conv_weights;
use mnnq_format::model::Table;
use mnnq_format::schema::{PadMode, convolution2d, convolution2d_common};
use mnnq_format::{ConvWeights, FormatError, Problem};
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::geometry::{Sliding, Window};

use super::epilogue::{Activation, Epilogue, EpilogueStep};
use super::error::{OpError, OpResult};
use super::support::{floats, ints};
use crate::tensor::Shape;

/// How the padding is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// top, left, bottom, right
    Explicit([usize; 4]),
    /// None.
    Valid,
    /// So that the output has `ceil(input / stride)` pixels, the smaller half first.
    Same,
}

/// `Convolution2DCommon`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ConvCommon {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) padding: Padding,
    pub(super) group: usize,
    pub(super) out_channels: usize,
    pub(super) in_channels: usize,
    pub(super) activation: Option<Activation>,
    /// Added to the size of a transposed convolution's output.
    pub(super) out_pads: [usize; 2],
    /// The last input of a transposed convolution is its output shape.
    pub(super) has_output_shape: bool,
}

impl ConvCommon {
    /// Reads and checks the common table of a `Convolution2D`.
    pub(super) fn parse(conv: &Table) -> OpResult<Self> {
        let common = Self::windows_only(conv)?;
        if common.out_channels == 0 {
            return Err(OpError::attribute("outputCount", 0, "1 or more"));
        }
        Ok(common)
    }

    /// [`parse`](Self::parse) for operators that have windows but no output channels.
    pub(super) fn windows_only(conv: &Table) -> OpResult<Self> {
        use convolution2d_common as f;
        let table = conv
            .get(convolution2d::COMMON)
            .ok_or(OpError::Parameter { wanted: "Convolution2DCommon", got: "absent".to_owned() })?;
        let positive = |field, key| {
            let got: i32 = table.get(field);
            usize::try_from(got)
                .ok()
                .filter(|&v| (1..=1 << 24).contains(&v))
                .ok_or_else(|| OpError::attribute(key, got, "1 or more"))
        };
        let padding = match table.get(f::PAD_MODE) {
            PadMode::VALID => Padding::Valid,
            PadMode::SAME => Padding::Same,
            PadMode::CAFFE => {
                let (x, y) = (i64::from(table.get(f::PAD_X)), i64::from(table.get(f::PAD_Y)));
                let list = ints(table.get(f::PADS)).filter(|list| !list.is_empty());
                Padding::explicit(&list.unwrap_or_else(|| vec![y, x, y, x]))?
            }
            other => return Err(OpError::attribute("padMode", other, "CAFFE, VALID or SAME")),
        };
        let activation = if table.get(f::RELU6) {
            Some(Activation::Function(Unary::Clamp { lo: 0.0, hi: 6.0 }))
        } else {
            table.get(f::RELU).then_some(Activation::Function(Unary::Relu))
        };
        let out_pads = ints(table.get(f::OUT_PADS)).unwrap_or_default();
        let out_pad = |i: usize| out_pads.get(i).map_or(0, |&v| usize::try_from(v).unwrap_or(0));
        Ok(Self {
            kernel: [positive(f::KERNEL_Y, "kernelY")?, positive(f::KERNEL_X, "kernelX")?],
            stride: [positive(f::STRIDE_Y, "strideY")?, positive(f::STRIDE_X, "strideX")?],
            dilation: [positive(f::DILATE_Y, "dilateY")?, positive(f::DILATE_X, "dilateX")?],
            padding,
            group: positive(f::GROUP, "group").unwrap_or(1),
            out_channels: match table.get(f::OUTPUT_COUNT) {
                0 => 0,
                _ => positive(f::OUTPUT_COUNT, "outputCount")?,
            },
            in_channels: usize::try_from(table.get(f::INPUT_COUNT)).unwrap_or(0),
            activation,
            out_pads: [out_pad(0), out_pad(1)],
            has_output_shape: table.get(f::HAS_OUTPUT_SHAPE),
        })
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The windows over an input `[N, C, H, W]`.
    pub(super) fn sliding(&self, shape: &Shape) -> OpResult<Sliding> {
        let &[batch, channels, height, width] = shape.dims() else {
            return Err(OpError::shape(0, *shape, "[N, C, H, W]"));
        };
        let (vertical, out_height) = self.window(0, height, shape)?;
        let (horizontal, out_width) = self.window(1, width, shape)?;
        Ok(Sliding { batch, height, width, channels, out_height, out_width, vertical, horizontal })
    }

    /// The window along one spatial axis and the number of outputs.
    fn window(&self, axis: usize, length: usize, shape: &Shape) -> OpResult<(Window, usize)> {
        let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
        let (pad_begin, pad_end) = match self.padding {
            Padding::Explicit(pads) => (pads[axis], pads[axis + 2]),
            Padding::Valid => (0, 0),
            Padding::Same => {
                let outputs = length.div_ceil(stride);
                let span = (outputs.max(1) - 1) * stride + (kernel - 1) * dilation + 1;
                let total = span.saturating_sub(length);
                (total / 2, total - total / 2)
            }
        };
        let window = Window { kernel, stride, dilation, pad_begin, pad_end };
        let outputs = window.outputs(length).map_err(|error| OpError::unsupported(error.to_string()))?;
        if outputs == 0 && length > 0 {
            let wanted = format!("at least {} with padding along axis {}", window.extent(), axis + 2);
            return Err(OpError::shape(0, *shape, wanted));
        }
        Ok((window, outputs))
    }

    /// The own activation in front of what was fused.
    pub(super) fn epilogue(&self, fused: &Epilogue) -> Epilogue {
        let mut epilogue = fused.clone();
        if let Some(activation) = self.activation {
            epilogue.steps.insert(0, EpilogueStep::Activation(activation));
        }
        epilogue
    }
}

impl Padding {
    /// From `[top, left, bottom, right]`.
    pub(super) fn explicit(list: &[i64]) -> OpResult<Self> {
        let bad = || OpError::attribute("pads", format!("{list:?}"), "4 numbers, 0 or more");
        let number = |&v: &i64| usize::try_from(v).ok().filter(|&v| v <= 1 << 24);
        let pads: Option<Vec<usize>> = list.iter().map(number).collect();
        match pads.as_deref() {
            Some(&[y, x]) => Ok(Self::Explicit([y, x, y, x])),
            Some(&[t, l, b, r]) => Ok(Self::Explicit([t, l, b, r])),
            _ => Err(bad()),
        }
    }
}

/// Bias of a `Convolution2D`: as many values as output channels, zeros if absent.
pub(super) fn bias(conv: &Table, channels: usize) -> OpResult<Vec<f32>> {
    let bias = floats(conv.get(convolution2d::BIAS));
    if bias.is_empty() {
        return Ok(vec![0.0; channels]);
    }
    if bias.len() != channels {
        return Err(OpError::attribute(
            "bias",
            format!("{} values", bias.len()),
            format!("{channels} values"),
        ));
    }
    Ok(bias)
}

/// The weights in the table; `None` if they are inputs of the operator.
pub(super) fn weights(conv: &Table) -> OpResult<Option<ConvWeights>> {
    match conv_weights(conv) {
        Ok(weights) => Ok(Some(weights)),
        Err(FormatError::Invalid { problem: Problem::NoWeights, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Splits an epilogue into what the kernels apply themselves and the rest: activation, input to be added, activation
/// after that, other steps.
pub(super) fn kernel_epilogue(epilogue: &Epilogue) -> (Unary, Option<(usize, Unary)>, Epilogue) {
    let mut rest = epilogue.steps.iter().copied().peekable();
    let mut first = Unary::Identity;
    if let Some(EpilogueStep::Activation(Activation::Function(function))) = rest.peek().copied() {
        rest.next();
        first = function;
    }
    let mut residual = None;
    if let Some(EpilogueStep::Add { input }) = rest.peek().copied() {
        rest.next();
        let mut then = Unary::Identity;
        if let Some(EpilogueStep::Activation(Activation::Function(function))) = rest.peek().copied() {
            rest.next();
            then = function;
        }
        residual = Some((input, then));
    }
    (first, residual, Epilogue { steps: rest.collect(), ..Epilogue::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epilogues_split_at_what_kernels_cannot_do() {
        let act = |f| EpilogueStep::Activation(Activation::Function(f));
        let (add, mul) = (EpilogueStep::Add { input: 2 }, EpilogueStep::Mul { input: 3 });
        let split = |steps: &[EpilogueStep]| {
            kernel_epilogue(&Epilogue { steps: steps.into(), ..Epilogue::default() })
        };
        let (first, residual, rest) = split(&[act(Unary::Silu), add, act(Unary::Relu), mul]);
        assert_eq!(
            (first, residual, rest.steps[..].to_vec()),
            (Unary::Silu, Some((2, Unary::Relu)), vec![mul])
        );
        let (first, residual, rest) = split(&[mul, add]);
        assert_eq!((first, residual, rest.steps.len()), (Unary::Identity, None, 2));
        let (first, residual, rest) = split(&[add]);
        assert_eq!((first, residual, rest.is_empty()), (Unary::Identity, Some((2, Unary::Identity)), true));
    }
}
