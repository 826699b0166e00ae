"""Quantizing the layers of a model on data: in the order of the graph, each for the inputs that it then gets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import MnnqError
from mnnq.ir.model import Model, Op
from mnnq.quantization import input_scaling
from mnnq.quantization.bias_correction import BiasShift, output_means, shift_bias, sqnr
from mnnq.quantization.calibrated import (
    CANDIDATES,
    MIN_HOLD_OUT,
    Array,
    Chosen,
    Compensation,
    Inputs,
    choose,
    collect,
)
from mnnq.quantization.config import LayerConfig, WeightConfig, WeightMethod
from mnnq.quantization.layer_state import LayerState
from mnnq.quantization.stepwise import Step, Stepper
from mnnq.quantization.stored import Storage, describe, float_weights, quant_size
from mnnq.quantization.weight import without_dead_rows
from mnnq.quantization.windows import Windows
from mnnq.report.quantization import LayerReport

_log = logging.getLogger(__name__)

#: What a layer gets: settings, block, why not the one asked for; None when it gets no codes.
Choice = tuple[LayerConfig, int | None, str | None] | None


class CalibratedRun:
    """One quantization of the main graph of a model on data.

    Parameters
    ----------
    reference
        The model as it was.
    model
        The model to quantize in place.
    free
        Quantizes a layer without data and returns its report.
    choose
        Says what a layer gets.
    tell
        Called before each layer with (layers done, name).
    """

    def __init__(
        self,
        reference: Model,
        model: Model,
        samples: Iterable[Mapping[str, Any]],
        config: WeightConfig,
        *,
        state: Path | None,
        executor: Executor | None,
        free: Callable[[Op], LayerReport],
        choose: Callable[[Op], Choice],
        tell: Callable[[int, str], None],
    ) -> None:
        self.reference, self.model, self.config = reference, model, config
        self._samples, self._executor = samples, executor
        self._free, self._choose, self._tell = free, choose, tell
        self._state = None if state is None else LayerState(state)
        #: Factors of the inputs of the step's layers, by tensor, and finished layers by operator.
        self._scalings: dict[str, input_scaling.Scaling] = {}
        self._finished: dict[int, _Job] = {}
        #: Statistics of the inputs of the step's layers.
        self._shared: dict[tuple[str, Windows, bool], Inputs] = {}
        self.samples: int | None = None
        self.output_sqnr: float | None = None

    def run(self) -> dict[int, LayerReport]:
        """Quantize, and return the reports by identity of the operator."""
        reports: dict[int, LayerReport] = {}
        digest = hashlib.sha256(b"mnnq layer state 1")
        samples = self._samples if self._state is None else _digested(self._samples, digest)
        with Stepper(self.reference, self.model, samples, threads=self.config.threads) as stepper:
            for step in stepper:
                self._shared.clear()
                self._scale_inputs(stepper, step)
                jobs = [self._prepare(stepper, step, layer, digest) for layer in step.layers]
                for job in jobs:
                    self._tell(len(reports), job.op.name)
                    reports[id(job.op)] = self._finish(job, stepper, step)
                    if job.chosen is not None:
                        self._finished[id(job.op)] = job
            self.samples = stepper.samples
            self.output_sqnr = sqnr(stepper.outputs())
        return reports

    def _prepare(self, stepper: Stepper, step: Step, layer: str, digest: Any) -> _Job:
        """Collect what a layer needs, and hand it to the executor if there is one."""
        exact_op, op = stepper.layer(layer)
        job = _Job(layer, exact_op, op, self._choose(op))
        if job.choice is None or op.type.startswith("Deconvolution"):
            return job
        config, block, _ = job.choice
        if config.method not in (WeightMethod.GPTQ, WeightMethod.AUTO):
            return job
        stored = describe(exact_op)
        weight = np.require(float_weights(exact_op), np.float32, ["C", "A"])
        if config.method is WeightMethod.AUTO:
            weight = without_dead_rows(weight)
        scaling = self._scalings.get(op.inputs[0])
        if scaling is not None:
            job.scaling = scaling
            weight = weight * np.repeat(scaling.factors, stored.kernel).astype(np.float32)
        if self._state is not None:
            digest.update(repr((op.name, asdict(config), block, weight.shape)).encode())
            digest.update(weight.data)
            job.key = digest.hexdigest()
            job.chosen = self._state.load(job.key, weight.shape)
            if job.chosen is not None:
                return job
        if not np.isfinite(weight).all():
            return job  # the search without data names the weight
        candidates = CANDIDATES if config.method is WeightMethod.AUTO else (Compensation(),)
        hold_out = config.method is WeightMethod.AUTO and stepper.samples >= MIN_HOLD_OUT
        inputs = self._inputs(stepper, step, layer, hold_out=hold_out)
        if scaling is not None:
            inputs = input_scaling.scaled_inputs(inputs, scaling.factors, stored.kernel)
        arguments = (
            weight, config, None if block is None else block * stored.kernel, inputs, candidates, self.config.threads,
        )  # fmt: skip
        if self._executor is None:
            job.work = lambda: choose(*arguments)
        else:
            job.work = self._executor.submit(choose, *arguments).result
        return job

    def _scale_inputs(self, stepper: Stepper, step: Step) -> None:
        """Let ``auto`` choose factors for inputs that are uneven, and divide what makes them."""
        self._scalings.clear()
        readers: dict[str, list[str]] = {}
        for layer in step.layers:
            readers.setdefault(stepper.layer(layer)[1].inputs[0], []).append(layer)
        for name, layers in readers.items():
            scaling = self._scaling(stepper, step, name, layers)
            if scaling is None:
                continue
            done = self._finished.get(id(scaling.writer))
            input_scaling.divide(
                scaling.writer, scaling.factors, None if done is None else partial(self._rescale, done)
            )
            stepper.divide(name, scaling.factors)
            self._scalings[name] = scaling

    def _scaling(
        self, stepper: Stepper, step: Step, name: str, layers: list[str]
    ) -> input_scaling.Scaling | None:
        ops = [stepper.layer(layer) for layer in layers]
        writer = input_scaling.find_writer(self.model.ops, self.model.outputs, name, [op for _, op in ops])
        if writer is None:
            return None
        is_layer = writer.type != "LayerNorm"
        if is_layer and id(writer) not in self._finished and writer.params.get("quanParameter") is not None:
            return None
        options: list[dict[str, Any]] = []
        weights, seen = [], set()
        for exact_op, op in ops:
            stored = describe(exact_op)
            choice = None if stored.storage is Storage.CODES else self._choose(op)
            if choice is None or choice[0].method is not WeightMethod.AUTO:
                return None
            config, block, _ = choice
            weight = float_weights(exact_op)
            if not np.isfinite(weight).all():
                return None
            seen.add(Windows.of(op))
            weights.append(weight)
            options.append(
                {
                    "bits": config.bits,
                    "symmetric": config.symmetric,
                    "block": None if block is None else block * stored.kernel,
                    "fp16_scales": config.fp16_scales,
                    "threads": self.config.threads,
                }
            )
        if len(seen) != 1:
            return None
        inputs = self._inputs(stepper, step, layers[0], hold_out=stepper.samples >= MIN_HOLD_OUT)
        for how in options:
            how["damping"] = Compensation().ridge(inputs.fitted)
        found = input_scaling.choose_factors(inputs, weights, describe(ops[0][0]).kernel, options)
        return None if found is None else input_scaling.Scaling(writer, *found)

    def _rescale(self, job: _Job, by: npt.NDArray[np.float32]) -> None:
        """Write the codes of a finished layer again, with its rows multiplied."""
        assert job.chosen is not None
        minimum = None if job.chosen.minimum is None else job.chosen.minimum * by
        job.chosen = replace(job.chosen, scale=job.chosen.scale * by, minimum=minimum)
        self._store(job, job.chosen)

    def _inputs(self, stepper: Stepper, step: Step, layer: str, *, hold_out: bool) -> Inputs:
        """Statistics of a layer's inputs; layers of a step that see the same share them."""
        op = stepper.layer(layer)[1]
        seen = (op.inputs[0], Windows.of(op), hold_out)
        if seen not in self._shared:
            self._shared[seen] = collect(
                op, step.inputs(layer), stepper.samples, hold_out=hold_out, threads=self.config.threads
            )
        return self._shared[seen]

    def _finish(self, job: _Job, stepper: Stepper, step: Step) -> LayerReport:
        try:
            return self._finish_checked(job, stepper, step)
        except MnnqError as error:
            error.node = error.node or job.op.name
            raise

    def _finish_checked(self, job: _Job, stepper: Stepper, step: Step) -> LayerReport:
        if job.chosen is None and job.work is not None:
            job.chosen = job.work()
            if self._state is not None:
                self._state.save(job.key, job.chosen)
        report = self._free(job.op) if job.chosen is None else self._store(job, job.chosen)
        shift = self._correct(job, stepper, step) if self.config.bias_correction else None
        if shift is None:
            return report
        return replace(report, bias_error_before=shift.before, bias_error_after=shift.after)

    def _correct(self, job: _Job, stepper: Stepper, step: Step) -> BiasShift | None:
        if "symmetricQuan" in job.op.params:
            return None
        exact, actual = output_means(stepper, step, job.layer)
        return shift_bias(job.op, job.exact_op, exact, actual)

    def _store(self, job: _Job, chosen: Chosen) -> LayerReport:
        """Put codes into the operator."""
        assert job.choice is not None
        config, block, reason = job.choice
        op, stored = job.op, describe(job.exact_op)
        minimum = None if chosen.minimum is None else chosen.minimum.reshape(-1)
        quant = _native.encode_weights(
            chosen.codes.reshape(-1),
            chosen.scale.reshape(-1),
            minimum,
            config.bits,
            fp16_scales=config.fp16_scales,
            sparse=config.sparse or config.method is WeightMethod.AUTO,
        )
        op.params["quanParameter"] = quant
        op.params.pop("weight", None)
        if quant.get("type") != 2:
            op.params.pop("sparseParameter", None)
        common = op.params.get("common", {})
        return LayerReport(
            name=op.name,
            op_type=op.type,
            shape=stored.shape,
            bits=config.bits,
            scheme=config.scheme,
            block_asked=config.block,
            block_used=block,
            method=chosen.method
            if job.scaling is None
            else f"{chosen.method}, inputs^{job.scaling.exponent:g}",
            bytes_before=stored.size,
            bytes_after=quant_size(quant),
            sqnr_db=chosen.sqnr_db,
            relative_rms=chosen.relative_rms,
            reason=reason,
            kernel=(int(common.get("kernelX", 1)), int(common.get("kernelY", 1))),
            output_error_before=chosen.error_before,
            output_error_after=chosen.error_after,
        )


class _Job:
    """One layer on its way."""

    def __init__(self, layer: str, exact_op: Op, op: Op, choice: Choice) -> None:
        self.layer, self.exact_op, self.op, self.choice = layer, exact_op, op, choice
        self.key = ""
        self.chosen: Chosen | None = None
        self.work: Callable[[], Chosen] | None = None
        self.scaling: input_scaling.Scaling | None = None


def _digested(samples: Iterable[Mapping[str, Array]], digest: Any) -> Iterable[Mapping[str, Array]]:
    """The samples, while their contents are added to a digest."""
    for sample in samples:
        for name in sorted(sample):
            array = np.ascontiguousarray(sample[name])
            digest.update(repr((name, array.shape, array.dtype.str)).encode())
            digest.update(array.data)
        yield sample
