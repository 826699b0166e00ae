"""Quantizing the weights of a model: which layers, how, and the record of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnnq import _native
from mnnq.errors import ConfigError, MnnqError
from mnnq.ir.model import WEIGHT_OPS, Model, Op
from mnnq.quantization import embedding
from mnnq.quantization.choices import (
    GAIN_BITS,
    KERNEL_CORRELATION,
    block_reason,
    choose_block,
    without_data,
)
from mnnq.quantization.config import CODE_FIELDS, LayerConfig, WeightConfig, WeightMethod
from mnnq.quantization.constants import Constants
from mnnq.quantization.generated_run import made_up_images, made_up_inputs, quantize_on
from mnnq.quantization.half import MAX_HALF, fits_half, half_error
from mnnq.quantization.input_power import input_powers
from mnnq.quantization.int8 import Int8Layer, apply_int8
from mnnq.quantization.params_file import ParamsFile
from mnnq.quantization.stored import Storage, StoredWeights, aligned, describe, float_weights, quant_size
from mnnq.report.quantization import LayerReport, QuantizationReport

_log = logging.getLogger(__name__)

#: A layer whose weights have a smaller signal-to-noise ratio is warned about: a third of it is noise.
MIN_SQNR_DB = 10.0

#: An output channel with smaller weights, relative to the largest of its layer, is dead for `WeightMethod.AUTO`.
DEAD = 1e-4

#: Called before each layer with (layers done, layers in all, name).
Progress = Callable[[int, int, str], None]


@dataclass(eq=False)
class QuantizedModel(Model):
    """A model with quantized weights, and the record of what was done.

    Attributes
    ----------
    report
        What became of each layer.
    """

    report: QuantizationReport = field(default_factory=QuantizationReport)


def quantize_model(
    model: Model,
    config: WeightConfig,
    *,
    params: ParamsFile | None = None,
    progress: Progress | None = None,
    calib: Iterable[Mapping[str, Any]] | None = None,
    state: Path | None = None,
    executor: Executor | None = None,
    generated_range: tuple[float, float] | None = None,
    generated_inputs: bool = True,
) -> QuantizationReport:
    """Quantize the weights of `model` in place, layer by layer; float weights are dropped as they are replaced.

    Parameters
    ----------
    params
        A compression parameter file to apply too; what it says of a layer wins over `config`.
    calib
        Real inputs of the model, 8 to 128 samples: biases are corrected, and methods that need data use them. Random
        data are refused.
    state
        Folder that finished layers are kept in, so that an interrupted run continues where it was; with `calib`.
    executor
        Where layers that can be chosen at the same time are worked on, anything with the interface of
        `concurrent.futures.Executor`; None for threads of this process. The result is the same.
    generated_range
        Without data: correct biases on made-up images of this range, with method ``auto`` fit weights to them, if that
        helps (`mnnq.quantization.generated`, `mnnq.quantization.generated_run`).
    generated_inputs
        Without data, method ``auto``: fit weights to inputs that are made up, if that helps: random tokens of language
        models (`mnnq.quantization.tokens`), noise for image models whose inputs seem to be of the order of 1
        (`mnnq.quantization.image_guess`).

    Raises
    ------
    ConfigError
        An override or an entry of `params` matches no layer, or asks what cannot be.
    QuantizationError
        Weights cannot be quantized (not finite, too large), naming the layer.
    """
    made = None
    if calib is None and config.method is WeightMethod.AUTO and config.coded:
        if generated_range is not None:
            made = made_up_images(model, *generated_range)
        elif generated_inputs:
            made = made_up_inputs(model)
    if made is None:
        return _Run(model, config, params, progress, calib, state, executor, generated_range).run()
    if state is not None:
        _check_data(config, None, state)

    def quantize(one: Model, samples: Iterable[Mapping[str, Any]] | None) -> QuantizationReport:
        return _Run(one, config, params, None if samples is None else progress, samples, None, executor).run()

    return quantize_on(model, made, quantize, threads=config.threads)


class _Run:
    """One quantization of one model."""

    def __init__(
        self,
        model: Model,
        config: WeightConfig,
        params: ParamsFile | None,
        progress: Progress | None,
        calib: Iterable[Mapping[str, Any]] | None = None,
        state: Path | None = None,
        executor: Executor | None = None,
        generated_range: tuple[float, float] | None = None,
    ) -> None:
        if params is not None:
            config = _with_params(config, params)
        _check_effect(config)
        _check_data(config, calib, state)
        self.calib, self.state, self.executor = calib, state, executor
        self.generated_range = generated_range
        if generated_range is not None and calib is not None:
            msg = "there are real data; images need not be made up"
            raise ConfigError(msg, key="generated_range")
        self.model, self.config, self.params, self.progress = model, config, params, progress
        self.layers: list[LayerReport] = []
        self.notes: list[str] = []
        self.int8: dict[int, Int8Layer] = {}
        self._rounded_twice = 0
        self._futures: dict[int, Any] = {}
        #: What is known of the inputs of layers that are fitted without data.
        self._powers: dict[int, Any] = {}
        self._normalized = False
        self.samples: int | None = None
        self.output_sqnr: float | None = None

    def run(self) -> QuantizationReport:
        weight_ops = [(graph, op) for graph, op in self.model.all_ops() if op.param_type == "Convolution2D"]
        tables = self._tables()
        self._check_names(weight_ops, tables)
        if self.params is not None:
            self._apply_params(self.params)
        total = len(weight_ops) + len(tables)
        reference = None if self.calib is None and self.generated_range is None else self.model.copy()
        for _, ops, _ in self.model.graphs():
            self._powers.update(input_powers(ops))
            self._normalized |= any(op.type == "LayerNorm" for op in ops)
        table_layers, constants = [], Constants(self.model, self.config)
        for done, table in enumerate(tables):
            self._tell(done, total, table.const.name)
            table_layers.append(constants.table(table))
        calibrated: dict[int, LayerReport] = {}
        if reference is not None and self.calib is not None:
            calibrated = self._calibrate(reference, len(tables), total)
        free = [(subgraph, op) for subgraph, op in weight_ops if id(op) not in calibrated]
        reports = {**calibrated, **self._without_data(free, total - len(free), total)}
        self.layers += [reports[id(op)] for _, op in weight_ops]
        self.layers += table_layers
        if reference is not None and self.generated_range is not None:
            self._correct_on_generated(reference, self.generated_range)
        self._tell(total, total, "")
        self.layers += constants.others({id(table.const) for table in tables})
        if self._rounded_twice:
            self.notes.append(
                f"{self._rounded_twice} layers were quantized before and are rounded a second time; "
                "start from the float model for the best result"
            )
        self._note_lost_weights()
        for layer in self.layers:
            if layer.reason:
                _log.info("%s: %s", layer.label, layer.reason)
        return QuantizationReport(tuple(self.layers), tuple(self.notes), self.samples, self.output_sqnr)

    def _without_data(self, ops: list[tuple[str, Op]], done: int, total: int) -> dict[int, LayerReport]:
        """Quantize layers one by one, or several at a time with an executor."""
        if self.executor is not None:
            self._ahead(ops)
        reports = {}
        for position, (subgraph, op) in enumerate(ops, done):
            self._tell(position, total, op.name)
            reports[id(op)] = self._weights(subgraph, op)
        return reports

    def _ahead(self, ops: list[tuple[str, Op]]) -> None:
        """Give all layers to the executor."""
        assert self.executor is not None
        for subgraph, op in ops:
            config, stored = self.config.layer(subgraph, op.name), describe(op)
            if not config.coded or self._untouched(op, stored):
                continue
            block, _ = _block(config, stored, op)
            options = self._options(config, None if block is None else block * stored.kernel, stored)
            power = self._power(config, op, stored)
            taps = self._taps(config, stored)
            self._futures[id(op)] = self.executor.submit(
                _quantize, self._matrix(config, op), options, power, taps
            )

    def _calibrate(self, reference: Model, done: int, total: int) -> dict[int, LayerReport]:
        """Quantize the layers of the main graph with data."""
        from mnnq.quantization.calibrated_run import CalibratedRun

        assert self.calib is not None
        run = CalibratedRun(
            reference, self.model, self.calib, self.config, state=self.state, executor=self.executor,
            free=lambda op: self._weights("", op),
            choose=self._coded_layer,
            tell=lambda position, name: self._tell(done + position, total, name),
        )  # fmt: skip
        reports = run.run()
        self.samples, self.output_sqnr = run.samples, run.output_sqnr
        return reports

    def _correct_on_generated(self, reference: Model, limits: tuple[float, float]) -> None:
        from mnnq.quantization.generated import correct_on_generated

        found = correct_on_generated(self.model, reference, *limits, threads=self.config.threads)
        what = (
            "biases were corrected on generated images, not on data"
            if found.kept
            else "biases were left alone: correcting them on generated images does not help enough"
        )
        self.notes.append(
            f"{what} (1/f noise from {limits[0]:g} to {limits[1]:g}; outputs on others of that kind: "
            f"{found.sqnr_before:.1f} dB before, {found.sqnr_after:.1f} dB after)"
        )

    def _coded_layer(self, op: Op) -> tuple[LayerConfig, int | None, str | None] | None:
        """What codes a layer of the main graph is to get: settings, block, and why not the one asked for.

        None where it gets none: it stays as it is, or becomes half floats.
        """
        config, stored = self.config.layer("", op.name), describe(op)
        if not config.coded or self._untouched(op, stored):
            return None
        block, reason = _block(config, stored, op)
        if stored.storage is Storage.CODES:
            if _same(stored, config, block):
                return None
            self._rounded_twice += 1
        return config, block, reason

    def _untouched(self, op: Op, stored: StoredWeights) -> bool:
        """Whether a layer's weights are not to be changed, whatever is asked."""
        return (
            id(op) in self.int8
            or stored.storage in (Storage.INPUT, Storage.OLD_INT8)
            or op.type not in WEIGHT_OPS
            or "symmetricQuan" in op.params
        )

    @staticmethod
    def _matrix(config: LayerConfig, op: Op) -> Any:
        """Weights of a layer; ``auto`` clears dead rows, so that the sparse encoding can leave them out."""
        matrix = float_weights(op)
        return without_dead_rows(matrix) if config.method is WeightMethod.AUTO else matrix

    def _power(self, config: LayerConfig, op: Op, stored: StoredWeights) -> Any:
        """Mean squares of a layer's inputs where they are known and ``auto`` counts them, else None."""
        power = self._powers.get(id(op))
        wanted = config.method is WeightMethod.AUTO and config.bits <= GAIN_BITS
        return power if wanted and power is not None and len(power) == stored.shape[1] else None

    @staticmethod
    def _taps(config: LayerConfig, stored: StoredWeights) -> int:
        """Weights of a kernel where ``auto`` lets their errors cancel, else 1."""
        return stored.kernel if config.method is WeightMethod.AUTO else 1

    def _options(self, config: LayerConfig, block: int | None, stored: StoredWeights) -> dict[str, Any]:
        """Arguments of the native quantizer."""
        method, gain = without_data(config, normalized=self._normalized)
        return {
            "bits": config.bits,
            "symmetric": config.symmetric,
            "block": block,
            "method": method,
            "gain_correction": gain,
            "fp16_scales": config.fp16_scales,
            "sparse": config.sparse or config.method is WeightMethod.AUTO,
            "threads": self.config.threads,
        }

    def _note_lost_weights(self) -> None:
        """Say which layers hardly resemble themselves: too few bits, or weights too small for the method."""
        lost = [layer for layer in self.layers if layer.sqnr_db is not None and layer.sqnr_db < MIN_SQNR_DB]
        if not lost:
            return
        worst = min(lost, key=lambda layer: layer.sqnr_db or 0.0)
        count = "1 layer has" if len(lost) == 1 else f"{len(lost)} layers have"
        self.notes.append(
            f"{count} weights worse than {MIN_SQNR_DB:g} dB (worst: {worst.label}, {worst.sqnr_db:.1f} dB): the model "
            "will hardly work; use more bits, smaller blocks, or --method search"
        )

    # -- what there is

    def _tables(self) -> list[embedding.Table]:
        return [
            table
            for name, ops, outs in self.model.graphs()
            for table in embedding.find_tables(ops, name, outs)
        ]

    def _check_names(self, weight_ops: list[tuple[str, Op]], tables: list[embedding.Table]) -> None:
        layers = [(subgraph, op.name) for subgraph, op in weight_ops]
        layers += [(table.subgraph, table.const.name) for table in tables]
        unmatched = [override.pattern for override in self.config.unmatched(layers)]
        self._unmatched(unmatched, [name for _, name in layers])

    def _unmatched(self, patterns: list[str], names: list[str]) -> None:
        if not patterns:
            return
        source = None if self.params is None or self.params.path is None else str(self.params.path)
        what = ", ".join(repr(pattern) for pattern in patterns[:5]) + (" ..." if len(patterns) > 5 else "")
        if self.config.allow_unmatched:
            self.notes.append(f"no layer matches {what}")
            return
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        msg = f"no layer matches {what}; layers: {some} (`mnnq info` lists all; --allow-unmatched goes on)"
        raise ConfigError(msg, file=source)

    def _apply_params(self, params: ParamsFile) -> None:
        self.int8, unmatched = apply_int8(self.model, params.int8_layers)
        names = [op.outputs[0] for op in self.model.ops if op.type in ("Convolution", "ConvolutionDepthwise")]
        self._unmatched(unmatched, names)
        if params.uuid is not None:
            self.model.net["mnn_uuid"] = params.uuid

    def _tell(self, done: int, total: int, name: str) -> None:
        if self.progress is not None:
            self.progress(done, total, name)

    # -- convolutions

    def _weights(self, subgraph: str, op: Op) -> LayerReport:
        try:
            return self._weights_checked(subgraph, op)
        except MnnqError as error:
            error.node = error.node or op.name
            raise

    def _weights_checked(self, subgraph: str, op: Op) -> LayerReport:
        config = self.config.layer(subgraph, op.name)
        stored = describe(op)
        if id(op) in self.int8:
            done = self.int8[id(op)]
            return replace(
                _keep(op, subgraph, stored, config, None, "int8"),
                bytes_before=done.bytes_before,
                sqnr_db=_decibel(done.error, done.power),
                relative_rms=_relative(done.error, done.power),
            )
        if stored.storage is Storage.INPUT:
            return _keep(op, subgraph, stored, config, "its weights are computed at run time")
        if op.type not in WEIGHT_OPS or stored.storage is Storage.OLD_INT8 or "symmetricQuan" in op.params:
            return _keep(op, subgraph, stored, config, "it is an int8 layer with activation scales; kept")
        if not config.coded:
            return self._uncoded(subgraph, op, stored, config)
        block, reason = _block(config, stored, op)
        if stored.storage is Storage.CODES and _same(stored, config, block):
            return _keep(op, subgraph, stored, config, reason)
        if stored.storage in (Storage.CODES, Storage.HALF):
            self._rounded_twice += stored.storage is Storage.CODES
        options = self._options(config, None if block is None else block * stored.kernel, stored)
        future = self._futures.pop(id(op), None)
        power, taps = self._power(config, op, stored), self._taps(config, stored)
        if future is None:
            quant, stats = _quantize(self._matrix(config, op), options, power, taps)
        else:
            quant, stats = future.result()
        op.params["quanParameter"] = quant
        op.params.pop("weight", None)
        if quant.get("type") != 2:
            op.params.pop("sparseParameter", None)
        return LayerReport(
            name=op.name,
            op_type=str(op.type),
            shape=stored.shape,
            bits=config.bits,
            scheme=config.scheme,
            block_asked=config.block,
            block_used=block,
            method=_method_label(options, power, taps),
            bytes_before=stored.size,
            bytes_after=quant_size(quant),
            sqnr_db=stats["sqnr_db"],
            relative_rms=stats["relative_rms"],
            reason=reason,
            subgraph=subgraph,
            kernel=_kernel(op),
        )

    def _uncoded(self, subgraph: str, op: Op, stored: StoredWeights, config: LayerConfig) -> LayerReport:
        """A layer asked to be float (bits 0) or half floats (bits 16)."""
        if config.bits == 0 or stored.storage is Storage.HALF:
            return _keep(op, subgraph, stored, config, None)
        if stored.storage is Storage.CODES:
            return _keep(
                op, subgraph, stored, config, "it is quantized already; half floats would only be larger"
            )
        matrix = float_weights(op).astype(np.float32, copy=False)
        if not fits_half(matrix):
            reason = f"a weight is not finite or above {MAX_HALF:.0f}, the largest half float"
            return _keep(op, subgraph, stored, config, reason)
        error, power = half_error(matrix)
        op.params["quanParameter"] = _native.pack_half(matrix)
        for key in ("weight", "sparseParameter"):
            op.params.pop(key, None)
        return LayerReport(
            name=op.name,
            op_type=str(op.type),
            shape=stored.shape,
            bits=16,
            scheme=None,
            block_asked=None,
            block_used=None,
            method="fp16",
            bytes_before=stored.size,
            bytes_after=2 * matrix.size,
            sqnr_db=_decibel(error, power),
            relative_rms=_relative(error, power),
            subgraph=subgraph,
            kernel=_kernel(op),
        )


def _quantize(
    matrix: Any, options: dict[str, Any], power: Any = None, taps: int = 1
) -> tuple[dict[str, Any], _native.WeightStats]:
    """Quantize one matrix; a function of a module, so that it can run in another process."""
    if power is None and taps == 1:
        return _native.quantize_weights(aligned(matrix), **options)
    common = {key: options[key] for key in ("bits", "symmetric", "block", "fp16_scales", "threads")}
    weight = np.require(matrix, np.float32, ["C", "A"])
    if power is None:
        found = _native.quantize_correlated(
            weight,
            taps=taps,
            correlation=KERNEL_CORRELATION,
            gain_correction=options["gain_correction"],
            **common,
        )
    else:
        found = _native.quantize_weighted(weight, np.ascontiguousarray(power), **common)
    minimum = None if found["min"] is None else found["min"].reshape(-1)
    quant = _native.encode_weights(
        found["codes"].reshape(-1),
        found["scale"].reshape(-1),
        minimum,
        options["bits"],
        fp16_scales=options["fp16_scales"],
        sparse=options["sparse"],
    )
    return quant, found["stats"]


def _method_label(options: Mapping[str, Any], power: Any, taps: int) -> str:
    """What the report calls the method of a layer without data."""
    if power is not None:
        return "search, by input power"
    return str(options["method"]) if taps == 1 else f"{options['method']}, by kernel"


def without_dead_rows(matrix: Any) -> Any:
    """Weights with dead output channels cleared: those whose largest weight is below `DEAD` of the layer's largest.

    Training with weight decay leaves such channels behind, down to denormal numbers.
    """
    largest = np.abs(matrix).max(axis=1)
    dead = largest < DEAD * largest.max(initial=0.0)
    if not dead.any():
        return matrix
    cleared = np.array(matrix)
    cleared[dead] = 0
    return cleared


def _check_data(config: WeightConfig, calib: Any, state: Path | None) -> None:
    """Check that data are there where they are needed, and real.

    Raises
    ------
    ConfigError
        They are not.
    """
    methods = [config.method, *(o.changes["method"] for o in config.overrides if "method" in o.changes)]
    if calib is None and WeightMethod.GPTQ in [WeightMethod.parse(method) for method in methods]:
        msg = "gptq needs calibration data; give 8 to 128 real samples, or use search"
        raise ConfigError(msg, key="method")
    if calib is None and state is not None:
        msg = "a folder for unfinished runs goes with calibration data"
        raise ConfigError(msg, key="state")
    if getattr(calib, "is_generated", False):
        msg = "the data are made up: weights fitted to them would be worse; give real samples"
        raise ConfigError(msg, key="calib")


def _check_effect(config: WeightConfig) -> None:
    """Check that what is asked of codes has codes to work on.

    Raises
    ------
    ConfigError
        No layer gets codes, and a field that only matters for codes is set.
    """
    if config.coded or any(2 <= override.changes.get("bits", 0) <= 8 for override in config.overrides):
        return
    for name, default in CODE_FIELDS.items():
        if getattr(config, name) != default:
            kind = "half floats" if config.bits == 16 else "float"
            msg = f"it does nothing here: no layer gets codes of 2 to 8 bits, weights become or stay {kind}"
            raise ConfigError(msg, key=name)


def _with_params(config: WeightConfig, params: ParamsFile) -> WeightConfig:
    return replace(config, overrides=(*config.overrides, *params.overrides()))


def _keep(
    op: Op,
    subgraph: str,
    stored: StoredWeights,
    config: LayerConfig,
    reason: str | None,
    method: str | None = "kept",
) -> LayerReport:
    """Report a layer that stays as it is."""
    return LayerReport(
        name=op.name,
        op_type=str(op.type),
        shape=stored.shape,
        bits=stored.bits,
        scheme=stored.scheme,
        block_asked=config.block,
        block_used=stored.block,
        method=method if stored.scheme else None,
        bytes_before=stored.size,
        bytes_after=stored.size,
        reason=reason,
        subgraph=subgraph,
        kernel=_kernel(op),
    )


def _kernel(op: Op) -> tuple[int, ...]:
    common = op.params.get("common", {})
    return int(common.get("kernelX", 1)), int(common.get("kernelY", 1))


def _block(config: LayerConfig, stored: StoredWeights, op: Op) -> tuple[int | None, str | None]:
    """Block to use, and why it is not the one asked for."""
    if config.block is None:
        return None, None
    group = int(op.params.get("common", {}).get("group", 1))
    if group > 1 and op.type == "Convolution":
        return None, f"a convolution of {group} groups cannot have blocks: one block per output channel"
    block = choose_block(config.block, stored.channels)
    return block, block_reason(config.block, block, stored.channels)


def _same(stored: StoredWeights, config: LayerConfig, block: int | None) -> bool:
    """Whether the weights are what is asked for already."""
    return (
        stored.bits == config.bits
        and stored.symmetric == config.symmetric
        and stored.block == block
        and stored.fp16_scales == config.fp16_scales
    )


def _decibel(error: float, power: float) -> float:
    return float("inf") if error == 0 else float(10 * np.log10(power / error))


def _relative(error: float, power: float) -> float:
    return float(np.sqrt(error / power)) if power else 0.0
