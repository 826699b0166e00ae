"""The node tests of the onnx package that this package's runtime is held to (see ``node_suite.py``)."""

from __future__ import annotations

from functools import cache

import pytest

from tests.runtime import node_suite

pytestmark = pytest.mark.slow


@cache
def _cases() -> dict[str, node_suite.Case]:
    return {case.label: case for case in node_suite.cases()}


@pytest.mark.parametrize("label", sorted(node_suite.recorded()))
def test_node(label: str) -> None:
    case = _cases().get(label)
    if case is None:
        pytest.skip("the installed onnx package has no such test")
    node_suite.run(case)


def test_the_record_is_sorted_and_holds_what_the_runtime_is_for() -> None:
    lines = node_suite.RECORD.read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    counts = {
        variant: sum(line.endswith(f":{variant}") for line in lines) for variant in ("as-is", "constants")
    }
    assert counts["as-is"] >= 950
    assert counts["constants"] >= 700
