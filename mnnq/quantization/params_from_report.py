"""A quantization as a compression parameter file, to repeat or to edit it."""

from __future__ import annotations

from mnnq.ir.model import WEIGHT_OPS
from mnnq.quantization.params_file import ConvInfo, LayerParams, ParamsFile, WeightParams
from mnnq.report.quantization import QuantizationReport


def params_from_report(report: QuantizationReport) -> ParamsFile:
    """Return the strategy that gives each convolution-like layer what it has now.

    Layers that MNN's own converter cannot name (embeddings, constants) are left out; so are int8 layers.
    """
    layers = [
        LayerParams(
            op_name=layer.name,
            subgraph=layer.subgraph,
            weight=WeightParams(
                name=layer.name,
                bits=0 if layer.bits == 32 else layer.bits,
                asymmetric=layer.scheme != "symmetric",
                block=layer.block_used,
                has_block=True,
            ),
            conv=ConvInfo(layer.channels, layer.shape[0], layer.kernel) if layer.kernel else None,
        )
        for layer in report.layers
        if layer.op_type in WEIGHT_OPS and layer.method != "int8"
    ]
    return ParamsFile(tuple(layers), for_guide=True)
