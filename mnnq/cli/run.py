"""``mnnq run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common, inputs

if TYPE_CHECKING:
    import numpy.typing as npt

    from mnnq.report.tables import Table

#: Rows of an output of which ``--top`` shows the largest values.
MAX_ROWS = 16


@click.command(
    name="run",
    epilog=common.example("mnnq run mobilenet-w4.mnn --input input=cat.png --scale 0.0039216 --top 5"),
)
@click.argument("model", type=click.Path(path_type=Path))
@inputs.options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the outputs to an .npz file.")
@click.option(
    "--top", type=click.IntRange(1), metavar="K", help="Show the K largest values and their indices."
)
@inputs.session_options
@common.json_option
@common.verbosity
def command(**options: Any) -> None:
    """Run MODEL (.mnn, or ONNX as it would be converted) in mnnq's own runtime and show its outputs."""
    _run(image=inputs.ImageSettings.of(options), **options)


def _run(
    *,
    model: Path,
    files: tuple[tuple[str | None, Path], ...],
    seed: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    image: inputs.ImageSettings,
    output: Path | None,
    top: int | None,
    threads: int | None,
    allow_nan: bool,
    as_json: bool,
    **modes: str,
) -> None:
    if output is not None:
        others = {"the model": model, **{f"input {path.name}": path for _, path in files}}
        common.check_output(output, others)
    session = inputs.open_session(model, threads, allow_nan, **modes)
    feeds = inputs.gather(session.get_inputs(), files, seed, dict(shapes), image)
    names = [port.name for port in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    if output is not None:
        write_arrays(output, outputs)
    if as_json:
        common.emit_json(_as_json(model, output, outputs, top))
        return
    common.print_table(summary_table(outputs))
    for name, array in outputs.items() if top is not None else ():
        click.echo()
        common.print_table(top_table(name, array, top or 1))
    if output is not None:
        click.echo(f"\n{output}: {len(outputs)} arrays" if len(outputs) != 1 else f"\n{output}: 1 array")


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write an .npz file whose arrays may have any names."""
    import io
    import zipfile

    import numpy as np

    from mnnq.files import write_atomically

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomically(path, stream.getvalue())


def _summary(array: npt.NDArray[Any]) -> tuple[float | None, float | None, float | None, int]:
    """Least, largest, mean of the finite values (None without any), and the number of the others."""
    import numpy as np

    flat = np.asarray(array, np.float64).reshape(-1)
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        return None, None, None, flat.size
    return float(finite.min()), float(finite.max()), float(finite.mean()), flat.size - finite.size


def summary_table(outputs: dict[str, npt.NDArray[Any]]) -> Table:
    """Per output: type, shape, least, largest and mean value, and how many are NaN or infinite."""
    from mnnq.report.tables import Table

    rows = []
    for name, array in outputs.items():
        *values, others = _summary(array)
        cells = ("-" if value is None else f"{value:.6g}" for value in values)
        rows.append(
            (name, array.dtype.name, "x".join(map(str, array.shape)) or "scalar", *cells, str(others))
        )
    columns = ("output", "type", "shape", "min", "max", "mean", "not finite")
    return Table("", columns, tuple(rows), frozenset({3, 4, 5, 6}))


def _largest(array: npt.NDArray[Any], top: int) -> list[list[tuple[int, float]]]:
    """Per row along the last axis: index and value of the `top` largest, ties in order, NaN last."""
    import numpy as np

    rows = np.asarray(array).reshape(-1, array.shape[-1]) if array.ndim and array.size else np.zeros((0, 1))
    rows = np.asarray(array).reshape(1, 1) if not array.ndim else rows
    found = []
    for row in rows[:MAX_ROWS]:
        key = np.where(np.isnan(row), -np.inf, row) if row.dtype.kind == "f" else row.astype(np.float64)
        order = np.argsort(-key, kind="stable")[:top]
        found.append([(int(i), row[i].item()) for i in order])
    return found


def top_table(name: str, array: npt.NDArray[Any], top: int) -> Table:
    """The largest values of an output along its last axis, for its first rows."""
    from mnnq.report.tables import Table

    rows = [
        (str(row), str(index), f"{value:.6g}")
        for row, entries in enumerate(_largest(array, top))
        for index, value in entries
    ]
    count = array.size // array.shape[-1] if array.ndim and array.size else 1
    title = f"{name}: largest values" + (
        f" of the first {MAX_ROWS} of {count} rows" if count > MAX_ROWS else ""
    )
    return Table(title, ("row", "index", "value"), tuple(rows), frozenset({0, 1, 2}))


def _as_json(
    model: Path, output: Path | None, outputs: dict[str, npt.NDArray[Any]], top: int | None
) -> dict[str, Any]:
    entries = []
    for name, array in outputs.items():
        least, largest, mean, others = _summary(array)
        entry = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        entry |= {"min": least, "max": largest, "mean": mean, "not_finite": others}
        if top is not None:
            entry["top"] = [
                [{"index": index, "value": _finite(value)} for index, value in row]
                for row in _largest(array, top)
            ]
        entries.append(entry)
    return {"model": str(model), "output": None if output is None else str(output), "outputs": entries}


def _finite(value: float) -> float | None:
    import math

    return value if math.isfinite(value) else None
