"""``mnnq info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnnq.cli import common

if TYPE_CHECKING:
    from mnnq.inspection import ModelInfo, PortInfo, WeightInfo
    from mnnq.report.tables import Table


@click.command(name="info", epilog=common.example("mnnq info mobilenet-w4.mnn"))
@click.argument("model", type=click.Path(path_type=Path))
@common.input_shapes
@common.json_option
@common.verbosity
def command(model: Path, shapes: Any, as_json: bool) -> None:
    """Show inputs, outputs, operators and stored weights of MODEL (.mnn, or ONNX as it would be converted)."""
    from mnnq import api
    from mnnq.inspection import inspect_model

    info = inspect_model(api.load(model, input_shapes=dict(shapes)))
    if as_json:
        common.emit_json(info.to_dict())
    else:
        print_info(info)


def print_info(info: ModelInfo) -> None:
    """Print the description of a model."""
    from mnnq.report.tables import size

    click.echo(f"file      {info.path}")
    if info.file_size is not None:
        external = "" if info.external_size is None else f" + {size(info.external_size)} external weights"
        click.echo(f"size      {size(info.file_size)}{external}")
    click.echo(f"version   {info.version or 'not stated (before 2.0)'}, from {info.source_type}")
    for label, ports in (("inputs", info.inputs), ("outputs", info.outputs)):
        for position, port in enumerate(ports):
            click.echo(f"{label if position == 0 else '':<9} {_port(port)}")
    if info.int8_tensors:
        click.echo(f"int8      {info.int8_tensors} tensors have activation scales")
    click.echo("operators " + ", ".join(f"{name} {count}" for name, count in info.ops.items()))
    if info.subgraphs:
        click.echo("subgraphs " + ", ".join(info.subgraphs))
    click.echo()
    common.print_table(weights_table(info))


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
