//! Any bytes as a model to be loaded and run: an error or outputs, in bounded memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mnnq_core::runtime::{Session, SessionOptions};
use mnnq_core::tensor::{DType, Shape, Tensor, TensorView};
use mnnq_format::{ReadLimits, read};

/// Models that need more are not run: the fuzzer is to find mistakes, not large tensors.
const MOST_BYTES: usize = 16 << 20;
const MOST_PRODUCTS: u64 = 1 << 26;
/// A loop may run its body so often.
const MOST_ITERATIONS: u64 = 64;
/// Length of axes that vary, and the most elements of an input.
const LENGTH: i64 = 2;
const MOST_ELEMENTS: usize = 1 << 14;

/// An input of small numbers.
fn feed(dtype: Option<DType>, dims: &[i64]) -> Option<Tensor> {
    let dims: Vec<i64> = dims.iter().map(|&d| if d < 0 { LENGTH } else { d }).collect();
    let shape = Shape::from_signed(&dims).ok().filter(|shape| shape.count() <= MOST_ELEMENTS)?;
    let count = shape.count();
    match dtype? {
        DType::I32 => Tensor::from_vec(shape, (0..count).map(|i| (i % 3) as i32).collect()).ok(),
        DType::U8 => Tensor::from_vec(shape, vec![1_u8; count]).ok(),
        DType::I8 => Tensor::from_vec(shape, vec![1_i8; count]).ok(),
        _ => Tensor::from_vec(shape, (0..count).map(|i| (i % 5) as f32 - 2.0).collect()).ok(),
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(model) = read(data.to_vec(), &ReadLimits::default()) else { return };
    let options = SessionOptions { max_loop_iterations: MOST_ITERATIONS, ..SessionOptions::default() };
    let Ok(session) = Session::new(&model, options) else { return };
    let mut feeds = Vec::new();
    for input in session.inputs() {
        let Some(tensor) = feed(input.dtype, &input.dims.unwrap_or_default()) else { return };
        feeds.push((input.name, tensor));
    }
    let shapes: Vec<(&str, Shape)> =
        feeds.iter().map(|(name, tensor)| (name.as_str(), tensor.desc().shape)).collect();
    let Ok(info) = session.plan_info(&shapes) else { return };
    if info.arena_bytes > MOST_BYTES || info.multiply_adds > MOST_PRODUCTS {
        return;
    }
    let views: Vec<(&str, TensorView<'_>)> =
        feeds.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    let Ok(first) = session.run(&views, &[]) else { return };
    let again = session.run(&views, &[]).expect("what ran once runs again");
    for (first, again) in first.iter().zip(&again) {
        assert_eq!(first.bytes(), again.bytes(), "two runs differ");
    }
});
