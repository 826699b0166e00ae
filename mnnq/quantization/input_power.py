"""What is known of a layer's inputs without data: how strongly each of them is excited.

Behind a normalization, input channel k is ``gamma_k z + beta_k`` with z of mean 0 and mean square 1 over the channels, so
that its mean square is near ``gamma_k^2 + beta_k^2``. Weights of strong inputs then deserve the smaller errors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Op

#: Operators that a normalized tensor passes on its way to a layer without a change of its values.
_COPIES = frozenset({"ConvertTensor", "Reshape", "Squeeze", "Unsqueeze"})


def input_powers(ops: Iterable[Op]) -> dict[int, npt.NDArray[np.float64]]:
    """Mean square of every input of the linear layers behind layer normalizations, by identity of the operator."""
    ops = list(ops)
    makers = {name: op for op in ops for name in op.outputs}
    found = {}
    for op in ops:
        common = op.params.get("common", {})
        if op.type != "Convolution" or op.param_type != "Convolution2D" or int(common.get("group", 1)) > 1:
            continue
        maker = makers.get(op.inputs[0])
        while maker is not None and maker.type in _COPIES:
            maker = makers.get(maker.inputs[0])
        if maker is None or maker.type != "LayerNorm":
            continue
        gamma = np.asarray(maker.params.get("gamma", ()), np.float64).reshape(-1)
        beta = np.asarray(maker.params.get("beta", ()), np.float64).reshape(-1)
        if gamma.size:
            found[id(op)] = np.square(gamma) + (np.square(beta) if beta.size == gamma.size else 0.0)
    return found
