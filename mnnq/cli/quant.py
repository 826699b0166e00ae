"""``mnnq quant``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mnnq.cli import common

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
    "--method", type=click.Choice(["rtn", "hqq", "hqq_ref", "search"]), default="rtn", show_default=True,
    help="How scales are chosen: MNN's rounding, MNN's HQQ, HQQ as published, or least squared error.",
)  # fmt: skip
@click.option("--hqq", is_flag=True, help="Same as --method hqq.")
@click.option("--gain-correction", is_flag=True, help="Refit each output channel to gain 1 and mean error 0.")
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
@common.input_shapes
@common.json_option
@common.verbosity
def command(**options: Any) -> None:
    """Quantize the weights of MODEL (ONNX or .mnn) and write a .mnn file."""
    _run(**options)


def _run(
    *,
    model: Path,
    output: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    params: Path | None,
    save_params: Path | None,
    external_weights: bool,
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

    network = api.load(model, input_shapes=dict(shapes))
    report = quantize_model(network, config, params=params_file, progress=common.ProgressLine())
    written = network.save(output, external_weights=external_weights)
    if save_params is not None:
        from mnnq.quantization.params_from_report import params_from_report

        params_from_report(report).save(save_params)
    seconds = time.monotonic() - started
    common.warn_all(report.warnings())
    if as_json:
        common.emit_json(common.report_dict(model, output, written, report, seconds))
        return
    print_result(model, output, written, report, seconds)


def print_result(source: Path, output: Path, written: int, report: Any, seconds: float) -> None:
    """Print the table of layers and a line on the file written."""
    from mnnq.report.tables import quantization_table, size

    common.print_table(quantization_table(report))
    before = size(source.stat().st_size)
    click.echo(f"\n{output}: {size(written)} (input {before}), {seconds:.1f} s")


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
        fp16_scales=options["fp16_scales"],
        sparse=options["sparse"],
        overrides=tuple(overrides),
        embeddings=not options["no_embeddings"],
        fp16_constants=fp16,
        allow_unmatched=options["allow_unmatched"],
        threads=options["threads"],
    )
