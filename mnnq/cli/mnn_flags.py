"""``mnnq mnnconvert``: the options of MNN's own converter, doing what they say.

Every option either works, or is a harmless no-op that says so, or is an error. MNN's parser takes words after
an option as its value (``--weightQuantBits 4``), with or without ``=``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common

if TYPE_CHECKING:
    from mnnq.ir.model import Model
    from mnnq.quantization.config import WeightConfig
    from mnnq.quantization.params_file import ParamsFile

#: Value of a switch that was given without one.
_BARE = "bare"

_WORDS = {"true": "1", "false": "0"}


@dataclass(frozen=True)
class _Unsupported:
    """An option that is an error unless it has the one value that asks for nothing (None: always an error)."""

    flag: str
    harmless: str | None
    reason: str


@dataclass(frozen=True)
class _Ignored:
    """An option without effect here, and why that does no harm."""

    flag: str
    reason: str


_UNSUPPORTED = (
    _Unsupported("--benchmarkModel", "0", "weights are always written"),
    _Unsupported("--splitBlockQuant", "0", "block-quantized layers are written as single operators"),
    _Unsupported("--convertMatmulToConv", "1", "linear layers are always written as 1x1 convolutions"),
    _Unsupported(
        "--useOriginRNNImpl", "0", "LSTM and GRU are written as loops, so that they can be quantized"
    ),
    _Unsupported("--forTraining", "0", "models are written for inference"),
    _Unsupported("--keepInputFormat", "1", "inputs keep the layout of the source model"),
    _Unsupported("--saveStaticModel", "0", "shapes are inferred when the model is loaded"),
    _Unsupported("--inputConfigFile", None, "fix shapes with `mnnq quant --input-shape NAME=SHAPE`"),
    _Unsupported("--batch", None, "fix shapes with `mnnq quant --input-shape NAME=SHAPE`"),
    _Unsupported("--targetVersion", None, "files are written for MNN 3"),
    _Unsupported(
        "--groupConvNative",
        "0",
        "the real runtime computes native grouped convolutions wrongly when quantized",
    ),
    _Unsupported("--allowCustomOp", "0", "an operator that is not understood is an error"),
    _Unsupported("--customOpLibs", None, "custom operators are not understood"),
    _Unsupported("--JsonFile", None, "use `mnnq info --json` to look into a file"),
    _Unsupported("--prototxt", None, "Caffe models are not read"),
    _Unsupported("--testdir", None, "use `mnnq verify` to compare outputs"),
    _Unsupported("--thredhold", None, "use `mnnq verify --threshold`"),
    _Unsupported("--testconfig", None, "use the options of `mnnq verify`"),
)

_IGNORED = (
    _Ignored("--alignDenormalizedValue", "weights are stored as they are, denormal ones too"),
    _Ignored("--optimizeLevel", "there is one level of graph optimization"),
    _Ignored("--optimizePrefer", "there is one level of graph optimization"),
    _Ignored("--useGeluApproximation", "GELU is written as the source model defines it"),
    _Ignored("--transformerFuse", "attention is written as plain operators"),
    _Ignored("--transformerFuseC4", "attention is written as plain operators"),
    _Ignored("--transformerFuseQkvProj", "attention is written as plain operators"),
    _Ignored("--transformerFuseGateUpProj", "attention is written as plain operators"),
    _Ignored("--transformerFuseLnProj", "attention is written as plain operators"),
    _Ignored("--dumpPass", "passes are logged with -v"),
)


def _name(flag: str) -> str:
    """Name of the keyword argument of an option."""
    return flag.lstrip("-")


def _add_tables(function: Any) -> Any:
    for entry in reversed(_UNSUPPORTED):
        optional = entry.harmless in ("0", "1")
        extra: dict[str, Any] = {"is_flag": False, "flag_value": _BARE} if optional else {}
        function = click.option(entry.flag, _name(entry.flag), hidden=True, **extra)(function)
    for ignored in reversed(_IGNORED):
        extra = {"is_flag": False, "flag_value": _BARE}
        function = click.option(ignored.flag, _name(ignored.flag), hidden=True, **extra)(function)
    return function


def _print_operators(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from mnnq.frontends.onnx import registry

    for name in registry.supported():
        click.echo(name)
    ctx.exit()


@click.command(
    name="mnnconvert",
    epilog=common.example(
        "mnnq mnnconvert -f ONNX --modelFile m.onnx --MNNModel m.mnn --weightQuantBits 4 --weightQuantBlock 64 --hqq"
    ),
)
@click.option("-f", "--framework", help="ONNX or MNN.")
@click.option("--modelFile", "source", type=click.Path(path_type=Path), help="Model to read.")
@click.option("--MNNModel", "output", type=click.Path(path_type=Path), help="File to write.")
@click.option("--weightQuantBits", "bits", type=int, default=0, help="2 to 8; 0 leaves weights float.")
@click.option(
    "--weightQuantAsymmetric",
    "asymmetric",
    is_flag=False,
    flag_value=_BARE,
    help="1 asymmetric (default), 0 symmetric.",
)
@click.option(
    "--weightQuantBlock",
    "block",
    type=int,
    default=-1,
    help="Input channels per block; -1 per output channel.",
)
@click.option("--hqq", is_flag=True, help="Use MNN's HQQ.")
@click.option(
    "--weightQuantScaleBit", "scale_bit", type=int, default=32, help="32, or 16 for half-float scales."
)
@click.option("--fp16", is_flag=True, help="Half floats; with --weightQuantBits, for what is not quantized.")
@click.option(
    "--compressionParamsFile",
    "params",
    type=click.Path(path_type=Path),
    help="Parameter file to apply; created when it does not exist.",
)
@click.option(
    "--detectSparseSpeedUp", "sparse", is_flag=True, help="Use the sparse encoding where it is smaller."
)
@click.option("--saveExternalData", "external", is_flag=True, help="Put weights into <MNNModel>.weight.")
@click.option("--bizCode", "biz_code", help="Free text stored in the file.")
@click.option("--authCode", "auth_code", help="Free text stored in the file.")
@click.option(
    "--OP",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_operators,
    help="List the ONNX operators that can be converted.",
)
@click.option("--info", is_flag=True, help="Describe --modelFile (a .mnn file) and write nothing.")
@click.option(
    "--allow-unmatched", is_flag=True, help="Entries of the parameter file that match no layer are a warning."
)
@_add_tables
@click.option(
    "-v", "--version", is_flag=True, expose_value=False, is_eager=True, callback=common.print_version,
    help="Show the version.",
)  # fmt: skip
@common.json_option
@common.verbosity_without_short_form
def command(**options: Any) -> None:
    """Convert and quantize with the options of MNN's converter.

    Options of MNN that are not listed are accepted when they change nothing, and refused with a reason otherwise.
    """
    _check_tables(options)
    _run(options)


def _check_tables(options: dict[str, Any]) -> None:
    for entry in _UNSUPPORTED:
        value = _WORDS.get(given := options.pop(_name(entry.flag)), given)
        if value is None or value == entry.harmless:
            continue
        if value == _BARE and entry.harmless == "1":
            common.note(f"{entry.flag} without a value means 1 here (MNN takes it for 0)")
            continue
        shown = "" if value == _BARE else f" {given}"
        msg = f"{entry.flag}{shown} is not supported: {entry.reason}"
        raise click.UsageError(msg)
    for ignored in _IGNORED:
        if options.pop(_name(ignored.flag)) is not None:
            common.note(f"{ignored.flag} changes nothing here: {ignored.reason}")


def _run(options: Mapping[str, Any]) -> None:
    started = time.monotonic()
    source, output = options["source"], options["output"]
    _check_framework(options["framework"], source)
    from mnnq import api

    if options["info"]:
        from mnnq.cli.info import print_info
        from mnnq.inspection import inspect_model

        print_info(inspect_model(api.load(source)))
        return
    if output is None:
        msg = "--MNNModel is missing: name the file to write"
        raise click.UsageError(msg)
    config, params = _config(options)
    common.check_source(source)
    common.check_output(output, {"the input": source, "the parameter file": options["params"]})
    if options["params"] is not None and params is None:
        common.check_output(
            options["params"], {"the input": source}, what="the file of --compressionParamsFile"
        )
    network = api.load(source)
    _label(network, options)
    report = _quantize(network, config, params, options)
    written = network.save(output, external_weights=options["external"])
    seconds = time.monotonic() - started
    if report is not None:
        common.warn_all(report.warnings())
    if options["as_json"]:
        common.emit_json(common.report_dict(source, output, written, report, seconds))
    elif report is not None and config.bits:
        from mnnq.cli.quant import print_result

        print_result(source, output, written, report, seconds)
    else:
        from mnnq.report.tables import size

        click.echo(f"{output}: {len(network.ops)} operators, {size(written)}, {seconds:.1f} s")


def _check_framework(framework: str | None, source: Path | None) -> None:
    if framework is None:
        msg = "-f is missing: ONNX or MNN"
        raise click.UsageError(msg)
    if framework not in ("ONNX", "MNN"):
        msg = f"-f {framework} is not supported: ONNX and MNN are; export the model to ONNX first"
        raise click.UsageError(msg)
    if source is None:
        msg = "--modelFile is missing: name the file to read"
        raise click.UsageError(msg)
    from mnnq.files import is_mnn

    if (framework == "MNN") != is_mnn(source):
        msg = f"-f {framework} does not fit the file name {source.name!r}: .mnn files are MNN, others ONNX"
        raise click.UsageError(msg)


def _config(options: Mapping[str, Any]) -> tuple[WeightConfig, ParamsFile | None]:
    from mnnq.quantization.config import WeightConfig, WeightMethod
    from mnnq.quantization.params_file import read_params

    bits, block, path = options["bits"], options["block"], options["params"]
    asymmetric = _asymmetric(options["asymmetric"])
    if bits != 0 and not 2 <= bits <= 8:
        hint = "; for half floats use --fp16" if bits == 16 else ""
        msg = f"--weightQuantBits {bits}: use 2 to 8, or 0 to leave weights float{hint}"
        raise click.UsageError(msg)
    params = read_params(path) if path is not None and path.exists() else None
    if not bits and params is None:
        given = {"--weightQuantBlock": block not in (-1, 0), "--hqq": options["hqq"],
                 "--weightQuantScaleBit": options["scale_bit"] != 32,
                 "--weightQuantAsymmetric": options["asymmetric"] is not None}  # fmt: skip
        for flag, used in given.items():
            if used:
                msg = f"{flag} does nothing without --weightQuantBits"
                raise click.UsageError(msg)
    if options["scale_bit"] not in (16, 32):
        msg = f"--weightQuantScaleBit {options['scale_bit']}: scales have 32 bits or 16"
        raise click.UsageError(msg)
    if options["hqq"] and not asymmetric:
        msg = "--hqq fits an offset, which symmetric weights do not have: drop --weightQuantAsymmetric 0"
        raise click.UsageError(msg)
    if options["sparse"] and not bits and params is None:
        common.note(
            "--detectSparseSpeedUp changes nothing without --weightQuantBits: float weights stay dense"
        )
    if options["fp16"] and bits:
        common.note(
            f"weights become {bits}-bit codes and the rest half floats (MNN drops --weightQuantBits here)"
        )
    config = WeightConfig(
        bits=bits or (16 if options["fp16"] else 0),
        symmetric=not asymmetric,
        block=block,
        method=WeightMethod.HQQ if options["hqq"] else WeightMethod.RTN,
        fp16_scales=options["scale_bit"] == 16,
        sparse=options["sparse"] and (bool(bits) or params is not None),
        fp16_constants=options["fp16"],
        allow_unmatched=options["allow_unmatched"],
    )
    return config, params


def _asymmetric(value: str | None) -> bool:
    if value is None:
        return True
    if value == _BARE:
        common.note(
            "--weightQuantAsymmetric without a value means asymmetric here (MNN takes it for symmetric)"
        )
        return True
    number = _WORDS.get(value.lower(), value)
    if number not in ("0", "1"):
        msg = f"--weightQuantAsymmetric {value}: use 1 or 0"
        raise click.UsageError(msg)
    return number == "1"


def _label(network: Model, options: Mapping[str, Any]) -> None:
    if options["biz_code"] is not None:
        network.net["bizCode"] = options["biz_code"]
    if options["auth_code"] is not None:
        from mnnq.writer.to_mnn import FORMAT_VERSION

        extra = network.net.get("extraInfo") or {"version": FORMAT_VERSION}
        network.net["extraInfo"] = {**extra, "name": options["auth_code"]}


def _quantize(
    network: Model, config: WeightConfig, params: ParamsFile | None, options: Mapping[str, Any]
) -> Any:
    path = options["params"]
    if not config.bits and path is None:
        return None
    from mnnq.quantization.weight import quantize_model

    report = quantize_model(network, config, params=params, progress=common.ProgressLine())
    if path is not None and params is None:
        from mnnq.quantization.params_from_report import params_from_report

        params_from_report(report).save(path)
        common.note(f"{path} did not exist: it now holds what was done, to be edited and given again")
    return report
