//! Runs take no memory from the allocator but their outputs.
#![allow(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mnnq_core::runtime::{Session, SessionOptions};
use mnnq_core::tensor::{Shape, Tensor, TensorView};
use mnnq_format::model::Table;
use mnnq_format::schema::*;

mod common;

use common::Builder;

thread_local! {
    /// Allocations of this thread, and their bytes.
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: the system's allocator does the work; counting neither allocates nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| {
            let (calls, bytes) = count.get();
            count.set((calls + 1, bytes + layout.size()));
        });
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one run in the steady state, and their bytes beyond the outputs.
fn allocations(session: &Session, x: &Tensor) -> (usize, usize) {
    let feeds: Vec<(&str, TensorView<'_>)> = vec![("x", x.view())];
    for _ in 0..3 {
        session.run(&feeds, &[]).unwrap();
    }
    let before = COUNT.get();
    let outputs = session.run(&feeds, &[]).unwrap();
    let after = COUNT.get();
    let returned: usize = outputs.iter().map(|output| output.bytes().len().next_multiple_of(64)).sum();
    (after.0 - before.0, (after.1 - before.1).saturating_sub(returned))
}

fn filled(dims: &[usize]) -> Tensor {
    let shape = Shape::new(dims).unwrap();
    let values: Vec<f32> = (0..shape.count()).map(|i| (i % 7) as f32 * 0.25 - 0.75).collect();
    Tensor::from_vec(shape, values).unwrap()
}

fn convolution(b: &mut Builder, x: &str, y: &str, [outputs, inputs, kernel]: [i32; 3]) {
    let mut common = Table::new(TableKind::Convolution2DCommon);
    common.set(convolution2d_common::KERNEL_X, kernel).set(convolution2d_common::KERNEL_Y, kernel);
    common.set(convolution2d_common::PAD_X, kernel / 2).set(convolution2d_common::PAD_Y, kernel / 2);
    common.set(convolution2d_common::OUTPUT_COUNT, outputs).set(convolution2d_common::INPUT_COUNT, inputs);
    let count = usize::try_from(outputs * inputs * kernel * kernel).unwrap();
    let mut table = Table::new(TableKind::Convolution2D);
    table.set(convolution2d::COMMON, common);
    table.set(convolution2d::WEIGHT, vec![0.01_f32; count]);
    table.set(convolution2d::BIAS, vec![0.1_f32; usize::try_from(outputs).unwrap()]);
    b.op(OpType::Convolution, &[x], &[y], Some(table));
}

/// Convolutions (Winograd, pointwise), residual sums, pooling and a softmax.
fn images(blocks: usize) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[1, 16, 12, 12]);
    let mut last = "x".to_owned();
    for block in 0..blocks {
        let name = |part: &str| format!("{part}{block}");
        convolution(&mut b, &last, &name("wide"), [16, 16, 3]);
        b.unary(UnaryOpOperation::SILU, &name("wide"), &name("active"));
        convolution(&mut b, &name("active"), &name("narrow"), [16, 16, 1]);
        b.binary(BinaryOpOperation::ADD, &name("narrow"), &last, &name("sum"));
        last = name("sum");
    }
    let mut pool = Table::new(TableKind::Pool3D);
    pool.set(pool3d::IS_GLOBAL, true).set(pool3d::TYPE, PoolType::AVEPOOL);
    b.op(OpType::Pooling3D, &[&last], &["pooled"], Some(pool));
    let mut along = Table::new(TableKind::Axis);
    along.set(axis::AXIS, 1);
    b.op(OpType::Softmax, &["pooled"], &["y"], Some(along));
    b.session(&["y"], SessionOptions::default()).unwrap()
}

/// Products of tensors that are computed, so that no matrix can be packed ahead; transposed copies; reductions.
fn products(blocks: usize) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[3, 20, 20]);
    let mut last = "x".to_owned();
    for block in 0..blocks {
        let name = |part: &str| format!("{part}{block}");
        let mut order = Table::new(TableKind::Permute);
        order.set(permute::DIMS, vec![0, 2, 1]);
        b.op(OpType::Permute, &[&last], &[&name("turned")], Some(order));
        for (out, left, transposed) in [("square", &last, false), ("other", &last, true)] {
            let mut table = Table::new(TableKind::MatMul);
            table.set(mat_mul::TRANSPOSE_A, transposed).set(mat_mul::TRANSPOSE_B, transposed);
            b.op(OpType::MatMul, &[left, &name("turned")], &[&name(out)], Some(table));
        }
        b.binary(BinaryOpOperation::ADD, &name("square"), &name("other"), &name("sum"));
        b.unary(UnaryOpOperation::TANH, &name("sum"), &name("active"));
        let mut norm = Table::new(TableKind::LayerNorm);
        norm.set(layer_norm::AXIS, vec![-1]).set(layer_norm::EPSILON, 1e-5_f32);
        b.op(OpType::LayerNorm, &[&name("active")], &[&name("normal")], Some(norm));
        last = name("normal");
    }
    let mut along = Table::new(TableKind::Axis);
    along.set(axis::AXIS, -1);
    b.op(OpType::Softmax, &[&last], &["y"], Some(along));
    b.session(&["y"], SessionOptions::default()).unwrap()
}

/// A recurrent network whose weights are constants.
fn recurrent(steps: usize) -> Session {
    let mut b = Builder::default();
    let length = i32::try_from(steps).unwrap();
    b.input("x", DataType::DT_FLOAT, &[length, 2, 3]);
    b.floats("w", &[1, 20, 3], &[0.1; 60]).floats("r", &[1, 20, 5], &[0.1; 100]);
    b.floats("b", &[1, 20], &[0.1; 20]);
    let mut table = Table::new(TableKind::LSTM);
    table.set(lstm::OUTPUT_COUNT, 5);
    b.op(OpType::LSTM, &["x", "w", "r", "b"], &["y", "h", "c"], Some(table));
    b.session(&["y"], SessionOptions::default()).unwrap()
}

/// What a run may take whatever the size of the model: lists of outputs and the like.
const BOOKKEEPING: usize = 1024;

#[track_caller]
fn check(small: (&Session, &Tensor), large: (&Session, &Tensor)) {
    let (small, large) = (allocations(small.0, small.1), allocations(large.0, large.1));
    assert_eq!(small.0, large.0, "more steps take more allocations");
    assert!(large.1 <= BOOKKEEPING, "{} bytes besides the outputs", large.1);
}

#[test]
fn convolutions_take_no_memory() {
    let x = filled(&[1, 16, 12, 12]);
    check((&images(1), &x), (&images(6), &x));
}

#[test]
fn products_of_computed_matrices_take_no_memory() {
    let x = filled(&[3, 20, 20]);
    check((&products(1), &x), (&products(5), &x));
}

#[test]
fn recurrent_steps_take_no_memory() {
    let (short, long) = (filled(&[2, 2, 3]), filled(&[40, 2, 3]));
    check((&recurrent(2), &short), (&recurrent(40), &long));
}

/// Convolutions whose weights are computed.
fn computed_weights(blocks: usize) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[16, 16, 3, 3]);
    let mut last = "x".to_owned();
    for block in 0..blocks {
        let mut common = Table::new(TableKind::Convolution2DCommon);
        common.set(convolution2d_common::KERNEL_X, 3).set(convolution2d_common::KERNEL_Y, 3);
        common.set(convolution2d_common::PAD_X, 1).set(convolution2d_common::PAD_Y, 1);
        common.set(convolution2d_common::OUTPUT_COUNT, 16);
        let mut table = Table::new(TableKind::Convolution2D);
        table.set(convolution2d::COMMON, common);
        let (product, bounded) = (format!("product{block}"), format!("bounded{block}"));
        b.op(OpType::Convolution, &[&last, "x"], &[&product], Some(table));
        b.unary(UnaryOpOperation::TANH, &product, &bounded);
        last = bounded;
    }
    b.unary(UnaryOpOperation::NEG, &last, "y");
    b.session(&["y"], SessionOptions::default()).unwrap()
}

#[test]
fn convolutions_with_computed_weights_take_no_memory() {
    let x = filled(&[16, 16, 3, 3]);
    check((&computed_weights(1), &x), (&computed_weights(5), &x));
}

/// `while i < trips: x = tanh(x); i = i + 1`.
fn repeated(trips: i32) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[40]).ints("i", &[1], &[0]);
    let mut condition = Builder::default();
    condition.input("ci", DataType::DT_INT32, &[1]).ints("trips", &[1], &[trips]);
    condition.binary(BinaryOpOperation::LESS, "ci", "trips", "more");
    condition.into_subgraph(&mut b, "condition", &["ci"], &["more"]);
    let mut body = Builder::default();
    body.input("bi", DataType::DT_INT32, &[1]).input("bx", DataType::DT_FLOAT, &[40]);
    body.ints("one", &[1], &[1]).binary(BinaryOpOperation::ADD, "bi", "one", "i2");
    body.unary(UnaryOpOperation::TANH, "bx", "x2");
    body.into_subgraph(&mut b, "body", &["bi", "bx"], &["i2", "x2"]);
    let list = |names: &[&str]| {
        let mut table = Table::new(TableKind::StringVec);
        table.set(string_vec::DATA, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        table
    };
    let mut main = Table::new(TableKind::WhileParam);
    main.set(while_param::COND_GRAPH, "condition".to_owned());
    main.set(while_param::BODY_GRAPH, "body".to_owned());
    main.set(while_param::ALIASES_INPUTS, vec![list(&["ci", "bi"]), list(&["bx"])]);
    main.set(while_param::ALIASES_OUTPUTS, vec!["x2".to_owned()]);
    let updates = [["i2", "ci"], ["i2", "bi"], ["x2", "bx"]].map(|pair| list(&pair));
    main.set(while_param::ALIASES_UPDATES, updates.to_vec());
    b.op(OpType::While, &["i", "x"], &["y"], Some(main));
    b.session(&["y"], SessionOptions::default()).unwrap()
}

#[test]
fn iterations_of_loops_take_no_memory() {
    let x = filled(&[40]);
    check((&repeated(1), &x), (&repeated(30), &x));
}
