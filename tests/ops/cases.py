"""One-node models as data: what goes in, which attributes, which oracle says what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import single
from tests.ops.harness import check, reference
from tests.peers.mnn_runtime import MnnRuntime


@dataclass(frozen=True)
class Case:
    """A node to convert, run and compare.

    Attributes
    ----------
    oracle
        "reference" (onnx.reference) or "onnxruntime", where the reference evaluator is wrong or lacks the form.
    """

    label: str
    op: str
    inputs: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle: str = "reference"
    rtol: float = 1e-4


def case(
    label: str,
    op: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    oracle: str = "reference",
    rtol: float = 1e-4,
    **options: Any,
) -> Case:
    return Case(f"{op}-{label}", op, inputs, constants, options, oracle, rtol)


def symbols(array: np.ndarray, keep: Sequence[int] = ()) -> list[Any]:
    """A symbolic shape; the axes in `keep` stay numbers."""
    return [size if axis in keep else f"d{axis}" for axis, size in enumerate(array.shape)]


def parametrize(cases: Iterable[Case]) -> pytest.MarkDecorator:
    found = list(cases)
    return pytest.mark.parametrize("case", found, ids=[c.label for c in found])


def onnxruntime_outputs(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def run(c: Case, runtime: MnnRuntime) -> None:
    """Convert, run in the real runtime and compare with the oracle."""
    proto = single(c.op, c.inputs, c.constants, **c.options)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        oracle = onnxruntime_outputs if c.oracle == "onnxruntime" else reference
        expected = oracle(proto, c.inputs)
    check(proto, c.inputs, runtime, rtol=c.rtol, expected=expected)
