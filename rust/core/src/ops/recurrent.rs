//! Recurrent networks as single operators: `LSTM`, `RNN`, `RNNSequenceGRU`.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use mnnq_format::schema::{OpType, TableKind, lstm, rnn_param};
use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::elementwise::{Unary, unary_in_place};
use mnnq_kernels::gemm_f32::{PackedB, gemm_f32, scratch_len};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{kernels, typed};
use crate::tensor::{DType, Shape, TensorDesc};

/// What a step computes from `a = W x_t + b` and `r = R h`; `.` is element-wise, `s` the logistic function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// `h = tanh(a + r)`.
    Plain,
    /// Gates in the order i, o, f, c: `c = s(f) . c + s(i) . tanh(c')`, `h = s(o) . tanh(c)`.
    Lstm,
    /// Gates in the order z, r, n: `h = (1 - s(z)) . n' + s(z) . h` with `n' = tanh(a_n + s(r) . (R_n h + b'))`, or
    /// `tanh(a_n + R_n (s(r) . h) + b')` if the reset gate is not applied after the product.
    Gru { reset_after: bool },
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Lstm => 4,
            Self::Gru { .. } => 3,
        }
    }
}

/// `LSTM(x, W, R[, b[, h0[, c0]]])` and `RNN` without c: `x [T, B, I]`, `W [dirs, gates H, I]`, `R [dirs, gates H, H]`,
/// `b [dirs, gates H]`, states `[dirs, B, H]`; `RNNSequenceGRU(x, for each direction: gate weights [I + H, 2H], gate
/// biases, candidate weights [I + H, H], candidate bias, recurrent biases [3H]; [h0])`. The second direction runs
/// backwards. Outputs: `Y [T, dirs, B, H]`, the last h, and the last c of an LSTM.
pub(super) struct Recurrent {
    cell: Cell,
    hidden: usize,
    /// Directions of a GRU; the others tell by their weights.
    both: bool,
    outputs: usize,
    packed: Mutex<Option<Packed>>,
}

/// The addresses of the weights that were packed, and the result.
type Packed = (Vec<usize>, Arc<Vec<Direction>>);

/// The weights of one direction.
struct Direction {
    /// `[I, gates H]`
    input: PackedB,
    /// `[H, gates H]`; without the candidate of a GRU that resets before the product.
    recurrent: PackedB,
    /// The candidate of such a GRU, `[H, H]`.
    candidate: Option<PackedB>,
    bias: Vec<f32>,
    /// Added to the recurrent product: of a GRU.
    recurrent_bias: Vec<f32>,
}

impl Recurrent {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        let count = |key, got: i32| {
            let value = usize::try_from(got).ok().filter(|&v| (1..=1 << 20).contains(&v));
            value.ok_or_else(|| OpError::attribute(key, got, "1 or more"))
        };
        let made = |cell, hidden, both, most| {
            if !(1..=most).contains(&source.outputs) {
                return Err(OpError::OutputCount { wanted: most, got: source.outputs });
            }
            Ok(Self { cell, hidden, both, outputs: source.outputs, packed: Mutex::default() })
        };
        if source.op_type == OpType::RNNSequenceGRU {
            let table = source.param(TableKind::RNNParam)?;
            if !table.get(rnn_param::KEEP_ALL_OUTPUTS) {
                return Err(OpError::attribute("keepAllOutputs", false, "true"));
            }
            let cell = Cell::Gru { reset_after: table.get(rnn_param::LINEAR_BEFORE_RESET) };
            let hidden = count("numUnits", table.get(rnn_param::NUM_UNITS))?;
            return made(cell, hidden, table.get(rnn_param::IS_BIDIRECTIONAL_RNN), 2);
        }
        let table = source.param(TableKind::LSTM)?;
        let threshold = table.get(lstm::CLIPPING_THRESHOLD);
        if threshold != 0.0 {
            return Err(OpError::attribute("clippingThreshold", threshold, "0"));
        }
        let hidden = count("outputCount", table.get(lstm::OUTPUT_COUNT))?;
        match source.op_type {
            OpType::LSTM => made(Cell::Lstm, hidden, false, 3),
            _ => made(Cell::Plain, hidden, false, 2),
        }
    }

    /// Inputs with weights, and the first one with a state.
    fn weight_inputs(&self) -> std::ops::Range<usize> {
        match self.cell {
            Cell::Gru { .. } => 1..1 + 5 * (1 + usize::from(self.both)),
            _ => 1..4,
        }
    }

    fn dims(&self, inputs: &Facts<'_>) -> OpResult<Dims> {
        let x = inputs.typed(0, DType::F32)?.shape;
        let &[steps, batch, input] = x.dims() else {
            return Err(OpError::shape(0, x, "[time, batch, features]"));
        };
        let hidden = self.hidden;
        let expect = |position: usize, wanted: &[usize], optional: bool| -> OpResult<()> {
            if optional && inputs.get(position).is_none() {
                return Ok(());
            }
            let got = inputs.typed(position, DType::F32)?.shape;
            if got.dims() == wanted {
                return Ok(());
            }
            Err(OpError::shape(position, got, format!("{wanted:?}")))
        };
        let directions = if let Cell::Gru { .. } = self.cell {
            let directions = 1 + usize::from(self.both);
            for first in (0..directions).map(|direction| 1 + 5 * direction) {
                expect(first, &[input + hidden, 2 * hidden], false)?;
                expect(first + 1, &[1, 2 * hidden], false)?;
                expect(first + 2, &[input + hidden, hidden], false)?;
                expect(first + 3, &[1, hidden], false)?;
                expect(first + 4, &[1, 3 * hidden], false)?;
            }
            directions
        } else {
            let directions = inputs.shape(1)?.first().copied().unwrap_or(0);
            if !(1..=2).contains(&directions) {
                return Err(OpError::shape(1, inputs.shape(1)?, "1 or 2 directions"));
            }
            let rows = self.cell.gates() * hidden;
            expect(1, &[directions, rows, input], false)?;
            expect(2, &[directions, rows, hidden], false)?;
            expect(3, &[directions, rows], true)?;
            directions
        };
        let first = self.weight_inputs().end;
        expect(first, &[directions, batch, hidden], true)?;
        if self.cell == Cell::Lstm {
            expect(first + 1, &[directions, batch, hidden], true)?;
        }
        Ok(Dims { steps, batch, input, hidden, directions, gates: self.cell.gates() })
    }

    /// The weights of all directions, packed; `inputs[i]` are the values of input `i`.
    fn pack(cell: Cell, dims: &Dims, inputs: &[&[f32]]) -> OpResult<Vec<Direction>> {
        let Dims { input, hidden, gates, .. } = *dims;
        (0..dims.directions)
            .map(|direction| match cell {
                Cell::Gru { reset_after } => {
                    let [gate, gate_bias, candidate, candidate_bias, recurrent_bias] =
                        std::array::from_fn(|i| inputs[5 * direction + i]);
                    gru(dims, reset_after, gate, candidate, [gate_bias, candidate_bias, recurrent_bias])
                }
                _ => {
                    let rows = gates * hidden;
                    let (kernel, [w, r]) = (&kernels().gemm_f32, [inputs[0], inputs[1]]);
                    let w = &w[direction * rows * input..][..rows * input];
                    let r = &r[direction * rows * hidden..][..rows * hidden];
                    let bias = inputs.get(2).filter(|b| !b.is_empty());
                    let bias =
                        bias.map_or_else(|| vec![0.0; rows], |b| b[direction * rows..][..rows].to_vec());
                    Ok(Direction {
                        input: PackedB::from_columns(kernel, w, input, rows, input)?,
                        recurrent: PackedB::from_columns(kernel, r, hidden, rows, hidden)?,
                        candidate: None,
                        bias,
                        recurrent_bias: Vec::new(),
                    })
                }
            })
            .collect()
    }
}

/// Packs one direction of a GRU, whose weights hold the rows of x above those of h.
fn gru(
    dims: &Dims,
    reset_after: bool,
    gate: &[f32],
    candidate: &[f32],
    [gate_bias, candidate_bias, recurrent_bias]: [&[f32]; 3],
) -> OpResult<Direction> {
    let (kernel, hidden) = (&kernels().gemm_f32, dims.hidden);
    let joined = |rows: std::ops::Range<usize>, with_candidate: bool| {
        let mut matrix = Vec::with_capacity(rows.len() * 3 * hidden);
        for row in rows {
            matrix.extend_from_slice(&gate[row * 2 * hidden..][..2 * hidden]);
            if with_candidate {
                matrix.extend_from_slice(&candidate[row * hidden..][..hidden]);
            }
        }
        matrix
    };
    let (x_rows, h_rows) = (0..dims.input, dims.input..dims.input + hidden);
    let below = &candidate[dims.input * hidden..];
    let columns = if reset_after { 3 * hidden } else { 2 * hidden };
    let recurrent = joined(h_rows, reset_after);
    Ok(Direction {
        input: PackedB::from_rows(kernel, &joined(x_rows, true), dims.input, 3 * hidden, 3 * hidden)?,
        recurrent: PackedB::from_rows(kernel, &recurrent, hidden, columns, columns)?,
        candidate: if reset_after {
            None
        } else {
            Some(PackedB::from_rows(kernel, below, hidden, hidden, hidden)?)
        },
        bias: [gate_bias, candidate_bias].concat(),
        recurrent_bias: recurrent_bias.to_vec(),
    })
}

#[derive(Debug, Clone, Copy)]
struct Dims {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
    gates: usize,
}

impl Operator for Recurrent {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let Dims { steps, batch, hidden, directions, .. } = self.dims(inputs)?;
        let all = TensorDesc::new(DType::F32, Shape::new(&[steps, directions, batch, hidden])?);
        let last = TensorDesc::new(DType::F32, Shape::new(&[directions, batch, hidden])?);
        Ok([all, last, last][..self.outputs].to_vec())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let dims = self.dims(&context.inputs)?;
        let weights = self.weight_inputs();
        let facts: Vec<_> = weights.clone().map(|position| context.inputs.get(position)).collect();
        let constant = facts.iter().flatten().all(|fact| fact.value.is_some());
        let packed = constant
            .then(|| {
                let values = facts.iter().map(|fact| fact.and_then(|fact| fact.value));
                let values: Vec<&[f32]> = values.map(|v| v.map_or(&[][..], |v| v.data())).collect();
                let key: Vec<usize> = values.iter().map(|v| v.as_ptr().addr()).collect();
                let mut cache = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, packed)) = cache.as_ref().filter(|(of, _)| *of == key) {
                    return Ok(packed.clone());
                }
                let packed = Arc::new(Self::pack(self.cell, &dims, &values)?);
                *cache = Some((key, packed.clone()));
                Ok::<_, OpError>(packed)
            })
            .transpose()?;
        Ok(Box::new(RecurrentKernel {
            cell: self.cell,
            dims,
            packed,
            weights,
            threads: context.options.threads,
        }))
    }
}

struct RecurrentKernel {
    cell: Cell,
    dims: Dims,
    /// `None`: weights are packed in every run.
    packed: Option<Arc<Vec<Direction>>>,
    weights: std::ops::Range<usize>,
    threads: usize,
}

/// Parts of the scratch memory, in floats: products of all inputs, of one state, h, c or a state times a gate, and
/// what the products need.
fn parts(dims: &Dims, threads: usize) -> [usize; 5] {
    let state = (dims.batch * dims.hidden).next_multiple_of(16);
    let wide = dims.gates * state;
    [(dims.steps * wide).next_multiple_of(16), wide, state, state, threads * scratch_len()]
}

impl Kernel for RecurrentKernel {
    fn label(&self) -> Cow<'static, str> {
        let packing = if self.packed.is_some() { "" } else { ", packed in every run" };
        let name = match self.cell {
            Cell::Plain => "rnn",
            Cell::Lstm => "lstm",
            Cell::Gru { .. } => "gru",
        };
        format!("{name} f32 {}{packing}", kernels().gemm_f32.name()).into()
    }

    fn scratch(&self) -> usize {
        parts(&self.dims, self.threads).iter().sum::<usize>() * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let Dims { steps, batch, input, hidden, directions, gates } = self.dims;
        [steps, batch, directions, gates * hidden, input + hidden]
            .iter()
            .fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let Dims { steps, batch, hidden, directions, .. } = self.dims;
        let fresh;
        let packed = match &self.packed {
            Some(packed) => packed,
            None => {
                let values = self.weights.clone().map(|position| io.optional(position));
                let values: Vec<&[f32]> = values.map(|v| v.map_or(&[][..], |v| v.data())).collect();
                fresh = Arc::new(Recurrent::pack(self.cell, &self.dims, &values)?);
                &fresh
            }
        };
        let state = batch * hidden;
        let initial = |position: usize| io.optional(position).map(|view| view.data::<f32>());
        let (h0, c0) = (initial(self.weights.end), initial(self.weights.end + 1));
        let (x, parallel) = (io.input(0).data::<f32>(), io.parallel);
        let [wide, narrow, h_len, c_len, _] = parts(&self.dims, self.threads);
        let (wide, rest) = typed::<f32>(io.scratch).split_at_mut(wide);
        let (narrow, rest) = rest.split_at_mut(narrow);
        let (h, rest) = rest.split_at_mut(h_len);
        let (c, gemm) = rest.split_at_mut(c_len);
        let (h, c) = (&mut h[..state], &mut c[..state]);
        let (all, last) = io.outputs.split_at_mut(1);
        let all = all[0].data::<f32>();
        for (direction, weights) in packed.iter().enumerate() {
            let set = |to: &mut [f32], from: Option<&[f32]>| match from {
                Some(from) => to.copy_from_slice(&from[direction * state..][..state]),
                None => to.fill(0.0),
            };
            set(h, h0);
            set(c, if self.cell == Cell::Lstm { c0 } else { None });
            let columns = self.dims.gates * hidden;
            let epilogue = KernelEpilogue::new(Some(&weights.bias), Unary::Identity);
            let (rows, k, kernel) = (steps * batch, self.dims.input, &kernels().gemm_f32);
            gemm_f32(kernel, rows, x, k, &weights.input, &epilogue, wide, columns, gemm, parallel)?;
            for step in 0..steps {
                let time = if direction == 0 { step } else { steps - 1 - step };
                let ahead = &mut wide[time * batch * columns..][..batch * columns];
                self.step(weights, ahead, narrow, (h, c), gemm, parallel)?;
                all[(time * directions + direction) * state..][..state].copy_from_slice(h);
            }
            for (output, from) in last.iter_mut().zip([&*h, &*c]) {
                output.data::<f32>()[direction * state..][..state].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

impl RecurrentKernel {
    /// One step: `ahead` is W x + b, `narrow` memory for R h.
    fn step(
        &self,
        weights: &Direction,
        ahead: &mut [f32],
        narrow: &mut [f32],
        (h, c): (&mut [f32], &mut [f32]),
        gemm: &mut [f32],
        parallel: &crate::runtime::parallel::Parallel,
    ) -> OpResult<()> {
        let Dims { batch, hidden, gates, .. } = self.dims;
        let (kernel, isa) = (&kernels().gemm_f32, kernels().elementwise_f32);
        let columns = weights.recurrent.n();
        let bias = Some(&weights.recurrent_bias[..]).filter(|bias| !bias.is_empty());
        let epilogue = KernelEpilogue::new(bias.map(|bias| &bias[..columns]), Unary::Identity);
        gemm_f32(kernel, batch, h, hidden, &weights.recurrent, &epilogue, narrow, columns, gemm, parallel)?;
        let lines = ahead.chunks_exact_mut(gates * hidden).zip(narrow.chunks_exact(columns));
        match self.cell {
            Cell::Plain => {
                for ((a, r), h) in lines.zip(h.chunks_exact_mut(hidden)) {
                    h.iter_mut().zip(a).zip(r).for_each(|((h, a), r)| *h = *a + r);
                    unary_in_place(isa, Unary::Tanh, h);
                }
            }
            Cell::Lstm => {
                let states = h.chunks_exact_mut(hidden).zip(c.chunks_exact_mut(hidden));
                for ((a, r), (h, c)) in lines.zip(states) {
                    a.iter_mut().zip(r).for_each(|(a, r)| *a += r);
                    let (gates, new) = a.split_at_mut(3 * hidden);
                    unary_in_place(isa, Unary::Sigmoid, gates);
                    unary_in_place(isa, Unary::Tanh, new);
                    for (i, c) in c.iter_mut().enumerate() {
                        *c = gates[2 * hidden + i] * *c + gates[i] * new[i];
                    }
                    h.copy_from_slice(c);
                    unary_in_place(isa, Unary::Tanh, h);
                    h.iter_mut().zip(&gates[hidden..]).for_each(|(h, o)| *h *= o);
                }
            }
            Cell::Gru { reset_after } => {
                for ((a, r), (h, gated)) in
                    lines.zip(h.chunks_exact_mut(hidden).zip(c.chunks_exact_mut(hidden)))
                {
                    let (gates, new) = a.split_at_mut(2 * hidden);
                    gates.iter_mut().zip(r).for_each(|(a, r)| *a += r);
                    unary_in_place(isa, Unary::Sigmoid, gates);
                    let reset = &gates[hidden..];
                    if reset_after {
                        for (i, n) in new.iter_mut().enumerate() {
                            *n += reset[i] * r[2 * hidden + i];
                        }
                    } else {
                        gated.iter_mut().zip(&*h).zip(reset).for_each(|((g, h), r)| *g = h * r);
                    }
                }
                if let Some(matrix) = &weights.candidate {
                    let bias = Some(&weights.recurrent_bias[2 * hidden..]);
                    let epilogue = KernelEpilogue::new(bias, Unary::Identity);
                    gemm_f32(kernel, batch, c, hidden, matrix, &epilogue, narrow, hidden, gemm, parallel)?;
                    for (a, r) in ahead.chunks_exact_mut(3 * hidden).zip(narrow.chunks_exact(hidden)) {
                        a[2 * hidden..].iter_mut().zip(r).for_each(|(a, r)| *a += r);
                    }
                }
                for (a, h) in ahead.chunks_exact_mut(3 * hidden).zip(h.chunks_exact_mut(hidden)) {
                    let (gates, new) = a.split_at_mut(2 * hidden);
                    unary_in_place(isa, Unary::Tanh, new);
                    for (i, h) in h.iter_mut().enumerate() {
                        *h = (1.0 - gates[i]) * new[i] + gates[i] * *h;
                    }
                }
            }
        }
        Ok(())
    }
}
