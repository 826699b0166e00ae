"""``mnnq compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import calibration, common
from mnnq.cli.main import CheckFailed

if TYPE_CHECKING:
    from mnnq.report.compare import CompareResult, LayerError
    from mnnq.report.errors import OutputError
    from mnnq.report.tables import Table

#: Samples compared by default.
_SAMPLES = 16


@click.command(
    name="compare",
    epilog=common.example("mnnq compare mobilenet.onnx mobilenet-int8.mnn --data photos/ --preset imagenet"),
)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@calibration.data_options("--data", default_samples=_SAMPLES)
@click.option(
    "--random", "random_seed", type=int, metavar="SEED",
    help="Random inputs instead of --data. Quantized models look worse on them than on real ones.",
)  # fmt: skip
@click.option("--min-sqnr", type=float, metavar="DB", help="Fail when the SQNR of an output is below.")
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1, 1),
    help="Fail when the cosine similarity of an output is below.",
)
@click.option("--no-layers", is_flag=True, help="Compare the outputs only.")
@click.option(
    "--all", "show_all", is_flag=True, help="Show every layer. [default: the 20 that add most error]"
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads. [default: all CPUs]")
@common.input_shapes
@common.json_option
@common.verbosity
def command(
    reference: Path,
    model: Path,
    min_sqnr: float | None,
    min_cosine: float | None,
    random_seed: int | None,
    no_layers: bool,
    show_all: bool,
    threads: int | None,
    shapes: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare MODEL with REFERENCE layer by layer, e.g. a quantized model with the float one.

    Both (ONNX or .mnn) run in mnnq's own runtime on the same data, and every tensor that both have is compared by cosine
    similarity, signal-to-noise ratio (SQNR), largest absolute and relative error. Exit status 1 when an output is
    NaN, or below --min-sqnr or --min-cosine.
    """
    from mnnq.report.compare import compare

    data = calibration.DataOptions.of(options)
    for path in (reference, model):
        common.check_source(path)
    dataset = _dataset(reference, data, random_seed, dict(shapes))
    result = compare(
        reference,
        model,
        dataset,
        layers=not no_layers,
        min_sqnr_db=min_sqnr,
        min_cosine=min_cosine,
        options={} if threads is None else {"threads": threads},
        progress=common.ProgressLine("sample", "comparing"),
    )
    if as_json:
        common.emit_json(result.to_dict())
    else:
        print_comparison(result, show_all)
    if not result.passed:
        raise CheckFailed


def _dataset(
    reference: Path, data: calibration.DataOptions, seed: int | None, shapes: dict[str, tuple[int, ...]]
) -> Any:
    import mnnq
    from mnnq.data import RandomDataset, input_specs
    from mnnq.errors import ConfigError

    if (data.path is None) == (seed is None):
        msg = "give the data to compare on: --data DIR or FILE, or --random SEED"
        raise ConfigError(msg)
    network = mnnq.load(reference)
    if seed is not None:
        data.refuse_all("--random")
        return RandomDataset(input_specs(network), data.samples or 2, seed=abs(seed), shapes=shapes)
    if shapes:
        msg = "it is for --random; data have their own shapes"
        raise ConfigError(msg, key="--input-shape")
    return data.open(network, default_samples=_SAMPLES)


def print_comparison(result: CompareResult, show_all: bool) -> None:
    """Print the tables and a line with the verdict."""
    if result.layers:
        count = len(result.layers) if show_all else 20
        rows = result.layers if show_all or len(result.layers) <= count else _selected(result, count)
        if len(rows) < len(result.layers):
            click.echo(
                f"The {len(rows)} layers of {len(result.layers)} that add most error (--all shows all):"
            )
        common.print_table(layer_table(rows))
        click.echo("")
    common.print_table(output_table(result))
    if result.unmatched:
        common.note(
            f"{len(result.unmatched)} tensors of the model are not in the reference: {', '.join(result.unmatched[:5])}"
        )
    verdict = "passed" if result.passed else "FAILED"
    samples = "1 sample" if result.samples == 1 else f"{result.samples} samples"
    click.echo(f"\n{verdict}: {result.model} against {result.reference}, {samples} ({result.data})")


def _selected(result: CompareResult, count: int) -> tuple[LayerError, ...]:
    chosen = {layer.error.name for layer in result.worst(count)}
    return tuple(layer for layer in result.layers if layer.error.name in chosen)


def _error_cells(error: OutputError) -> tuple[str, str, str, str]:
    from mnnq.report.tables import decibel

    if error.problem is not None:
        return ("-", "-", "-", "-")
    return (f"{error.cosine:.6f}", decibel(error.sqnr_db), f"{error.max_abs:.3e}", f"{error.relative:.3e}")


def layer_table(layers: tuple[LayerError, ...]) -> Table:
    """Per layer: type, shape, cosine, SQNR, what the layer adds, largest errors."""
    from mnnq.report.tables import Table

    columns = ["layer", "type", "shape", "cosine", "SQNR dB", "adds %", "max abs", "relative"]
    problems = any(layer.error.problem for layer in layers)
    rows = []
    for layer in layers:
        cosine, sqnr, largest, relative = _error_cells(layer.error)
        added = "-" if layer.added is None else f"{100 * layer.added:.2g}"
        cells = [layer.error.name, layer.op_type, _shape(layer.error), cosine, sqnr, added, largest, relative]
        rows.append(tuple([*cells, layer.error.problem or ""] if problems else cells))
    if problems:
        columns.append("problem")
    return Table("", tuple(columns), tuple(rows), frozenset({3, 4, 5, 6, 7}))


def output_table(result: CompareResult) -> Table:
    """Per output: shape, cosine, SQNR, largest errors, verdict."""
    from mnnq.report.tables import Table

    rows = tuple(
        (out.name, _shape(out), *_error_cells(out), result.failure(out) or "ok") for out in result.outputs
    )
    columns = ("output", "shape", "cosine", "SQNR dB", "max abs", "relative", "result")
    return Table("", columns, rows, frozenset({2, 3, 4, 5}))


def _shape(error: OutputError) -> str:
    return "x".join(map(str, error.shape)) or "scalar"
