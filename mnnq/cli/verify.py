"""``mnnq verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common
from mnnq.cli.main import CheckFailed

if TYPE_CHECKING:
    from mnnq.report.tables import Table
    from mnnq.verify import VerifyResult


@click.command(
    name="verify", epilog=common.example("mnnq verify mobilenet.onnx mobilenet-w4.mnn --threshold 0.1")
)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--engine",
    type=click.Choice(["mnn", "mnnq", "all"]),
    help="What runs MODEL: MNN's runtime, mnnq's own, or both. "
    "[default: both; only mnnq when MNN is not installed, only mnn when mnnq's cannot run the model]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Inputs: an .npz file with an array per input name. [default: random]",
)
@click.option(
    "--samples", type=click.IntRange(1), default=2, show_default=True, help="Random inputs to compare on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random inputs.")
@click.option(
    "--threshold",
    type=click.FloatRange(0),
    help="Largest error relative to the largest reference value that passes. "
    "[default: 0.001 for float weights, more for fewer bits and more layers]",
)
@click.option(
    "--memory-low", is_flag=True, help="Run MODEL in low-memory mode (activations are quantized at run time)."
)
@click.option(
    "--dynamic",
    type=click.Choice(["auto", "always", "compat"]),
    default="auto",
    show_default=True,
    help="With --memory-low, layers that mnnq's runtime runs in integers: those that gain, all, or all with MNN's rules.",
)
@click.option(
    "--int8",
    type=click.Choice(["exact", "compat"]),
    default="compat",
    show_default=True,
    help="Pooling of int8 tensors in mnnq's runtime: by the formulas, or as MNN computes it.",
)
@click.option(
    "--precision",
    type=click.Choice(["normal", "high", "low"]),
    default="normal",
    show_default=True,
    help="Precision mode of the runtimes.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that one run may take.",
)
@common.input_shapes
@common.json_option
@common.verbosity
def command(
    reference: Path,
    model: Path | None,
    engine: str | None,
    inputs: Path | None,
    shapes: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare MODEL (.mnn) with REFERENCE (ONNX): run both and measure the error of each output.

    ONNX runs in onnxruntime, .mnn in the real MNN runtime (`pip install mnnq[verify]`) and in mnnq's own. REFERENCE may be
    a .mnn file, too: it runs in MNN's runtime. Alone, it is compared with itself in mnnq's. Exit status 1 when an
    output is further off than the threshold, which by default follows from how MODEL stores its weights.
    """
    from mnnq.errors import ConfigError
    from mnnq.files import is_mnn

    if model is None:
        if not is_mnn(reference):
            msg = "name the .mnn file to compare with it; only a .mnn file can stand alone"
            raise ConfigError(msg, file=str(reference))
        model, engine = reference, engine or "mnnq"
    for path in (reference, model):
        path.open("rb").close()
    arrays = None if inputs is None else _read_inputs(inputs)
    results = _compare(engine, reference, model, inputs=arrays, input_shapes=dict(shapes), **options)
    passed = all(result.passed for result in results)
    if as_json:
        common.emit_json({"passed": passed, "results": [result.to_dict() for result in results]})
    else:
        for position, result in enumerate(results):
            click.echo("\n" if position else "", nl=False)
            _print(result)
    if not passed:
        raise CheckFailed


def _compare(engine: str | None, reference: Path, model: Path, **options: Any) -> tuple[VerifyResult, ...]:
    """Compare with the engines asked for, or with those that can run the model here."""
    from mnnq.engines import installed
    from mnnq.errors import UnsupportedError
    from mnnq.verify import verify_engines

    if engine is not None:
        return verify_engines(reference, model, ("mnn", "mnnq") if engine == "all" else (engine,), **options)
    if not installed("mnn"):
        common.note("MNN is not installed (`pip install mnnq[verify]`): comparing mnnq's own runtime only")
        return verify_engines(reference, model, ("mnnq",), **options)
    try:
        return verify_engines(reference, model, ("mnn", "mnnq"), **options)
    except UnsupportedError as error:
        common.warn(f"mnnq's own runtime is left out: {error}")
        return verify_engines(reference, model, ("mnn",), **options)


def _print(result: VerifyResult) -> None:
    common.print_table(verify_table(result))
    verdict = "passed" if result.passed else "FAILED"
    runs = "1 input" if result.samples == 1 else f"{result.samples} inputs"
    click.echo(
        f"\n{verdict}: {result.engine} against {result.reference_engine} on {runs}, "
        f"threshold {result.threshold:g} ({result.threshold_reason})"
    )


def _read_inputs(path: Path) -> dict[str, Any]:
    import numpy as np

    from mnnq.errors import ConfigError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                msg = "one array; give an .npz file with an array per input name"
                raise ConfigError(msg, file=str(path))
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError) as error:
        msg = f"not an .npz file of arrays: {error}"
        raise ConfigError(msg, file=str(path)) from error


def verify_table(result: VerifyResult) -> Table:
    """Per output: largest error, relative error, cosine, SQNR."""
    from mnnq.report.tables import Table, decibel

    rows = tuple(
        (
            out.name,
            "x".join(map(str, out.shape)) or "scalar",
            f"{out.max_abs:.3e}",
            f"{out.relative:.3e}",
            f"{out.cosine:.6f}",
            decibel(out.sqnr_db),
            out.problem or ("ok" if out.relative <= result.threshold else "above the threshold"),
        )
        for out in result.outputs
    )
    columns = ("output", "shape", "max abs", "relative", "cosine", "SQNR dB", "result")
    return Table("", columns, rows, frozenset({2, 3, 4, 5}))
