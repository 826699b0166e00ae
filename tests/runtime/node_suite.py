"""The node tests of the onnx package, converted and run by this package's runtime.

Every test has two variants: ``as-is`` feeds all inputs at run time, ``constants`` feeds the first and freezes the
others to initializers (tests with at least two inputs). A test passes if all outputs have the shape and the values
that the onnx package wants. ``python -m tests.runtime.node_suite`` counts them and says what the others fail with;
with ``--record`` it adds those that pass to the list that ``test_onnx_node_suite.py`` holds the package to.
"""

from __future__ import annotations

import argparse
import collections
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from mnnq.runtime import InferenceSession, SessionOptions

#: Names of the tests that must pass, ``name:variant``, one per line.
RECORD = Path(__file__).with_name("node_suite_passes.txt")

#: Types that are outside what the runtime is for.
_OTHER_TYPES = ("bfloat16", "float8", "float4", "float6", "int4", "uint4", "int2", "uint2")


@dataclass(frozen=True)
class Case:
    """One variant of one node test."""

    name: str
    variant: str
    model: onnx.ModelProto
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    @property
    def label(self) -> str:
        """What the record calls it."""
        return f"{self.name}:{self.variant}"


def _arrays(values: Any) -> tuple[np.ndarray, ...] | None:
    """Arrays of tensors, None if there is anything else or a type out of scope."""
    arrays = []
    for value in values:
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if not isinstance(value, (np.ndarray, np.generic)):
            return None
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.dtype.name.startswith(_OTHER_TYPES):
            return None
        arrays.append(array)
    return tuple(arrays)


def _freeze(model: onnx.ModelProto, inputs: tuple[np.ndarray, ...]) -> onnx.ModelProto:
    """Make constants of all inputs but the first."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    for info, array in zip(model.graph.input[1:], inputs[1:], strict=True):
        frozen.graph.initializer.append(numpy_helper.from_array(array, info.name))
    del frozen.graph.input[1:]
    return frozen


def cases() -> Iterator[Case]:
    """All variants of all tests in scope."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        loaded = load_model_tests(kind="node")
    for case in loaded:
        if case.model is None or not case.data_sets:
            continue
        inputs, outputs = (_arrays(values) for values in case.data_sets[0])
        if inputs is None or outputs is None:
            continue
        yield Case(case.name, "as-is", case.model, inputs, outputs)
        if len(inputs) > 1:
            yield Case(case.name, "constants", _freeze(case.model, inputs), inputs[:1], outputs)


def run(case: Case) -> None:
    """Convert, run and compare.

    Raises
    ------
    MnnqError
        If the model is refused or does not run.
    AssertionError
        If a shape or a value is wrong.
    """
    session = InferenceSession(case.model, SessionOptions(threads=1, allow_nan=True))
    feeds = {info.name: array for info, array in zip(case.model.graph.input, case.inputs, strict=True)}
    names = [info.name for info in case.model.graph.output]
    for name, have, want in zip(names, session.run(names, feeds), case.outputs, strict=True):
        have = np.asarray(have)
        assert have.shape == want.shape, f"{name}: shape {have.shape}, want {want.shape}"
        if want.dtype.kind == "f":
            assert have.dtype.kind == "f", f"{name}: type {have.dtype}, want {want.dtype}"
            rtol, atol = (1e-2, 1e-3) if want.dtype == np.float16 else (1e-3, 1e-5)
            np.testing.assert_allclose(
                have.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, err_msg=name
            )
        else:
            assert have.dtype.kind in "biu", f"{name}: type {have.dtype}, want {want.dtype}"
            assert [int(v) for v in have.flat] == [int(v) for v in want.flat], f"{name}: other integers"


def recorded() -> set[str]:
    """The labels that must pass."""
    return set(RECORD.read_text(encoding="utf-8").split())


def _reason(error: BaseException) -> str:
    """First line that says something, without names and numbers that differ from case to case."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " | ".join(lines[:3])
    return f"{type(error).__name__}: {re.sub(r'bool: True', '', text)[:230]}"


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="add what passes to the record")
    parser.add_argument("--only", default="", help="regular expression of labels")
    options = parser.parse_args()
    passes: collections.Counter[str] = collections.Counter()
    totals: collections.Counter[str] = collections.Counter()
    known, good = recorded() if RECORD.exists() else set(), set()
    for case in cases():
        if not re.search(options.only, case.label):
            continue
        totals[case.variant] += 1
        try:
            run(case)
        except Exception as error:
            lost = " (RECORDED AS PASSING)" if case.label in known else ""
            print(f"{case.label}{lost}\t{_reason(error)}", flush=True)
            continue
        good.add(case.label)
        passes[case.variant] += 1
    for variant, total in totals.items():
        print(f"{variant}: {passes[variant]} of {total} pass")
    print(f"{len(good - known)} of them are not in the record")
    if options.record:
        RECORD.write_text("".join(f"{label}\n" for label in sorted(known | good)), encoding="utf-8")


if __name__ == "__main__":
    main()
