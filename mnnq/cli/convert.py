"""``mnnq convert``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mnnq.cli import common


@click.command(
    name="convert",
    epilog=common.example("mnnq convert mobilenet.onnx --input-shape input=1x3x224x224 -o mobilenet.mnn"),
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write. [default: MODEL.mnn]")
@click.option("--fp16", is_flag=True, help="Store weights and large constants as half floats.")
@click.option("--external-weights", is_flag=True, help="Put weights into <output>.weight.")
@common.qdq_option
@common.input_shapes
@common.json_option
@common.verbosity
def command(**options: Any) -> None:
    """Convert MODEL (ONNX) to a .mnn file; weights are float but for layers that MODEL quantizes."""
    _run(**options)


def _run(
    *,
    model: Path,
    output: Path | None,
    fp16: bool,
    external_weights: bool,
    qdq: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
) -> None:
    started = time.monotonic()
    from mnnq import api
    from mnnq.quantization.config import WeightConfig
    from mnnq.quantization.weight import quantize_model
    from mnnq.report.tables import size

    common.check_source(model)
    output = output or model.with_suffix(".mnn")
    common.check_output(output, {"the input": model})
    network = api.load(model, input_shapes=dict(shapes), qdq=qdq)
    common.tell_imported(network)
    report = None
    if fp16:
        config = WeightConfig(bits=16, fp16_constants=True)
        report = quantize_model(network, config, progress=common.ProgressLine())
        common.warn_all(report.warnings())
    written = network.save(output, external_weights=external_weights)
    seconds = time.monotonic() - started
    if as_json:
        record = common.report_dict(model, output, written, report, seconds)
        common.emit_json({**record, **common.imported_dict(network)})
        return
    before = size(model.stat().st_size)
    click.echo(f"{output}: {len(network.ops)} operators, {size(written)} (input {before}), {seconds:.1f} s")
