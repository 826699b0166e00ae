"""``mnnq info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common

if TYPE_CHECKING:
    from mnnq.inspection import ModelInfo, PortInfo, RunCost, WeightInfo
    from mnnq.report.tables import Table


@click.command(name="info", epilog=common.example("mnnq info mobilenet-w4.mnn"))
@click.argument("model", type=click.Path(path_type=Path), required=False)
@common.input_shapes
@common.json_option
@common.verbosity
def command(model: Path | None, shapes: Any, as_json: bool) -> None:
    """Show inputs, outputs, operators, cost of a run and stored weights of MODEL (.mnn, or ONNX as it would be converted).

    The cost is that of mnnq's runtime; lengths that vary are 1 unless --input-shape gives them. Without MODEL: show the
    instruction sets of this CPU and the kernels that the runtime uses on it.
    """
    from mnnq import api
    from mnnq.errors import ConfigError, ExecutionError, UnsupportedError
    from mnnq.files import is_mnn
    from mnnq.inspection import inspect_model, run_cost

    fixed = dict(shapes)
    if model is None:
        if fixed:
            msg = "shapes are of a model; name its file"
            raise ConfigError(msg, key="--input-shape")
        _show_cpu(as_json)
        return
    loaded = api.load(model, input_shapes=None if is_mnn(model) else fixed)
    info = inspect_model(loaded)
    cost, refused = None, None
    try:
        cost = run_cost(loaded, fixed if is_mnn(model) else None)
    except (UnsupportedError, ExecutionError) as error:
        refused = str(error)
    if as_json:
        common.emit_json(
            {**info.to_dict(), "run": None if cost is None else cost.to_dict(), "run_refused": refused}
        )
    else:
        print_info(info, cost, refused)


def _show_cpu(as_json: bool) -> None:
    """Print what the CPU has and the kernel of each family."""
    from mnnq import _native
    from mnnq.report.tables import Table

    found = _native.cpu_kernels()
    if as_json:
        common.emit_json(found)
        return
    cap = "" if found["requested"] is None else f" (MNNQ_ISA={found['requested']})"
    click.echo(f"cpu       {', '.join(found['levels'])}")
    click.echo(f"in use    {found['level']}{cap}")
    click.echo()
    common.print_table(Table("", ("family", "kernel"), tuple(found["kernels"].items())))


def print_info(info: ModelInfo, cost: RunCost | None = None, refused: str | None = None) -> None:
    """Print the description of a model, and what a run takes or why it cannot be run."""
    from mnnq.report.tables import size

    click.echo(f"file      {info.path}")
    if info.file_size is not None:
        external = "" if info.external_size is None else f" + {size(info.external_size)} external weights"
        click.echo(f"size      {size(info.file_size)}{external}")
    click.echo(f"version   {info.version or 'not stated (before 2.0)'}, from {info.source_type}")
    outputs = info.outputs if cost is None else cost.outputs
    for label, ports in (("inputs", info.inputs), ("outputs", outputs)):
        for position, port in enumerate(ports):
            click.echo(f"{label if position == 0 else '':<9} {_port(port)}")
    if info.int8_tensors:
        click.echo(f"int8      {info.int8_tensors} tensors have activation scales")
    click.echo("operators " + ", ".join(f"{name} {count}" for name, count in info.ops.items()))
    if info.subgraphs:
        click.echo("subgraphs " + ", ".join(info.subgraphs))
    if cost is not None:
        for line in _cost(cost):
            click.echo(line)
    elif refused is not None:
        click.echo(f"run       not possible: {refused}")
    click.echo()
    common.print_table(weights_table(info))


def _cost(cost: RunCost) -> list[str]:
    from mnnq.report.tables import size

    at = ", ".join(_port(port) for port in cost.inputs)
    more = "" if cost.complete else ", more depends on the values of the inputs"
    return [
        f"run       {cost.flops / 1e9:.3g} GFLOP in {cost.steps} steps, {size(cost.arena_bytes)} of memory{more}",
        f"          for {at}",
    ]


def _port(port: PortInfo) -> str:
    shape = (
        "" if port.shape is None else " [" + ", ".join("?" if d is None else str(d) for d in port.shape) + "]"
    )
    return f"{port.name}{shape}{'' if port.dtype is None else ' ' + port.dtype}"


def weights_table(info: ModelInfo) -> Table:
    """Per layer: storage, bits, scheme, block, bytes."""
    from mnnq.report.tables import Table, size

    rows = tuple(
        (
            weight.label,
            weight.op_type,
            "x".join(map(str, weight.shape)),
            _bits(weight),
            weight.scheme or "-",
            "-" if weight.scheme is None else "channel" if weight.block is None else str(weight.block),
            "yes" if weight.int8 else "no",
            size(weight.size),
        )
        for weight in info.weights
    )
    footer = (f"{len(rows)} weights", "", "", "", "", "", "", size(info.weight_bytes))
    columns = ("weight", "type", "shape", "bits", "scheme", "block", "int8", "bytes")
    return Table("", columns, rows, frozenset({3, 5, 7}), footer)


def _bits(weight: WeightInfo) -> str:
    if weight.storage in ("float", "fp16", "sparse float", "input"):
        return weight.storage
    return str(weight.bits)
