"""``mnnq bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common, inputs

if TYPE_CHECKING:
    from mnnq.report.tables import Table
    from mnnq.runtime.benchmark import BenchmarkResult


@click.command(
    name="bench", epilog=common.example("mnnq bench mobilenet-w4.mnn --threads 1 --shape input=1x3x224x224")
)
@click.argument("model", type=click.Path(path_type=Path))
@inputs.options
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds to repeat for.",
)
@click.option(
    "--warmup", type=click.IntRange(0), default=3, show_default=True, help="Runs before timing starts."
)
@click.option(
    "--nodes",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Slowest operators to list by name.",
)
@inputs.session_options
@common.json_option
@common.verbosity
def command(**options: Any) -> None:
    """Time MODEL (.mnn, or ONNX as it would be converted) in mnnq's own runtime, as a whole and per operator.

    Inputs not given are random; values hardly matter for speed.
    """
    _run(image=inputs.ImageSettings.of(options), **options)


def _run(
    *,
    model: Path,
    files: tuple[tuple[str | None, Path], ...],
    seed: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    image: inputs.ImageSettings,
    seconds: float,
    warmup: int,
    nodes: int,
    threads: int | None,
    allow_nan: bool,
    as_json: bool,
    **modes: str,
) -> None:
    import time

    from mnnq import _native
    from mnnq.runtime.benchmark import benchmark

    started = time.perf_counter()
    session = inputs.open_session(model, threads, allow_nan, **modes)
    load = time.perf_counter() - started
    feeds = inputs.gather(session.get_inputs(), files, seed or 0, dict(shapes), image)
    result = benchmark(session, feeds, seconds=seconds, warmup=warmup)
    isa = _native.cpu_kernels()["level"]
    used = session.get_session_options().threads
    lengths = {name: list(array.shape) for name, array in feeds.items()}
    if as_json:
        head = {"model": str(model), "threads": used, **modes, "isa": isa}
        common.emit_json({**head, "inputs": lengths, "load_ms": load * 1e3, **result.to_dict()})
        return
    shown = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in lengths.items())
    click.echo(f"model    {model}")
    click.echo(f"inputs   {shown or 'none'}")
    chosen = ", ".join(f"{name} {value}" for name, value in modes.items())
    click.echo(f"options  {used} threads, {chosen}")
    click.echo(f"cpu      {isa}")
    click.echo(f"load     {_ms(load)}, first run {_ms(result.first)}")
    click.echo(
        f"latency  median {_ms(result.median)}, p90 {_ms(result.percentile(90))}, "
        f"min {_ms(min(result.latencies))}, {result.runs} runs"
    )
    click.echo()
    common.print_table(type_table(result))
    if nodes:
        click.echo()
        common.print_table(node_table(result, nodes))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _share(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.1f}" if total else "-"


def type_table(result: BenchmarkResult) -> Table:
    """Time per operator type and run, the largest first."""
    from mnnq.report.tables import Table

    times = result.by_type()
    total = sum(entry.seconds for entry in times)
    rows = tuple(
        (entry.op_type, str(entry.steps), f"{entry.seconds * 1e3:.3f}", _share(entry.seconds, total))
        for entry in times
    )
    footer = ("all", str(len(result.steps)), f"{total * 1e3:.3f}", _share(total, total))
    return Table("", ("type", "steps", "ms", "%"), rows, frozenset({1, 2, 3}), footer)


def node_table(result: BenchmarkResult, count: int) -> Table:
    """The operators that take longest, with their kernels."""
    from mnnq.report.tables import Table

    total = sum(step.seconds for step in result.steps)
    slowest = sorted(result.steps, key=lambda step: -step.seconds)[:count]
    rows = tuple(
        (
            step.node,
            step.op_type,
            ", ".join("x".join(map(str, shape)) or "scalar" for shape in step.output_shapes),
            f"{step.seconds / result.runs * 1e3:.3f}",
            _share(step.seconds, total),
            step.kernel,
        )
        for step in slowest
    )
    return Table("", ("node", "type", "output", "ms", "%", "kernel"), rows, frozenset({3, 4}))
