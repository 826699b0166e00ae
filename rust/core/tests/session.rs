//! Models built in code, run by the session: what plans must get right whatever the operators are.

use mnnq_core::runtime::{RuntimeError, Session, SessionOptions};
use mnnq_core::tensor::{DType, Shape, Tensor, TensorView};
use mnnq_format::model::Table;
use mnnq_format::schema::*;

mod common;

use common::Builder;

fn shape(dims: &[usize]) -> Shape {
    Shape::new(dims).unwrap()
}

fn floats(dims: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(shape(dims), values.to_vec()).unwrap()
}

fn run(session: &Session, feeds: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let feeds: Vec<(&str, TensorView<'_>)> =
        feeds.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
    session.run(&feeds, &[]).unwrap()
}

/// `y = reshape(x, [shape(x)[0] * 2, -1])`, computed by integer operators.
fn shape_chain(options: SessionOptions) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[-1, -1]);
    b.op(OpType::Shape, &["x"], &["s"], None);
    b.ints("zero", &[1], &[0]).ints("one", &[1], &[1]).ints("two", &[1], &[2]).ints("rest", &[1], &[-1]);
    b.op(OpType::SliceTf, &["s", "zero", "one"], &["n"], None);
    b.binary(BinaryOpOperation::MUL, "n", "two", "m");
    let mut join = Table::new(TableKind::Axis);
    join.set(axis::AXIS, 0);
    b.op(OpType::Concat, &["m", "rest"], &["dims"], Some(join));
    b.op(OpType::Reshape, &["x", "dims"], &["y"], Some(Table::new(TableKind::Reshape)));
    b.session(&["y"], options).unwrap()
}

#[test]
fn shape_arithmetic_costs_no_step() {
    let session = shape_chain(SessionOptions::default());
    for (n, m) in [(1, 4), (3, 6)] {
        let x = Tensor::from_vec(shape(&[n, m]), (0..n * m).map(|i| i as f32).collect()).unwrap();
        let y = run(&session, &[("x", &x)]);
        assert_eq!(y[0].desc().shape, shape(&[2 * n, m / 2]));
        assert_eq!(y[0].data::<f32>(), x.data::<f32>());
    }
    assert!(session.profile().is_empty());
}

#[test]
fn varying_lengths_of_outputs_are_found() {
    let outputs = shape_chain(SessionOptions::default()).outputs();
    assert_eq!((outputs[0].dtype, outputs[0].dims.as_deref()), (Some(DType::F32), Some(&[-1, -1][..])));
}

#[test]
fn a_shape_may_come_from_an_input() {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[-1]).input("dims", DataType::DT_INT32, &[2]);
    b.unary(UnaryOpOperation::NEG, "x", "z");
    b.op(OpType::Reshape, &["z", "dims"], &["r"], Some(Table::new(TableKind::Reshape)));
    b.unary(UnaryOpOperation::SQUARE, "r", "y");
    let session =
        b.session(&["y", "z"], SessionOptions { plan_cache: 1, ..SessionOptions::default() }).unwrap();
    let x = floats(&[6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for dims in [[2, 3], [3, 2], [2, -1], [2, 3]] {
        let y = run(&session, &[("x", &x), ("dims", &Tensor::vector(&dims))]);
        assert_eq!(y[0].desc().shape[0], dims[0] as usize);
        assert_eq!(y[0].data::<f32>(), [1.0, 4.0, 9.0, 16.0, 25.0, 36.0]);
        assert_eq!(y[1].data::<f32>()[1], -2.0);
    }
}

#[test]
fn output_shapes_may_depend_on_contents() {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[-1]);
    b.op(OpType::Where, &["x"], &["where"], None);
    b.op(OpType::Squeeze, &["where", "one"], &["i"], None);
    b.op(OpType::GatherV2, &["x", "i"], &["y"], None);
    let mut builder = Builder::default();
    builder.ints("one", &[1], &[1]);
    let constant = builder.ops.remove(0);
    let mut constant = constant;
    constant.set(op::OUTPUT_INDEXES, vec![b.id("one")]);
    b.ops.insert(1, constant);
    let session = b.session(&["y"], SessionOptions::default()).unwrap();
    for (x, want) in [(&[0.0, 3.0, 0.0, -2.0], &[3.0, -2.0][..]), (&[0.0; 4], &[]), (&[1.0; 4], &[1.0; 4])] {
        let y = run(&session, &[("x", &floats(&[4], x))]);
        assert_eq!(y[0].data::<f32>(), want);
    }
}

/// `for i in 0..n { c = c * x + i; stack(c) }` on vectors of two.
fn horner(trips_are_an_input: bool, options: SessionOptions) -> Session {
    let mut body = Builder::default();
    body.input("i", DataType::DT_INT32, &[]).input("go", DataType::DT_INT32, &[]);
    body.input("c", DataType::DT_FLOAT, &[2]).input("x", DataType::DT_FLOAT, &[2]);
    body.binary(BinaryOpOperation::MUL, "c", "x", "p");
    let mut cast = Table::new(TableKind::CastParam);
    cast.set(cast_param::DST_T, DataType::DT_FLOAT);
    body.op(OpType::Cast, &["i"], &["f"], Some(cast));
    body.binary(BinaryOpOperation::ADD, "p", "f", "next");
    body.op(OpType::Identity, &["go"], &["go_on"], None);
    body.op(OpType::Identity, &["x"], &["same"], None);
    body.unary(UnaryOpOperation::ABS, "next", "scan");
    let mut b = Builder::default();
    body.into_subgraph(&mut b, "body", &["i", "go", "c", "x"], &["go_on", "next", "same", "scan"]);
    b.input("x", DataType::DT_FLOAT, &[2]);
    if trips_are_an_input {
        b.input("n", DataType::DT_INT32, &[]);
    } else {
        b.ints("n", &[], &[3]);
    }
    b.ints("go", &[], &[1]).floats("start", &[2], &[1.0, 1.0]);
    let mut main = Table::new(TableKind::WhileParam);
    main.set(while_param::BODY_GRAPH, "body".to_owned());
    b.op(OpType::While, &["n", "go", "start", "x"], &["c", "unused", "stack"], Some(main));
    b.session(&["c", "stack"], options).unwrap()
}

#[test]
fn loops_carry_and_stack() {
    let x = floats(&[2], &[2.0, -1.0]);
    // c: 1 -> 2 -> 5 -> 12 for x = 2; 1 -> -1 -> 2 -> 0 for x = -1.
    let check = |outputs: &[Tensor]| {
        assert_eq!(outputs[0].data::<f32>(), [12.0, 0.0]);
        assert_eq!(outputs[1].desc().shape, shape(&[3, 2]));
        assert_eq!(outputs[1].data::<f32>(), [2.0, 1.0, 5.0, 2.0, 12.0, 0.0]);
    };
    let fixed = horner(false, SessionOptions::default());
    check(&run(&fixed, &[("x", &x)]));
    check(&run(&fixed, &[("x", &x)]));
    let open = horner(true, SessionOptions::default());
    check(&run(&open, &[("x", &x), ("n", &Tensor::scalar(3))]));
    let none = run(&open, &[("x", &x), ("n", &Tensor::scalar(0))]);
    assert_eq!(none[0].data::<f32>(), [1.0, 1.0]);
}

#[test]
fn memory_is_not_reused_too_early() {
    // Every intermediate is used again at the end, in reverse.
    let mut b = Builder::default();
    b.input("t0", DataType::DT_FLOAT, &[-1]);
    for i in 0..8 {
        b.unary(UnaryOpOperation::SIN, &format!("t{i}"), &format!("t{}", i + 1));
    }
    let mut sum = "t8".to_owned();
    for i in (0..8).rev() {
        b.binary(BinaryOpOperation::SUB, &sum, &format!("t{i}"), &format!("s{i}"));
        sum = format!("s{i}");
    }
    for fuse in [false, true] {
        let options = SessionOptions { fuse, ..SessionOptions::default() };
        let builder = Builder { names: b.names.clone(), ops: b.ops.clone(), ..Builder::default() };
        let session = builder.session(&["s0"], options).unwrap();
        let x = 0.7_f32;
        let y = run(&session, &[("t0", &floats(&[1], &[x]))]);
        let mut t = vec![x];
        for i in 0..8 {
            t.push(t[i].sin());
        }
        let want = t[..8].iter().rev().fold(t[8], |sum, v| sum - v);
        assert!((y[0].data::<f32>()[0] - want).abs() < 1e-5);
    }
}

#[test]
fn errors_name_everything_that_is_unsupported() {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[4]);
    b.op(OpType::Svd, &["x"], &["a"], None);
    b.op(OpType::Histogram, &["a"], &["y"], None);
    let Err(RuntimeError::Unsupported { problems }) = b.session(&["y"], SessionOptions::default()) else {
        panic!("a model with unknown operators was accepted");
    };
    assert_eq!(problems.len(), 2);
    assert!(problems[0].contains("Svd \"a\"") && problems[1].contains("Histogram \"y\""));
}

#[test]
fn graphs_that_are_none_are_errors() {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[4]);
    b.unary(UnaryOpOperation::ABS, "later", "y").unary(UnaryOpOperation::ABS, "x", "later");
    let session = b.session(&["y"], SessionOptions::default()).unwrap();
    let x = floats(&[4], &[0.0; 4]);
    let error = session.run(&[("x", x.view())], &[]).unwrap_err();
    assert!(matches!(error, RuntimeError::Graph { .. }), "{error}");

    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[4]);
    b.unary(UnaryOpOperation::ABS, "x", "y").unary(UnaryOpOperation::ABS, "x", "y");
    let error = b.session(&["y"], SessionOptions::default()).err().unwrap();
    assert!(error.to_string().contains("produced twice"), "{error}");
}

/// `total = |x|`, then a loop of one command that adds x to it in place, then `y = -total`.
fn in_place(fixed: bool) -> Result<Session, RuntimeError> {
    let list = |numbers: &[i32]| numbers.to_vec();
    let mut view = Table::new(TableKind::View);
    view.set(view::STRIDE, list(&[4, 4, 1]));
    let mut add = Table::new(TableKind::BinaryOp);
    add.set(binary_op::OP_TYPE, BinaryOpOperation::ADD);
    let mut inner = Table::new(TableKind::Op);
    inner.set(op::TYPE, OpType::BinaryOp).set(op::MAIN, add);
    let mut command = Table::new(TableKind::RegionCommand);
    command.set(region_command::OP, inner).set(region_command::INDEXES, list(&[1, 1, 0]));
    command.set(region_command::STEPS, list(&[0; 3])).set(region_command::ITER_INDEXES, list(&[-1; 3]));
    command.set(region_command::SIZE, list(&[1, 1, 4])).set(region_command::VIEW, vec![view; 3]);
    let mut blob = Table::new(TableKind::Blob);
    blob.set(blob::DIMS, list(&[4]));
    let mut described = Table::new(TableKind::TensorDescribe);
    described.set(tensor_describe::BLOB, blob);
    let mut all = Table::new(TableKind::LoopParam);
    all.set(loop_param::TENSOR_NUMBER, 2).set(loop_param::LOOP_NUMBER, 3);
    all.set(loop_param::INPUT_INDEXES, list(&[0])).set(loop_param::OUTPUT_INDEXES, list(&[1]));
    all.set(loop_param::COMMANDS, vec![command]).set(loop_param::EXTRA_TENSOR_INFOS, vec![described]);
    let mut b = Builder { fixed, ..Builder::default() };
    b.input("x", DataType::DT_FLOAT, &[4]);
    b.unary(UnaryOpOperation::ABS, "x", "total");
    b.op(OpType::While, &["x"], &["total"], Some(all));
    b.unary(UnaryOpOperation::NEG, "total", "y");
    b.session(&["y", "total"], SessionOptions::default())
}

#[test]
fn loops_change_tensors_in_place_in_files_with_fixed_shapes() {
    let x = floats(&[4], &[1.0, -2.0, 0.5, -4.0]);
    let outputs = run(&in_place(true).unwrap(), &[("x", &x)]);
    assert_eq!(outputs[1].data::<f32>(), [4.0, -4.0, 2.0, -8.0]);
    assert_eq!(outputs[0].data::<f32>(), [-4.0, 4.0, -2.0, 8.0]);
    let error = in_place(false).err().unwrap().to_string();
    assert!(error.contains("produced twice"), "{error}");
}

#[test]
fn parameter_tables_of_another_kind_are_errors() {
    let other = || Some(Table::new(TableKind::Relu));
    for kind in [OpType::Input, OpType::Const] {
        let mut b = Builder::default();
        b.op(kind, &[], &["x"], other());
        b.unary(UnaryOpOperation::ABS, "x", "y");
        let error = b.session(&["y"], SessionOptions::default()).err().unwrap().to_string();
        assert!(error.contains("parameter table is Relu"), "{error}");
    }
}

#[test]
fn wrong_feeds_are_named() {
    let session = shape_chain(SessionOptions::default());
    let x = floats(&[2], &[0.0; 2]);
    let text = |feeds: &[(&str, TensorView<'_>)]| session.run(feeds, &[]).unwrap_err().to_string();
    assert!(text(&[]).contains("\"x\" is missing"));
    assert!(text(&[("x", x.view())]).contains("\"x\" has shape [2]"));
    assert!(text(&[("x", Tensor::vector(&[1, 2]).view())]).contains("\"x\" is int32"));
    let square = floats(&[2, 2], &[0.0; 4]);
    assert!(text(&[("x", square.view()), ("z", x.view())]).contains("\"z\" is no input"));
    let error = session.run(&[("x", square.view())], &["z"]).unwrap_err();
    assert!(matches!(error, RuntimeError::UnknownOutput { .. }));
}

#[test]
fn options_are_checked() {
    for options in [
        SessionOptions { threads: 0, ..SessionOptions::default() },
        SessionOptions { plan_cache: 0, ..SessionOptions::default() },
        SessionOptions { max_loop_iterations: 0, ..SessionOptions::default() },
    ] {
        let mut b = Builder::default();
        b.input("x", DataType::DT_FLOAT, &[1]);
        assert!(matches!(b.session(&["x"], options), Err(RuntimeError::Option { .. })));
    }
}

#[test]
fn an_input_may_be_an_output() {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[-1]);
    b.unary(UnaryOpOperation::NEG, "x", "y");
    let session = b.session(&["x", "y", "x"], SessionOptions::default()).unwrap();
    let outputs = run(&session, &[("x", &floats(&[2], &[1.0, -2.0]))]);
    assert_eq!(outputs[0].data::<f32>(), [1.0, -2.0]);
    assert_eq!(outputs[1].data::<f32>(), [-1.0, 2.0]);
    assert_eq!(outputs[2], outputs[0]);
}

/// A list of names, as aliases are kept.
fn list(names: &[&str]) -> Table {
    let mut table = Table::new(TableKind::StringVec);
    table.set(string_vec::DATA, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    table
}

/// `while i < limit: x = 2 x; i = i + 1`, gives x and i.
fn doubling(limit: i32, options: SessionOptions) -> Session {
    let mut b = Builder::default();
    b.input("i", DataType::DT_INT32, &[1]).input("x", DataType::DT_FLOAT, &[-1]);
    let mut condition = Builder::default();
    condition.input("ci", DataType::DT_INT32, &[1]).ints("limit", &[1], &[limit]);
    condition.binary(BinaryOpOperation::LESS, "ci", "limit", "more");
    condition.into_subgraph(&mut b, "condition", &["ci"], &["more"]);
    let mut body = Builder::default();
    body.input("bi", DataType::DT_INT32, &[1]).input("bx", DataType::DT_FLOAT, &[-1]);
    body.ints("one", &[1], &[1]).binary(BinaryOpOperation::ADD, "bi", "one", "i2");
    body.binary(BinaryOpOperation::ADD, "bx", "bx", "x2");
    body.into_subgraph(&mut b, "body", &["bi", "bx"], &["i2", "x2"]);
    let mut main = Table::new(TableKind::WhileParam);
    main.set(while_param::COND_GRAPH, "condition".to_owned());
    main.set(while_param::BODY_GRAPH, "body".to_owned());
    main.set(while_param::ALIASES_INPUTS, vec![list(&["ci", "bi"]), list(&["bx"])]);
    main.set(while_param::ALIASES_OUTPUTS, vec!["x2".to_owned(), "bi".to_owned()]);
    let updates = [["i2", "ci"], ["i2", "bi"], ["x2", "bx"]].map(|pair| list(&pair));
    main.set(while_param::ALIASES_UPDATES, updates.to_vec());
    b.op(OpType::While, &["i", "x"], &["last", "count"], Some(main));
    b.unary(UnaryOpOperation::NEG, "last", "y");
    b.session(&["y", "count"], options).unwrap()
}

#[test]
fn loops_may_have_a_graph_for_their_condition() {
    for (limit, start, trips) in [(5, 0, 5), (5, 3, 2), (40, 20, 20)] {
        let session = doubling(limit, SessionOptions::default());
        for length in [1, 3] {
            let values: Vec<f32> = (0..length).map(|n| n as f32 + 0.5).collect();
            let x = floats(&[length], &values);
            let outputs = run(&session, &[("i", &Tensor::vector(&[start])), ("x", &x)]);
            let want: Vec<f32> = values.iter().map(|v| -v * 2.0_f32.powi(trips)).collect();
            assert_eq!(outputs[0].data::<f32>(), want);
            assert_eq!(outputs[1].data::<i32>(), [limit]);
        }
    }
}

#[test]
fn loops_end_when_the_options_say_so() {
    let options = |most| SessionOptions { max_loop_iterations: most, ..SessionOptions::default() };
    let refused = |session: &Session, feeds: &[(&str, &Tensor)]| {
        let feeds: Vec<(&str, TensorView<'_>)> =
            feeds.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
        let error = session.run(&feeds, &[]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("While \"") && error.contains("max_loop_iterations"), "{error}");
        assert!(error.contains("more than 20 iterations"), "{error}");
    };
    // A condition graph that holds for ever.
    let endless = doubling(i32::MAX, options(20));
    refused(&endless, &[("i", &Tensor::vector(&[0])), ("x", &floats(&[1], &[0.0]))]);
    let session = doubling(20, options(20));
    for _ in 0..3 {
        // Every run has its own budget.
        let outputs = run(&session, &[("i", &Tensor::vector(&[0])), ("x", &floats(&[1], &[0.0]))]);
        assert_eq!(outputs[1].data::<i32>(), [20]);
    }
    refused(&session, &[("i", &Tensor::vector(&[-1])), ("x", &floats(&[1], &[0.0]))]);
    // A trip count.
    let session = horner(true, options(20));
    let x = floats(&[2], &[1.0, 0.0]);
    assert_eq!(run(&session, &[("n", &Tensor::scalar(20)), ("x", &x)])[1].desc().shape, shape(&[20, 2]));
    refused(&session, &[("n", &Tensor::scalar(21)), ("x", &x)]);
    refused(&session, &[("n", &Tensor::scalar(i32::MAX)), ("x", &floats(&[2], &[1.0, 0.0]))]);
    // A loop of constants is not computed when loading if that takes long, but by the run.
    for (trips, steps) in [(3, 0), (2000, 1)] {
        let mut b = Builder::default();
        let mut body = Builder::default();
        body.input("i", DataType::DT_INT32, &[]).input("go", DataType::DT_INT32, &[]);
        body.input("c", DataType::DT_FLOAT, &[1]).op(OpType::Identity, &["go"], &["go_on"], None);
        body.ints("one", &[], &[1]).binary(BinaryOpOperation::ADD, "c", "c", "twice");
        body.unary(UnaryOpOperation::TANH, "twice", "next");
        body.into_subgraph(&mut b, "body", &["i", "go", "c"], &["go_on", "next"]);
        b.input("x", DataType::DT_FLOAT, &[1]).ints("n", &[], &[trips]).ints("go", &[], &[1]);
        b.floats("c", &[1], &[0.5]);
        let mut main = Table::new(TableKind::WhileParam);
        main.set(while_param::BODY_GRAPH, "body".to_owned());
        b.op(OpType::While, &["n", "go", "c"], &["last"], Some(main));
        b.binary(BinaryOpOperation::ADD, "last", "x", "y");
        let session = b.session(&["y"], options(2000)).unwrap();
        assert!(run(&session, &[("x", &floats(&[1], &[0.0]))])[0].data::<f32>()[0] > 0.9);
        let loops = session.profile().iter().filter(|step| step.op_type == "While").count();
        assert_eq!(loops, steps, "{trips} iterations");
    }
}

#[test]
fn inner_loops_count_in_every_iteration() {
    // Three iterations of a loop of seven, and themselves.
    let nested = |most| {
        let mut inner = Builder::default();
        inner.input("i", DataType::DT_INT32, &[]).input("go", DataType::DT_INT32, &[]);
        inner.input("c", DataType::DT_FLOAT, &[1]);
        inner.op(OpType::Identity, &["go"], &["go_on"], None);
        inner.binary(BinaryOpOperation::ADD, "c", "c", "next");
        let mut outer = Builder::default();
        let mut b = Builder::default();
        inner.into_subgraph(&mut b, "inner", &["i", "go", "c"], &["go_on", "next"]);
        outer.input("i", DataType::DT_INT32, &[]).input("go", DataType::DT_INT32, &[]);
        outer.input("c", DataType::DT_FLOAT, &[1]);
        outer.op(OpType::Identity, &["go"], &["go_on"], None).ints("seven", &[], &[7]);
        let mut main = Table::new(TableKind::WhileParam);
        main.set(while_param::BODY_GRAPH, "inner".to_owned());
        outer.op(OpType::While, &["seven", "go", "c"], &["next"], Some(main));
        outer.into_subgraph(&mut b, "outer", &["i", "go", "c"], &["go_on", "next"]);
        b.input("n", DataType::DT_INT32, &[]).input("c", DataType::DT_FLOAT, &[1]).ints("go", &[], &[1]);
        let mut main = Table::new(TableKind::WhileParam);
        main.set(while_param::BODY_GRAPH, "outer".to_owned());
        b.op(OpType::While, &["n", "go", "c"], &["y"], Some(main));
        let options = SessionOptions { max_loop_iterations: most, ..SessionOptions::default() };
        b.session(&["y"], options).unwrap()
    };
    let (three, one) = (Tensor::scalar(3), floats(&[1], &[1.0]));
    let feeds = [("n", three.view()), ("c", one.view())];
    let outputs = nested(24).run(&feeds, &[]).unwrap();
    assert_eq!(outputs[0].data::<f32>(), [2.0_f32.powi(21)]);
    let error = nested(23).run(&feeds, &[]).unwrap_err().to_string();
    assert!(error.contains("subgraph") && error.contains("more than 23 iterations"), "{error}");
}

#[test]
fn branches_are_chosen_by_contents_and_may_differ_in_shape() {
    let mut b = Builder::default();
    b.input("which", DataType::DT_INT32, &[1]).input("x", DataType::DT_FLOAT, &[-1]);
    let mut then = Builder::default();
    then.input("tx", DataType::DT_FLOAT, &[-1]).unary(UnaryOpOperation::NEG, "tx", "ty");
    then.into_subgraph(&mut b, "then", &["tx"], &["ty"]);
    let mut other = Builder::default();
    other.input("ex", DataType::DT_FLOAT, &[-1]);
    let mut along = Table::new(TableKind::Axis);
    along.set(axis::AXIS, 0);
    other.op(OpType::Concat, &["ex", "ex"], &["ey"], Some(along));
    other.into_subgraph(&mut b, "else", &["ex"], &["ey"]);
    let mut main = Table::new(TableKind::IfParam);
    main.set(if_param::THEN_GRAPH, "then".to_owned()).set(if_param::ELSE_GRAPH, "else".to_owned());
    main.set(if_param::ALIASES_INPUTS, vec![list(&[]), list(&["tx", "ex"])]);
    main.set(if_param::ALIASES_OUTPUTS, vec![list(&["ty", "ey"])]);
    b.op(OpType::If, &["which", "x"], &["chosen"], Some(main));
    b.unary(UnaryOpOperation::SQUARE, "chosen", "y");
    let session = b.session(&["chosen", "y"], SessionOptions::default()).unwrap();
    let x = floats(&[2], &[1.0, -3.0]);
    for (which, want) in [(1, vec![-1.0, 3.0]), (0, vec![1.0, -3.0, 1.0, -3.0]), (7, vec![-1.0, 3.0])] {
        let outputs = run(&session, &[("which", &Tensor::vector(&[which])), ("x", &x)]);
        assert_eq!(outputs[0].data::<f32>(), want);
        assert_eq!(outputs[1].data::<f32>(), want.iter().map(|v| v * v).collect::<Vec<_>>());
    }
}

/// A split of 12 channels, a convolution (3 x 3) for each third, their concatenation and a ReLU.
fn spelt_out_groups(options: SessionOptions) -> Session {
    let mut b = Builder::default();
    b.input("x", DataType::DT_FLOAT, &[1, 12, 7, 9]);
    let mut cut = Table::new(TableKind::Slice);
    cut.set(slice::AXIS, 1).set(slice::SLICE_POINTS, vec![4, 4, 4]).set(slice::SOURCE_TYPE, NetSource::ONNX);
    b.op(OpType::Slice, &["x"], &["x0", "x1", "x2"], Some(cut));
    for group in 0..3 {
        let mut common = Table::new(TableKind::Convolution2DCommon);
        common.set(convolution2d_common::KERNEL_X, 3).set(convolution2d_common::KERNEL_Y, 3);
        common.set(convolution2d_common::PAD_X, 1).set(convolution2d_common::PAD_Y, 1);
        common.set(convolution2d_common::OUTPUT_COUNT, 5).set(convolution2d_common::INPUT_COUNT, 4);
        let mut table = Table::new(TableKind::Convolution2D);
        table.set(convolution2d::COMMON, common);
        let weights: Vec<f32> = (0..180).map(|i| ((i * 7 + group * 5) % 11) as f32 - 5.0).collect();
        table.set(convolution2d::WEIGHT, weights);
        table.set(convolution2d::BIAS, (0..5).map(|i| (i + group) as f32).collect::<Vec<f32>>());
        b.op(OpType::Convolution, &[&format!("x{group}")], &[&format!("y{group}")], Some(table));
    }
    let mut along = Table::new(TableKind::Axis);
    along.set(axis::AXIS, 1);
    b.op(OpType::Concat, &["y0", "y1", "y2"], &["joined"], Some(along));
    b.op(OpType::ReLU, &["joined"], &["y"], None);
    b.session(&["y"], options).unwrap()
}

#[test]
fn groups_that_are_spelt_out_run_as_one_convolution() {
    let x = floats(&[1, 12, 7, 9], &(0..756).map(|i| (i % 13) as f32 - 6.0).collect::<Vec<f32>>());
    let plain = spelt_out_groups(SessionOptions { fuse: false, ..SessionOptions::default() });
    let want = run(&plain, &[("x", &x)]);
    // Sums of small integers are exact, so that the outputs are the same to the bit.
    for seen_before in [false, true] {
        let session = spelt_out_groups(SessionOptions::default());
        let mut names = Vec::new();
        if seen_before {
            let mut see = |name: &str, _: TensorView<'_>| names.push(name.to_owned());
            assert_eq!(session.observe(&[("x", x.view())], &[], &mut see).unwrap(), want);
            assert!(["x1", "y2", "joined"].iter().all(|name| names.iter().any(|seen| seen == name)));
        }
        assert_eq!(run(&session, &[("x", &x)]), want);
        let profile = session.profile();
        assert!(profile.iter().any(|step| step.kernel.contains("3 groups in one")), "{profile:?}");
        assert!(profile.iter().any(|step| step.op_type == "Concat") == seen_before);
        // The weights of a part are still to be had when somebody wants to see it.
        let mut part = None;
        let mut see = |_: &str, view: TensorView<'_>| part = Some(Tensor::from_view(view));
        assert_eq!(session.watch(&[("x", x.view())], &[], &["y1"], &mut see).unwrap(), want);
        let mut of_plain = None;
        let mut see = |_: &str, view: TensorView<'_>| of_plain = Some(Tensor::from_view(view));
        plain.watch(&[("x", x.view())], &[], &["y1"], &mut see).unwrap();
        assert_eq!(part, of_plain);
        assert!(part.is_some());
    }
}
