//! Sliding windows over images: the shape arithmetic that convolution and pooling share.

use std::ops::Range;

use crate::error::KernelError;

/// A window that slides along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Taps.
    pub kernel: usize,
    /// Distance between neighbouring outputs, in input elements.
    pub stride: usize,
    /// Distance between neighbouring taps, in input elements.
    pub dilation: usize,
    /// Padding before the first element.
    pub pad_begin: usize,
    /// Padding after the last element.
    pub pad_end: usize,
}

impl Window {
    /// One tap, no stride, no padding.
    pub const POINT: Self = Self { kernel: 1, stride: 1, dilation: 1, pad_begin: 0, pad_end: 0 };

    /// A window with the same padding at both ends and no dilation.
    pub const fn new(kernel: usize, stride: usize, pad: usize) -> Self {
        Self { kernel, stride, dilation: 1, pad_begin: pad, pad_end: pad }
    }

    /// Elements from the first to the last tap, both included.
    pub const fn extent(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// Outputs that fit an axis of `len`: `floor((len + pad_begin + pad_end - extent) / stride) + 1`, 0 if the window
    /// is larger than the padded axis.
    ///
    /// # Errors
    /// [`KernelError::Value`] if kernel, stride or dilation is 0 or the sum overflows.
    pub fn outputs(&self, len: usize) -> Result<usize, KernelError> {
        self.check()?;
        let what = "the padded axis is larger than the address space";
        let overflow = KernelError::Value { kernel: "window", what };
        let padded =
            len.checked_add(self.pad_begin).and_then(|sum| sum.checked_add(self.pad_end)).ok_or(overflow)?;
        Ok(if padded < self.extent() { 0 } else { (padded - self.extent()) / self.stride + 1 })
    }

    /// `Ok` if kernel, stride and dilation are at least 1 and everything is small enough to be computed with.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let Self { kernel, stride, dilation, pad_begin, pad_end } = *self;
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err(KernelError::Value { kernel: "window", what: "kernel, stride or dilation is 0" });
        }
        let limit = 1 << 31;
        if kernel.checked_mul(dilation).is_none_or(|extent| extent > limit)
            || stride.max(pad_begin).max(pad_end) > limit
        {
            return Err(KernelError::Value {
                kernel: "window",
                what: "kernel, stride or padding is above 2^31",
            });
        }
        Ok(())
    }

    /// Input position of the first tap of an output; negative in the padding.
    #[inline(always)]
    pub fn start(&self, output: usize) -> isize {
        (output * self.stride) as isize - self.pad_begin as isize
    }

    /// The taps of an output that lie inside an axis of `len`.
    #[inline(always)]
    pub fn valid_taps(&self, output: usize, len: usize) -> Range<usize> {
        let start = self.start(output);
        let first = if start >= 0 { 0 } else { start.unsigned_abs().div_ceil(self.dilation) };
        let room = len as isize - start;
        let end = if room <= 0 { 0 } else { room.unsigned_abs().div_ceil(self.dilation).min(self.kernel) };
        first.min(end)..end
    }

    /// The outputs all of whose taps lie inside an axis of `len`, of `outputs` in all.
    pub(crate) fn interior(&self, len: usize, outputs: usize) -> Range<usize> {
        let begin = self.pad_begin.div_ceil(self.stride).min(outputs);
        let end = match (len + self.pad_begin).checked_sub(self.extent()) {
            Some(room) => (room / self.stride + 1).min(outputs),
            None => 0,
        };
        begin..end.max(begin)
    }
}

/// An NHWC image batch and the windows that slide over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Images.
    pub batch: usize,
    /// Input height.
    pub height: usize,
    /// Input width.
    pub width: usize,
    /// Input channels.
    pub channels: usize,
    /// Output height. Normally `vertical.outputs(height)`; with ceiling mode (pooling) it may be larger.
    pub out_height: usize,
    /// Output width.
    pub out_width: usize,
    /// The window along the height.
    pub vertical: Window,
    /// The window along the width.
    pub horizontal: Window,
}

impl Sliding {
    /// Derives the output size (rounding down).
    ///
    /// # Errors
    /// See [`Window::outputs`].
    pub fn new(
        [batch, height, width, channels]: [usize; 4],
        vertical: Window,
        horizontal: Window,
    ) -> Result<Self, KernelError> {
        let (out_height, out_width) = (vertical.outputs(height)?, horizontal.outputs(width)?);
        Ok(Self { batch, height, width, channels, out_height, out_width, vertical, horizontal })
    }

    /// Output pixels of the batch.
    pub fn out_pixels(&self) -> usize {
        self.batch * self.out_height * self.out_width
    }

    /// Taps of a window.
    pub fn taps(&self) -> usize {
        self.vertical.kernel * self.horizontal.kernel
    }

    /// Checks the windows and that `input` holds the batch; all products fit `usize` afterwards.
    pub(crate) fn check(
        &self,
        kernel: &'static str,
        input: usize,
        out: usize,
        out_channels: usize,
    ) -> Result<(), KernelError> {
        let wanted = self.check_input(kernel, input, out_channels)?;
        KernelError::check(kernel, "length of the output", out, wanted)
    }

    /// As [`check`](Self::check) without the output's length, which is returned.
    pub(crate) fn check_input(
        &self,
        kernel: &'static str,
        input: usize,
        out_channels: usize,
    ) -> Result<usize, KernelError> {
        self.vertical.check()?;
        self.horizontal.check()?;
        let product = |sizes: [usize; 4]| {
            let overflow = KernelError::Value { kernel, what: "the tensor is larger than the address space" };
            let product =
                sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)).ok_or(overflow)?;
            Ok::<_, KernelError>(product)
        };
        let wanted = product([self.batch, self.height, self.width, self.channels])?;
        KernelError::check(kernel, "length of the input", input, wanted)?;
        product([self.batch, self.out_height, self.out_width, out_channels])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_and_interior_agree_with_counting() {
        for kernel in 1..5 {
            for stride in 1..4 {
                for dilation in 1..4 {
                    for (pad_begin, pad_end) in [(0, 0), (1, 1), (2, 0), (0, 3), (5, 5)] {
                        let w = Window { kernel, stride, dilation, pad_begin, pad_end };
                        for len in 0..12 {
                            let outputs = w.outputs(len).unwrap();
                            let interior = w.interior(len, outputs);
                            for o in 0..outputs {
                                let inside = |tap: usize| {
                                    let position = w.start(o) + (tap * dilation) as isize;
                                    position >= 0 && position < len as isize
                                };
                                let taps = w.valid_taps(o, len);
                                for tap in 0..kernel {
                                    assert_eq!(
                                        taps.contains(&tap),
                                        inside(tap),
                                        "{w:?} len {len} output {o}"
                                    );
                                }
                                let all = (0..kernel).all(inside);
                                assert_eq!(interior.contains(&o), all, "{w:?} len {len} output {o}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_zero_stride_is_an_error() {
        assert!(Window::new(3, 0, 1).outputs(5).is_err());
        assert!(Window::new(usize::MAX, 1, 1).outputs(5).is_err());
        assert_eq!(Window::new(7, 2, 3).outputs(224), Ok(112));
    }
}
