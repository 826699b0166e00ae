"""Offline int8 quantization on the command line: options, the job, what is printed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mnnq.cli import common

if TYPE_CHECKING:
    from mnnq.data import Dataset
    from mnnq.ir.model import Model
    from mnnq.quantization.accuracy_guard import GuardProgress, GuardResult
    from mnnq.report.tables import Table

_F = TypeVar("_F", bound=Callable[..., Any])

#: Samples that calibrate by default: more change ranges by little.
DEFAULT_SAMPLES = 128


class DropOption(common.ParamBase):
    """``0.5%`` or ``0.005``."""

    name = "drop"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text of the option."""
        from mnnq.errors import ConfigError
        from mnnq.quantization.accuracy_guard import parse_drop

        try:
            return parse_drop(value)
        except ConfigError as error:
            self.fail(error.message, param, ctx)


def int8_options(function: _F) -> _F:
    """Add the options of `Int8Options`."""
    own = (
        click.option(
            "--int8", is_flag=True,
            help="Static int8: weights and activations, ranges from the data of --calib. The default when --calib is given "
            "without an option on weights.",
        ),
        click.option(
            "--range", "range_method", type=click.Choice(["mse", "minmax", "percentile", "kl", "admm", "ema"]),
            help="How ranges of activations are chosen (int8). [default: mse]",
        ),
        click.option("--symmetric-activations", is_flag=True, help="Zero points of 0 (int8)."),
    )  # fmt: skip
    return _added(own, guard_options(check_options(function)))


def guard_options(function: _F) -> _F:
    """Add the options that keep a metric."""
    return _added(
        (
            click.option(
                "--max-drop", type=DropOption(), metavar="DROP",
                help="Leave the smallest set of layers float that keeps the metric within this drop: 0.5% or 0.005.",
            ),
            click.option(
                "--metric", metavar="NAME",
                help="accuracy (top-1, needs labels), agreement (with the float model), module:function or "
                "file.py:function taking (outputs, sample). [default: accuracy with labels, else agreement]",
            ),
            click.option(
                "--labels", type=click.Path(path_type=Path),
                help="File with a line per image, name and class, for --metric. [default: names of sub-folders]",
            ),
            click.option(
                "--eval", "eval_data", type=click.Path(path_type=Path), metavar="DIR|FILE",
                help="Data for the metric, read as those of --calib. [default: those of --calib]",
            ),
            click.option(
                "--fallback", type=click.Choice(["float", "16", "8"]),
                help="What --max-drop leaves layers at when weights alone are quantized: float, or 16 or 8 bits. "
                "[default: float]",
            ),
            click.option(
                "--max-trials", type=click.IntRange(1), help="Models that --max-drop tries at most. [default: 64]"
            ),
            click.option(
                "--time-limit", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
                help="Time after which --max-drop takes the best model so far.",
            ),
        ),
        function,
    )  # fmt: skip


def check_options(function: _F) -> _F:
    """Add the options of the check before writing."""
    return _added(
        (
            click.option(
                "--min-sqnr", type=float, metavar="DB",
                help="Refuse a model whose output has less SQNR on the data (int8).",
            ),
            click.option("--fix", is_flag=True, help="Leave the worst layers float until the check passes (int8)."),
            click.option("--force", is_flag=True, help="Write the model although the check fails (int8)."),
        ),
        function,
    )  # fmt: skip


def _added(decorators: tuple[Callable[[Any], Any], ...], function: _F) -> _F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@dataclass(frozen=True)
class Int8Options:
    """Values of `int8_options`."""

    int8: bool = False
    range_method: str | None = None
    symmetric_activations: bool = False
    max_drop: float | None = None
    metric: str | None = None
    eval_data: Path | None = None
    fallback: str | None = None
    max_trials: int | None = None
    time_limit: float | None = None
    min_sqnr: float | None = None
    fix: bool = False
    force: bool = False

    #: Names of the fields that go with `max_drop` only.
    GUARD = ("metric", "eval_data", "fallback", "max_trials", "time_limit")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Int8Options:
        """Take the values out of a command's options; absent ones have their defaults.

        Raises
        ------
        ConfigError
            An option goes with ``--max-drop`` only.
        """
        from mnnq.errors import ConfigError

        names = [entry.name for entry in fields(cls) if entry.name in options]
        result = cls(**{name: options.pop(name) for name in names})
        if result.max_drop is None:
            for name in cls.GUARD:
                if getattr(result, name) is not None:
                    msg = f"{_flag(name)} goes with --max-drop, which says what is to be kept"
                    raise ConfigError(msg)
        return result

    @property
    def fallback_bits(self) -> int:
        """Bits of the weights of layers that are left out; 0 for float."""
        return 0 if self.fallback in (None, "float") else int(self.fallback or 0)

    def given_for_int8(self) -> list[str]:
        """Flags that concern static int8 only."""
        names = ("range_method", "symmetric_activations", "min_sqnr", "fix", "force")
        return [_flag(name) for name in names if getattr(self, name) not in (None, False)]

    def config(self, **changes: Any) -> Any:
        """The configuration of the quantizer."""
        from mnnq.quantization.offline import OfflineConfig

        options: dict[str, Any] = {**changes, "fix": self.fix, "force": self.force}
        if self.range_method is not None:
            options["feature_method"] = self.range_method
        if self.symmetric_activations:
            options["symmetric"] = True
        if self.min_sqnr is not None:
            options["min_sqnr_db"] = self.min_sqnr
        return OfflineConfig(**options)


def _flag(name: str) -> str:
    return {"range_method": "--range", "eval_data": "--eval"}.get(name, "--" + name.replace("_", "-"))


def run_offline(
    source: Path,
    output: Path,
    network: Model,
    dataset: Dataset,
    config: Any,
    options: Int8Options,
    *,
    evaluation: Dataset | None = None,
    as_json: bool = False,
    every_layer: bool = True,
    external_weights: bool = False,
) -> None:
    """Quantize to static int8, keep the metric if asked, write and report.

    Raises
    ------
    QuantizationError
        The quantized model fails the check.
    """
    from mnnq.errors import QuantizationError

    started = time.monotonic()
    try:
        result, found = _quantize(network, dataset, config, options, evaluation or dataset)
    except QuantizationError as error:  # the advice is for callers of the function
        error.message = error.message.replace("fix=True", "--fix").replace("force=True", "--force")
        raise
    written = result.model.save(output, external_weights=external_weights)
    seconds = time.monotonic() - started
    for line in result.report.notes:
        common.note(line)
    if as_json:
        record = dict(common.report_dict(source, output, written, result.report, seconds))
        common.emit_json({**record, "data": dataset.description, **guard_dict(found)})
        return
    if every_layer:
        common.print_table(offline_table(result.report))
    _print_summary(source, output, written, result.report, dataset, seconds)
    if found is not None:
        print_guard(found)


def _quantize(
    network: Model, dataset: Dataset, config: Any, options: Int8Options, evaluation: Dataset
) -> tuple[Any, GuardResult | None]:
    """Quantize; with ``--max-drop`` as many layers as keep the metric."""
    from mnnq.quantization import offline

    stage = _StageLine()
    if options.max_drop is None:
        return offline.quantize_offline(network, dataset, config, progress=stage), None
    statistics = offline.calibrate(network, dataset, config, progress=stage)
    quiet = replace(config, force=True, fix=False, check_samples=0)

    def build(skip: frozenset[str]) -> Any:
        tried = replace(quiet, skip=(*config.skip, *sorted(skip)))
        return offline.quantize_calibrated(network, statistics, dataset, tried).model

    layers = offline.quantize_calibrated(network, statistics, dataset, quiet).report.integer
    found = search_layers(network, build, [layer.name for layer in layers], dataset, evaluation, options)
    # The model that the search has judged, and no other.
    kept = replace(
        config, skip=(*config.skip, *found.skip), float_share=0.0, sequential=bool(config.sequential)
    )
    return offline.quantize_calibrated(network, statistics, dataset, kept, progress=stage), found


def _print_summary(
    source: Path, output: Path, written: int, report: Any, dataset: Dataset, seconds: float
) -> None:
    from mnnq.report.tables import decibel, size

    # Conversions of the layout are no layers to people.
    layers = [layer for layer in report.layers if layer.op_type != "ConvertTensor"]
    integer = sum(layer.integer for layer in layers)
    click.echo(f"\n{integer} of {len(layers)} layers compute in int8; data: {dataset.description}")
    if report.fixed:
        click.echo(f"left float for accuracy: {', '.join(report.fixed)}")
    click.echo(f"{100 * report.integer_share:.1f} % of the multiply-adds of layers with weights run in int8")
    for out in report.outputs:
        click.echo(f"output {out.name!r}: cosine {out.cosine:.6f}, SQNR {decibel(out.sqnr_db)} dB")
    before = size(source.stat().st_size)
    long = [f"{stage} {spent:.1f}" for stage, spent in report.seconds.items() if spent >= 0.1 and seconds > 1]
    stages = f" ({', '.join(long)})" if long else ""
    click.echo(f"{output}: {size(written)} (input {before}), {seconds:.1f} s{stages}")


def offline_table(report: Any) -> Table:
    """Per layer: whether it computes in int8, error of weights and output, overflow, why it stays float."""
    from mnnq.report.tables import Table, decibel

    rows = tuple(
        (
            layer.name,
            layer.op_type,
            "int8" if layer.integer else "float",
            decibel(layer.weight_sqnr_db),
            "-" if layer.cosine is None else f"{layer.cosine:.6f}",
            decibel(layer.sqnr_db),
            "-" if layer.overflow is None else f"{100 * layer.overflow:.3f}",
            layer.reason or "",
        )
        for layer in report.layers
    )
    columns = ("layer", "type", "runs in", "weights dB", "cosine", "SQNR dB", "overflow %", "why float")
    return Table("", columns, rows, frozenset({3, 4, 5, 6}))


def search_layers(
    network: Model,
    build: Callable[[frozenset[str]], Model],
    layers: list[str],
    dataset: Dataset,
    evaluation: Dataset,
    options: Int8Options,
) -> GuardResult:
    """Search for the layers to leave out, and say how it goes."""
    from mnnq.quantization.accuracy_guard import GuardLimits, guard, rank_by_error
    from mnnq.quantization.metrics import make_evaluator

    assert options.max_drop is not None
    evaluate = make_evaluator(evaluation, options.metric)
    limits = GuardLimits(options.max_trials or GuardLimits.max_trials, options.time_limit)
    few = dataset.subset(_RANKING_SAMPLES)
    result = guard(
        build,
        evaluate,
        network,
        options.max_drop,
        lambda quantized: rank_by_error(network, quantized, few, layers),
        limits=limits,
        progress=_show_trial,
    )
    if not result.met:
        common.warn(
            f"{evaluate.name} falls from {result.reference:.4f} to {result.best.metric:.4f} at best, more than asked; "
            "the best model found is written"
        )
    if result.stopped is not None:
        common.note(f"the search for layers ended early: {result.stopped}")
    return result


#: Samples that rank layers by the noise they add.
_RANKING_SAMPLES = 8


def _show_trial(state: GuardProgress) -> None:
    common.note(
        f"trial {state.done} of at most {state.expected}: best metric {state.best.metric:.4f} with "
        f"{len(state.best.skip)} layers left out, {'kept' if state.best.met else 'not kept'}; "
        f"about {state.seconds_left:.0f} s left"
    )


def guard_dict(result: GuardResult | None) -> dict[str, Any]:
    """What ``--json`` says of the search."""
    if result is None:
        return {}
    return {
        "metric": {
            "reference": result.reference,
            "target": result.target,
            "value": result.best.metric,
            "met": result.met,
            "skipped": list(result.skip),
            "trials": len(result.trials),
            "stopped": result.stopped,
        }
    }


def print_guard(result: GuardResult, bits: int = 0) -> None:
    """Print the outcome of the search; `bits` are those of the layers left out, 0 for float."""
    names = ", ".join(result.skip) or "none"
    click.echo(
        f"metric {result.reference:.4f} -> {result.best.metric:.4f} ({'kept' if result.met else 'NOT kept'}); "
        f"layers left {f'at {bits} bits' if bits else 'float'}: {names}"
    )


class _StageLine:
    """Progress of the stages, one line each."""

    def __init__(self) -> None:
        self._lines: dict[str, common.ProgressLine] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are done."""
        line = self._lines.setdefault(stage, common.ProgressLine("unit", stage))
        line(done, total, "")
