"""``mnnq quant``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mnnq.cli import calibration, common, offline

#: Options that say how weights are quantized: with them the result is not static int8, unless ``--int8`` says so.
_WEIGHT_OPTIONS = {
    "bits": "--bits",
    "block": "--block",
    "symmetric": "--symmetric",
    "method": "--method",
    "hqq": "--hqq",
    "gain_correction": "--gain-correction",
    "bias_correction": "--bias-correction",
    "state": "--state",
    "generated_range": "--generated-range",
    "no_generated_inputs": "--no-generated-inputs",
    "fp16": "--fp16",
    "fp16_scales": "--fp16-scales",
    "sparse": "--sparse",
    "no_embeddings": "--no-embeddings",
    "layers": "--layer",
    "params": "--params",
    "save_params": "--save-params",
    "allow_unmatched": "--allow-unmatched",
}

_FIELDS = {"bits": int, "block": int, "method": str, "scheme": str}


class LayerOption(common.ParamBase):
    """``PATTERN=BITS`` or ``PATTERN=key:value,...`` with keys bits, block, method, scheme."""

    name = "pattern=settings"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        pattern, _, settings = str(value).rpartition("=")
        if not pattern or not settings:
            self.fail(f"{value!r} is not of the form pattern=8 or pattern=bits:8,block:32", param, ctx)
        changes: dict[str, Any] = {}
        for part in settings.split(","):
            key, colon, text = part.partition(":")
            key, text = (key, text) if colon else ("bits", key)
            if key not in _FIELDS:
                self.fail(f"{value!r}: unknown key {key!r}; use {', '.join(_FIELDS)}", param, ctx)
            try:
                changes[key] = _FIELDS[key](text)
            except ValueError:
                self.fail(f"{value!r}: {key} {text!r} is no whole number", param, ctx)
        scheme = changes.pop("scheme", None)
        if scheme is not None:
            if scheme not in ("symmetric", "asymmetric"):
                self.fail(f"{value!r}: scheme is symmetric or asymmetric", param, ctx)
            changes["symmetric"] = scheme == "symmetric"
        return pattern, changes


@click.command(
    name="quant",
    epilog=common.example(
        "mnnq quant mobilenet.onnx --bits 4 --block 32 --method search -o mobilenet-w4.mnn"
    ),
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write. [default: MODEL-w<bits>.mnn]"
)
@click.option("-b", "--bits", type=int, help="Bits per weight: 2 to 8, or 16 for half floats. [default: 8]")
@click.option(
    "--block",
    type=int,
    help="Input channels that share a scale (multiple of 16). [default: all of an output channel]",
)
@click.option(
    "--symmetric/--asymmetric", default=False, help="Scale only, or scale and minimum. [default: asymmetric]"
)
@click.option(
    "--method", type=click.Choice(["rtn", "hqq", "hqq_ref", "search", "gptq", "auto"]), default="rtn", show_default=True,
    help="How weights are chosen: MNN's rounding, MNN's HQQ, HQQ as published, least squared error; on --calib data: "
    "error compensation, or the best of all per layer (auto).",
)  # fmt: skip
@click.option("--hqq", is_flag=True, help="Same as --method hqq.")
@click.option("--gain-correction", is_flag=True, help="Refit each output channel to gain 1 and mean error 0.")
@click.option(
    "--bias-correction/--no-bias-correction", default=True,
    help="With --calib: give every output channel the mean of the float model.  [default: on]",
)  # fmt: skip
@click.option(
    "--generated-range", type=(float, float), metavar="LOW HIGH",
    help="Without data: correct biases on made-up images with values from LOW to HIGH, with --method auto fit weights to "
    "them, if that helps.",
)  # fmt: skip
@click.option(
    "--no-generated-inputs", is_flag=True,
    help="Without data: --method auto does not fit weights to made-up inputs (random tokens, noise).",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep finished layers of a run with --calib there; the same command continues an interrupted run.",
)  # fmt: skip
@click.option("--fp16", is_flag=True, help="Half floats: all weights without --bits, else what stays float.")
@click.option("--fp16-scales", is_flag=True, help="Store scales as half floats.")
@click.option("--sparse", is_flag=True, help="Use the sparse encoding where it is smaller.")
@click.option("--no-embeddings", is_flag=True, help="Leave lookup tables float.")
@click.option(
    "--layer", "layers", type=LayerOption(), multiple=True, metavar="PATTERN=SETTINGS",
    help="Other settings for layers by name (* and ? match): 'head*=8', 'conv1=bits:4,block:32'. Repeatable.",
)  # fmt: skip
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave layers float. Repeatable.")
@click.option(
    "--params", type=click.Path(path_type=Path), help="Compression parameter file (.json or binary) to apply."
)
@click.option(
    "--save-params", type=click.Path(path_type=Path), help="Write what was done as a parameter file."
)
@click.option(
    "--allow-unmatched", is_flag=True, help="Settings that match no layer are a warning, not an error."
)
@click.option("--external-weights", is_flag=True, help="Put weights into <output>.weight.")
@click.option("--threads", type=int, help="Threads. [default: all CPUs]")
@calibration.data_options("--calib", default_samples=offline.DEFAULT_SAMPLES)
@offline.int8_options
@common.qdq_option
@common.input_shapes
@common.json_option
@common.verbosity
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Quantize MODEL (ONNX or .mnn) and write a .mnn file: its weights, or with --calib all of it to static int8.

    Without data, weights become codes of --bits bits. With --calib, layers compute in int8 with ranges found on the data;
    with --calib and an option on weights, weights become codes that are fitted to the data (--method gptq or auto), biases
    are corrected on them, and --max-drop can use them.
    """
    asked = [
        flag
        for name, flag in _WEIGHT_OPTIONS.items()
        if ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    ]
    data = calibration.DataOptions.of(options)
    chosen = offline.Int8Options.of(options)
    if _static_int8(data, chosen, asked):
        _run_int8(data, chosen, **options)
    else:
        _run(data, chosen, **options)


def _static_int8(data: calibration.DataOptions, chosen: offline.Int8Options, asked: list[str]) -> bool:
    """Whether static int8 is asked for.

    Raises
    ------
    ConfigError
        Options contradict each other, or do nothing.
    """
    from mnnq.errors import ConfigError

    if data.labels is not None and chosen.max_drop is None:
        msg = "--labels goes with --max-drop, which says what is to be kept"
        raise ConfigError(msg)
    if data.path is None:
        data.refuse_all("weights alone; give the data with --calib")
        if data.samples is not None:
            msg = "--samples goes with --calib, which names the data"
            raise ConfigError(msg)
        for flag in (["--int8"] if chosen.int8 else []) + chosen.given_for_int8():
            msg = f"{flag} needs real data; give them with --calib"
            raise ConfigError(msg)
        if chosen.max_drop is not None:
            msg = "--max-drop needs real data; give them with --calib"
            raise ConfigError(msg)
        return False
    if chosen.int8:
        wrong = [flag for flag in asked if flag not in ("--bits", "--allow-unmatched")]
        if wrong:
            msg = f"{wrong[0]} is for weights alone and does nothing with --int8"
            raise ConfigError(msg)
        return True
    if not asked:
        return True
    for flag in chosen.given_for_int8():
        msg = f"{flag} is for static int8, but {asked[0]} asks for weights alone; add --int8 or leave {asked[0]} out"
        raise ConfigError(msg)
    return False


def _run_int8(
    data: calibration.DataOptions,
    chosen: offline.Int8Options,
    *,
    model: Path,
    output: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    external_weights: bool,
    qdq: str,
    as_json: bool,
    bits: int | None,
    skip: tuple[str, ...],
    threads: int | None,
    **_: Any,
) -> None:
    from mnnq import api
    from mnnq.errors import ConfigError

    if chosen.fallback_bits:
        msg = f"{chosen.fallback}: static int8 leaves layers float"
        raise ConfigError(msg, key="--fallback")
    changes: dict[str, Any] = {"skip": skip, "threads": threads}
    if bits is not None:
        changes["bits"] = bits
    config = chosen.config(**changes)
    common.check_source(model)
    output = output or model.with_name(f"{model.stem}-int8.mnn")
    common.check_output(output, {"the input": model, "the data": data.path, "the preview": data.preview})
    network = api.load(model, input_shapes=dict(shapes), qdq=qdq)
    common.tell_imported(network)
    dataset = _calibration(data, chosen).open(network, default_samples=offline.DEFAULT_SAMPLES)
    offline.run_offline(
        model,
        output,
        network,
        dataset,
        config,
        chosen,
        evaluation=_evaluation(data, chosen, network),
        as_json=as_json,
        external_weights=external_weights,
    )


def _calibration(data: calibration.DataOptions, chosen: offline.Int8Options) -> calibration.DataOptions:
    """The data to calibrate on: labels belong to those of ``--eval`` when there are such."""
    return data if chosen.eval_data is None else replace(data, labels=None)


def _evaluation(data: calibration.DataOptions, chosen: offline.Int8Options, network: Any) -> Any:
    """The data for the metric; None for those of ``--calib``."""
    if chosen.eval_data is None:
        return None
    return replace(data, path=chosen.eval_data, samples=None, shuffle=None, preview=None).open(network)


def _run(
    data: calibration.DataOptions,
    chosen: offline.Int8Options,
    *,
    model: Path,
    output: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    params: Path | None,
    save_params: Path | None,
    state: Path | None,
    generated_range: tuple[float, float] | None,
    no_generated_inputs: bool,
    external_weights: bool,
    qdq: str,
    as_json: bool,
    **options: Any,
) -> None:
    started = time.monotonic()
    from mnnq.quantization.params_file import read_params

    config = _config(options)
    params_file = None if params is None else read_params(params)
    common.check_source(model)
    output = output or default_output(model, config.bits)
    common.check_output(output, {"the input": model, "the parameter file": params})
    if save_params is not None:
        common.check_output(
            save_params, {"the input": model, "the output": output}, what="the file of --save-params"
        )
    from mnnq import api
    from mnnq.quantization.weight import quantize_model

    network = api.load(model, input_shapes=dict(shapes), qdq=qdq)
    common.tell_imported(network)
    samples = None
    if data.path is not None:
        samples = _calibration(data, chosen).open(network, default_samples=offline.DEFAULT_SAMPLES)
    found = None
    if chosen.max_drop is not None:
        found = _keep_metric(data, chosen, network, config, params_file, samples)
        config = _leaving_out(config, frozenset(found.skip), chosen.fallback_bits)
    progress = common.ProgressLine()
    report = quantize_model(
        network,
        config,
        params=params_file,
        progress=progress,
        calib=samples,
        state=state,
        generated_range=generated_range,
        generated_inputs=not no_generated_inputs,
    )
    written = network.save(output, external_weights=external_weights)
    if save_params is not None:
        from mnnq.quantization.params_from_report import params_from_report

        params_from_report(report).save(save_params)
    seconds = time.monotonic() - started
    common.warn_all(report.warnings())
    if as_json:
        record = common.report_dict(model, output, written, report, seconds)
        common.emit_json({**record, **common.imported_dict(network), **offline.guard_dict(found)})
        return
    print_result(model, output, written, report, seconds)
    if found is not None:
        offline.print_guard(found, chosen.fallback_bits)


def _keep_metric(
    data: calibration.DataOptions,
    chosen: offline.Int8Options,
    network: Any,
    config: Any,
    params: Any,
    samples: Any,
) -> Any:
    """Search for the layers to leave float."""
    from mnnq import api

    dataset = _calibration(data, chosen).open(network)

    def build(skip: frozenset[str]) -> Any:
        settings = _leaving_out(config, skip, chosen.fallback_bits)
        return api.quantize_weights(network, settings, params_file=params, calib=samples)

    first = api.quantize_weights(network, config, params_file=params, calib=samples)
    layers = [layer.name for layer in first.report.quantized]
    evaluation = _evaluation(data, chosen, network) or dataset
    return offline.search_layers(network, build, layers, dataset, evaluation, chosen)


def _leaving_out(config: Any, skip: frozenset[str], bits: int) -> Any:
    """The configuration with some layers left at `bits`, 0 for float."""
    from mnnq.quantization.config import Override

    extra = tuple(Override(name, {"bits": bits}, exact=True) for name in sorted(skip))
    return replace(config, overrides=(*config.overrides, *extra))


def print_result(source: Path, output: Path, written: int, report: Any, seconds: float) -> None:
    """Print the table of layers and a line on the file written."""
    from mnnq.report.tables import quantization_table, size

    common.print_table(quantization_table(report))
    before = size(source.stat().st_size)
    click.echo(f"\n{output}: {size(written)} (input {before}), {seconds:.1f} s")
    if report.output_sqnr_db is not None:
        click.echo(
            f"outputs on {report.samples} samples: {report.output_sqnr_db:.1f} dB above their error "
            "(float against quantized)"
        )


def default_output(model: Path, bits: int) -> Path:
    """``MODEL-w4.mnn``, or ``MODEL-fp16.mnn``, beside the model."""
    suffix = "fp16" if bits == 16 else f"w{bits}"
    return model.with_name(f"{model.stem}-{suffix}.mnn")


def _config(options: dict[str, Any]) -> Any:
    from mnnq.errors import ConfigError
    from mnnq.quantization.config import Override, WeightConfig, WeightMethod

    bits, fp16 = options["bits"], options["fp16"]
    if options["hqq"] and options["method"] not in ("rtn", "hqq"):
        msg = f"--hqq and --method {options['method']} exclude each other"
        raise ConfigError(msg)
    overrides = [Override(pattern, changes) for pattern, changes in options["layers"]]
    overrides += [Override(pattern, {"bits": 0}) for pattern in options["skip"]]
    return WeightConfig(
        bits=bits if bits is not None else (16 if fp16 else 8),
        symmetric=options["symmetric"],
        block=options["block"],
        method=WeightMethod("hqq" if options["hqq"] else options["method"]),
        gain_correction=options["gain_correction"],
        bias_correction=options["bias_correction"],
        fp16_scales=options["fp16_scales"],
        sparse=options["sparse"],
        overrides=tuple(overrides),
        embeddings=not options["no_embeddings"],
        fp16_constants=fp16,
        allow_unmatched=options["allow_unmatched"],
        threads=options["threads"],
    )
