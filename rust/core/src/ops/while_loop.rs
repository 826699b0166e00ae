//! `While` with a condition graph.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::model::Table;
use mnnq_format::schema::while_param;

use super::control::{Body, Views, input_position, names, output_position, truth};
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferError, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use crate::runtime::parallel::Parallel;
use crate::runtime::plan::Segment;
use crate::tensor::{Tensor, TensorDesc, TensorView};

/// `While` with a condition graph.
pub(super) struct While {
    condition: Body,
    body: Body,
    /// Per state of the body / of the condition: where it comes from first, and after each iteration.
    updates: Updates,
    /// Per output: the body output or body input it is, and the operator input it is before the first iteration.
    results: Vec<ResultOf>,
}

#[derive(Default)]
struct Updates {
    /// (input of the condition, output of the body)
    condition_from_body: Vec<(usize, usize)>,
    /// (input of the body, output of the body)
    body_from_body: Vec<(usize, usize)>,
    /// Inputs of the condition and of the body that take the condition's result.
    condition_from_condition: Vec<usize>,
    body_from_condition: Vec<usize>,
}

#[derive(Clone)]
struct ResultOf {
    body_output: Option<usize>,
    body_input: Option<usize>,
    input: Option<usize>,
}

impl While {
    pub(super) fn new(
        source: &OpSource<'_>,
        table: &Table,
        mut condition: Body,
        mut body: Body,
    ) -> OpResult<Self> {
        let aliases = names(table.get(while_param::ALIASES_INPUTS));
        let missing =
            || OpError::attribute("aliases_inputs", "an incomplete list", "every input of the subgraphs");
        for part in [&mut condition, &mut body] {
            let mut inputs = vec![None; part.executor.graph().inputs.len()];
            for (input, aliases) in aliases.iter().enumerate().filter(|(input, _)| *input < source.inputs) {
                for position in aliases.iter().filter_map(|alias| input_position(&part.executor, alias)) {
                    inputs[position] = Some(input);
                }
            }
            part.inputs = inputs.into_iter().collect::<Option<_>>().ok_or_else(missing)?;
        }
        let (updates, replaced) = Self::updates(table, &condition, &body)?;
        let results = table.get(while_param::ALIASES_OUTPUTS).unwrap_or_default();
        if results.len() != source.outputs {
            return Err(OpError::OutputCount { wanted: results.len(), got: source.outputs });
        }
        let results = results
            .iter()
            .map(|name| {
                let output = output_position(&body.executor, name);
                let moved =
                    output.and_then(|o| replaced.iter().find(|(from, _)| *from == o)).map(|(_, to)| *to);
                ResultOf {
                    body_output: moved.or(output),
                    body_input: input_position(&body.executor, name),
                    input: aliases.iter().position(|aliases| aliases.contains(name)),
                }
            })
            .collect();
        Ok(Self { condition, body, updates, results })
    }

    /// What each iteration changes; and outputs that stand for others.
    fn updates(table: &Table, condition: &Body, body: &Body) -> OpResult<(Updates, Vec<(usize, usize)>)> {
        let (mut updates, mut replaced) = (Updates::default(), Vec::new());
        for pair in names(table.get(while_param::ALIASES_UPDATES)) {
            let [from, to] = pair else {
                return Err(OpError::attribute("aliases_updates", format!("{pair:?}"), "pairs"));
            };
            let (to_body, to_condition) =
                (input_position(&body.executor, to), input_position(&condition.executor, to));
            if output_position(&condition.executor, from).is_some() {
                updates.body_from_condition.extend(to_body);
                updates.condition_from_condition.extend(to_condition);
            }
            if let Some(output) = output_position(&body.executor, from) {
                updates.body_from_body.extend(to_body.map(|to| (to, output)));
                updates.condition_from_body.extend(to_condition.map(|to| (to, output)));
                replaced.extend(output_position(&body.executor, to).map(|old| (old, output)));
            }
        }
        Ok((updates, replaced))
    }
}

impl While {
    /// Plans of an iteration and the descriptions of the outputs, if states keep their shapes.
    fn stable(&self, inputs: &Facts<'_>) -> OpResult<Option<Steady>> {
        let Some((decision, test)) = self.condition.infer(&self.condition.descs(inputs)?, &[])? else {
            return Ok(None);
        };
        // A body that does not fit may belong to a loop that is never entered.
        let starts = self.body.descs(inputs)?;
        let Ok(Some((made, body))) = self.body.infer(&starts, &[]) else { return Ok(None) };
        let Some(&decision) = decision.first() else { return Ok(None) };
        let tests = self.condition.descs(inputs)?;
        let updates = &self.updates;
        let same = updates.body_from_body.iter().all(|&(to, from)| starts[to] == made[from])
            && updates.condition_from_body.iter().all(|&(to, from)| tests[to] == made[from])
            && updates.condition_from_condition.iter().all(|&to| tests[to] == decision)
            && updates.body_from_condition.iter().all(|&to| starts[to] == decision);
        let mut outputs = Vec::with_capacity(self.results.len());
        for result in &self.results {
            let before = result.input.map(|input| inputs.desc(input)).transpose()?;
            let after = match (result.body_input, result.body_output) {
                (Some(input), _) => Some(starts[input]),
                (None, Some(output)) => Some(made[output]),
                (None, None) => before,
            };
            match (before, after) {
                (Some(before), Some(after)) if before != after => return Ok(None),
                (_, Some(after)) => outputs.push(after),
                (_, None) => return Ok(None),
            }
        }
        Ok(same.then_some(Steady { test, body, decision, made, outputs }))
    }

    /// Where an input of the body or of the condition is from after an iteration.
    fn sources(count: usize, from_body: &[(usize, usize)], from_condition: &[usize]) -> Vec<Source> {
        let mut sources = vec![Source::Start; count];
        from_body.iter().for_each(|&(to, from)| sources[to] = Source::Body(from));
        from_condition.iter().for_each(|&to| sources[to] = Source::Condition);
        sources
    }
}

/// What is known of the iterations of a [`While`] before running.
struct Steady {
    test: Arc<Segment>,
    body: Arc<Segment>,
    /// The condition's result.
    decision: TensorDesc,
    /// The body's outputs.
    made: Vec<TensorDesc>,
    /// The operator's outputs.
    outputs: Vec<TensorDesc>,
}

/// Where a state is after an iteration.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Where it was before the first one.
    Start,
    /// An output of the body.
    Body(usize),
    /// The condition's result.
    Condition,
}

/// A [`While`] whose iterations all have the same plans. What an iteration gives goes back and forth between two places
/// in scratch.
struct WhileKernel {
    condition: Body,
    body: Body,
    steady: Steady,
    test_sources: Vec<Source>,
    body_sources: Vec<Source>,
    results: Vec<ResultOf>,
    /// Where each output of the body starts in a place, and the condition's result behind them.
    offsets: Vec<usize>,
    /// Bytes of a place.
    bytes: usize,
}

impl WhileKernel {
    /// The state from this source, given the place of the last iteration.
    fn state<'a>(&self, source: Source, start: TensorView<'a>, last: &'a [u8]) -> TensorView<'a> {
        let (desc, offset) = match source {
            Source::Start => return start,
            Source::Body(output) => (self.steady.made[output], self.offsets[output]),
            Source::Condition => (self.steady.decision, self.offsets[self.steady.made.len()]),
        };
        TensorView::new(desc, &last[offset..offset + desc.byte_len()])
    }

    fn states<'a>(
        &self,
        (part, sources): (&Body, &[Source]),
        inputs: &[Option<TensorView<'a>>],
        last: Option<&'a [u8]>,
    ) -> OpResult<Views<'a>> {
        let states = part.inputs.iter().zip(sources).map(|(&input, &source)| {
            let start = inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input })?;
            Ok(last.map_or(start, |last| self.state(source, start, last)))
        });
        states.collect()
    }

    /// What output `result` is after the iterations whose last one left this place.
    fn result<'a>(
        &self,
        result: &ResultOf,
        inputs: &[Option<TensorView<'a>>],
        last: Option<&'a [u8]>,
    ) -> OpResult<TensorView<'a>> {
        let input =
            |input: usize| inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input });
        match (last, result) {
            (Some(last), ResultOf { body_input: Some(state), .. }) => {
                Ok(self.state(self.body_sources[*state], input(self.body.inputs[*state])?, last))
            }
            (Some(last), ResultOf { body_output: Some(output), .. }) => {
                let desc = self.steady.made[*output];
                let offset = self.offsets[*output];
                Ok(TensorView::new(desc, &last[offset..offset + desc.byte_len()]))
            }
            (_, ResultOf { input: Some(position), .. }) => input(*position),
            _ => Err(OpError::value(0, NO_ITERATION)),
        }
    }
}

/// Why an output has no value.
const NO_ITERATION: &str = "an output has no value because no iteration ran";

impl Kernel for WhileKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("while {}: {}", self.condition.name, self.body.name).into()
    }

    fn scratch(&self) -> usize {
        2 * self.bytes
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (inputs, parallel) = (io.inputs, io.parallel);
        let (mut last, mut next) = io.scratch.split_at_mut(self.bytes);
        let mut started = false;
        loop {
            let place = started.then_some(&*last);
            let behind = self.offsets[self.steady.made.len()];
            let mut goes_on = Ok(false);
            let views = self.states((&self.condition, &self.test_sources), inputs, place)?;
            self.condition.run(&self.steady.test, &views, parallel, &mut |_, view| {
                goes_on = truth(view);
                next[behind..behind + view.bytes().len()].copy_from_slice(view.bytes());
            })?;
            drop(views);
            if !goes_on? {
                break;
            }
            parallel.take_iterations(1)?;
            let views = self.states((&self.body, &self.body_sources), inputs, place)?;
            self.body.run(&self.steady.body, &views, parallel, &mut |position, view| {
                let offset = self.offsets[position];
                next[offset..offset + view.bytes().len()].copy_from_slice(view.bytes());
            })?;
            drop(views);
            std::mem::swap(&mut last, &mut next);
            started = true;
        }
        for (result, output) in self.results.iter().zip(io.outputs.iter_mut()) {
            let view = self.result(result, inputs, started.then_some(&*last))?;
            output.bytes().copy_from_slice(view.bytes());
        }
        Ok(())
    }
}

impl Operator for While {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        inputs.desc(0)?;
        self.stable(inputs)?.map(|steady| steady.outputs).ok_or(InferError::Dynamic)
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let steady = self
            .stable(&context.inputs)?
            .ok_or_else(|| OpError::unsupported("states that change their shape"))?;
        let updates = &self.updates;
        let body_sources =
            Self::sources(self.body.inputs.len(), &updates.body_from_body, &updates.body_from_condition);
        let test_sources = Self::sources(
            self.condition.inputs.len(),
            &updates.condition_from_body,
            &updates.condition_from_condition,
        );
        let mut bytes = 0;
        let mut offsets = Vec::with_capacity(steady.made.len() + 1);
        for desc in steady.made.iter().chain([&steady.decision]) {
            offsets.push(bytes);
            bytes += desc.byte_len().next_multiple_of(64);
        }
        let (condition, body) = (self.condition.clone(), self.body.clone());
        let results = self.results.clone();
        Ok(Box::new(WhileKernel {
            condition,
            body,
            steady,
            test_sources,
            body_sources,
            results,
            offsets,
            bytes,
        }))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], parallel: &Parallel) -> OpResult<Vec<Tensor>> {
        let all: Vec<Option<Tensor>> = inputs.iter().map(|view| view.map(Tensor::from_view)).collect();
        let input = |input: usize| all.get(input).cloned().flatten().ok_or(OpError::MissingInput { input });
        let mut test: Vec<Tensor> =
            self.condition.inputs.iter().map(|&i| input(i)).collect::<OpResult<_>>()?;
        let mut state: Vec<Tensor> = self.body.inputs.iter().map(|&i| input(i)).collect::<OpResult<_>>()?;
        let mut results: Vec<Option<Tensor>> = self
            .results
            .iter()
            .map(|result| result.input.map(&input).transpose())
            .collect::<OpResult<_>>()?;
        loop {
            let views: Views<'_> = test.iter().map(Tensor::view).collect();
            let decision = self.condition.evaluate(&views, parallel)?;
            drop(views);
            let decision = decision.into_iter().next().ok_or(OpError::MissingInput { input: 0 })?;
            if !truth(decision.view())? {
                break;
            }
            parallel.take_iterations(1)?;
            let views: Views<'_> = state.iter().map(Tensor::view).collect();
            let outputs = self.body.evaluate(&views, parallel)?;
            drop(views);
            for &(to, from) in &self.updates.condition_from_body {
                test[to] = outputs[from].clone();
            }
            for &(to, from) in &self.updates.body_from_body {
                state[to] = outputs[from].clone();
            }
            for &to in &self.updates.condition_from_condition {
                test[to] = decision.clone();
            }
            for &to in &self.updates.body_from_condition {
                state[to] = decision.clone();
            }
            for (slot, result) in results.iter_mut().zip(&self.results) {
                if let Some(output) = result.body_output {
                    *slot = Some(outputs[output].clone());
                }
                if let Some(input) = result.body_input {
                    *slot = Some(state[input].clone());
                }
            }
        }
        let found: Option<Vec<Tensor>> = results.into_iter().collect();
        found.ok_or_else(|| OpError::value(0, NO_ITERATION))
    }
}
