"""``mnnq mnnquant``: the form of MNN's quantization tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mnnq.cli import common, offline


@click.command(name="mnnquant", epilog=common.example("mnnq mnnquant float.mnn int8.mnn quant.json"))
@click.argument("source", metavar="FLOAT.mnn", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT.mnn", type=click.Path(path_type=Path))
@click.argument("config", metavar="QUANT.json", type=click.Path(path_type=Path))
@click.option(
    "--compat",
    is_flag=True,
    help="Choose ranges exactly as MNN's tool does, without corrections, to compare files.",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Save what the network sees as a picture, and print the range of the values.",
)
@offline.check_options
@common.json_option
@common.verbosity
def command(
    source: Path,
    output: Path,
    config: Path,
    compat: bool,
    preview: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize FLOAT.mnn to static int8 with the data and settings of QUANT.json, as MNN's mnnquant does.

    Every key of QUANT.json works, changes nothing and says so, or is refused with the reason.
    """
    import mnnq
    from mnnq.cli.calibration import describe_data, warn_of_few
    from mnnq.quantization.quant_json import read_quant_json

    settings = read_quant_json(config)
    chosen = offline.Int8Options.of(options)
    common.check_source(source)
    common.check_output(output, {"the input": source, "the configuration": config})
    for line in settings.notes:
        common.note(line)
    network = mnnq.load(source)
    dataset = settings.dataset(network)
    warn_of_few(dataset, settings.used_image_num or None)
    describe_data(network, dataset, preview, {"the output": output, "the configuration": config})
    offline.run_offline(
        source,
        output,
        network,
        dataset,
        chosen.config(**settings.offline_options(compat=compat)),
        chosen,
        as_json=as_json,
        every_layer=settings.debug,
    )
