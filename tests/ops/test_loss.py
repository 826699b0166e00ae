"""Classification losses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.ops.cases import Case, case, parametrize, run
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(9)


def _cases() -> Iterator[Case]:
    operators = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    choices = itertools.product(
        operators, ((3, 5), (3, 5, 6), (2, 5, 3, 4)), ("none", "sum", "mean"), (0, 1), (None, 0, -1)
    )
    for op, shape, reduction, weighted, ignore in choices:
        x = _RNG.standard_normal(shape).astype(np.float32)
        target = _RNG.integers(0, 5, (shape[0], *shape[2:]))
        attrs: dict[str, Any] = {"reduction": reduction}
        if ignore is not None:
            attrs["ignore_index"] = ignore
            target.reshape(-1)[1] = ignore
        inputs = {"x": x, "t": target}
        if weighted:
            inputs["w"] = _RNG.uniform(0.1, 2, 5).astype(np.float32)
        label = f"{shape}-{reduction}-{weighted}-{ignore}"
        yield case(label, op, inputs, oracle="onnxruntime", **attrs)
        if op == "SoftmaxCrossEntropyLoss":
            yield case(f"{label}-log", op, inputs, n_outputs=2, oracle="onnxruntime", **attrs)


@parametrize(_cases())
def test_losses(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)
