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
@click.argument("model", type=click.Path(path_type=Path))
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
    "--memory-low", is_flag=True, help="Run MNN in Memory_Low mode (activations quantized at run time)."
)
@click.option(
    "--precision",
    type=click.Choice(["normal", "high", "low"]),
    default="normal",
    show_default=True,
    help="Precision mode of MNN.",
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
    reference: Path, model: Path, inputs: Path | None, shapes: Any, as_json: bool, **options: Any
) -> None:
    """Compare MODEL (.mnn) with REFERENCE (ONNX): run both and measure the error of each output.

    ONNX runs in onnxruntime, .mnn in the real MNN runtime (`pip install mnnq[verify]`). Exit status 1 when an
    output is further off than the threshold, which by default follows from how MODEL stores its weights.
    """
    from mnnq.verify import verify

    for path in (reference, model):
        path.open("rb").close()
    arrays = None if inputs is None else _read_inputs(inputs)
    result = verify(reference, model, inputs=arrays, input_shapes=dict(shapes), **options)
    if as_json:
        common.emit_json(result.to_dict())
    else:
        common.print_table(verify_table(result))
        verdict = "passed" if result.passed else "FAILED"
        runs = "1 input" if result.samples == 1 else f"{result.samples} inputs"
        click.echo(
            f"\n{verdict}: {result.engine} against onnxruntime on {runs}, threshold {result.threshold:g} "
            f"({result.threshold_reason})"
        )
    if not result.passed:
        raise CheckFailed


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
