//! Runs a `.mnn` file on pseudo-random inputs and prints what ran.
//!
//! `cargo run --release -p mnnq-core --example run_model -- model.mnn [threads] [runs]`; lengths that vary are 1.
#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::error::Error;
use std::time::Instant;

use mnnq_core::runtime::{Session, SessionOptions};
use mnnq_core::tensor::{DType, Shape, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: run_model MODEL [THREADS] [RUNS]")?;
    let threads = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let runs: u32 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let options = SessionOptions { threads, ..SessionOptions::default() };
    let session = Session::open(path.as_ref(), options)?;
    let mut feeds = Vec::new();
    for input in session.inputs() {
        let dims: Vec<i64> =
            input.dims.unwrap_or_default().iter().map(|&d| if d < 0 { 1 } else { d }).collect();
        let shape = Shape::from_signed(&dims)?;
        let tensor = match input.dtype {
            Some(DType::I32) => Tensor::from_vec(shape, vec![1_i32; shape.count()])?,
            Some(DType::U8) => Tensor::from_vec(shape, vec![1_u8; shape.count()])?,
            Some(DType::I8) => Tensor::from_vec(shape, vec![1_i8; shape.count()])?,
            _ => Tensor::from_vec(shape, noise(shape.count()))?,
        };
        feeds.push((input.name, tensor));
    }
    let views: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    session.run(&views, &[])?;
    let start = Instant::now();
    for _ in 0..runs {
        session.run(&views, &[])?;
    }
    println!("{:?} per run, {threads} thread(s)", start.elapsed() / runs.max(1));
    for (info, output) in session.outputs().iter().zip(session.run(&views, &[])?) {
        println!("output {:?}: {} {}", info.name, output.desc().dtype, output.desc().shape);
    }
    for step in session.profile() {
        let time = step.time.as_secs_f64() * 1e3 / step.runs.max(1) as f64;
        if step.runs > 0 {
            println!("{time:9.4} ms  {:<24} {:<40} {}", step.op_type, step.kernel, step.node);
        }
    }
    Ok(())
}

/// Numbers in -1..1 that are the same in every run.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
