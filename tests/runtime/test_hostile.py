"""Damaged models never crash, hang or look like bugs: they run or are refused with a message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import mnnq
from mnnq.convert import convert_onnx
from tests import builders, mnn_models

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of the address space")

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "mnn"
RNG = np.random.default_rng(1)


def _shapes() -> onnx.ModelProto:
    """Shape arithmetic, a slice, a reduction and a lookup: operators whose parameters decide on memory."""
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["g"]),
        helper.make_node("Shape", ["g"], ["s"]),
        helper.make_node("Expand", ["one", "s"], ["e"]),
        helper.make_node("Add", ["g", "e"], ["a"]),
        helper.make_node("Slice", ["a", "starts", "ends"], ["c"]),
        helper.make_node("Pad", ["c", "pads"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Softmax", ["m"], ["y"], axis=-1),
    ]
    constants = {
        "table": RNG.standard_normal((16, 8)).astype(np.float32),
        "one": np.ones(1, np.float32),
        "starts": np.asarray([0, 1], np.int64),
        "ends": np.asarray([2, 3], np.int64),
        "pads": np.asarray([0, 1, 0, 0, 1, 0], np.int64),
    }
    return builders.model(nodes, {"i": np.zeros((2, 3), np.int64)}, ["y"], constants, opset=13)


def _indexing() -> onnx.ModelProto:
    """Operators that read and write where their operands say."""
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=1),
        helper.make_node("GatherElements", ["x", "i"], ["g"], axis=1),
        helper.make_node("ScatterND", ["x", "at", "rows"], ["s"]),
        helper.make_node("GatherND", ["s", "at"], ["n"]),
        helper.make_node("CumSum", ["n", "axis"], ["c"]),
        helper.make_node("OneHot", ["i", "depth", "values"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["o"], keepdims=0),
        helper.make_node("Add", ["c", "o"], ["y"]),
    ]
    constants = {
        "k": np.asarray([2], np.int64),
        "at": np.asarray([[0], [2]], np.int64),
        "rows": RNG.standard_normal((2, 6)).astype(np.float32),
        "axis": np.asarray(1, np.int64),
        "depth": np.asarray(6, np.int64),
        "values": np.asarray([0, 1], np.float32),
    }
    return builders.model(nodes, {"x": np.zeros((4, 6), np.float32)}, ["y", "g"], constants, opset=13)


def _loop() -> onnx.ModelProto:
    """A recurrent layer: a loop with a body."""
    shape = {"x": (5, 1, 4), "w": (1, 16, 4), "r": (1, 16, 4), "b": (1, 32)}
    constants = {name: RNG.standard_normal(shape[name]).astype(np.float32) for name in ("w", "r", "b")}
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=4)
    return builders.model([node], {"x": np.zeros(shape["x"], np.float32)}, ["y"], constants)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models of every kind of weights, of shape arithmetic and control flow, and the fixtures if they are there."""
    folder = tmp_path_factory.mktemp("models")
    chain = mnn_models.chain(channels=16, hidden=8)
    chain.save(folder / "float.mnn")
    for bits in (2, 4, 8, 16):
        mnnq.quantize_weights(chain, bits=bits).save(folder / f"w{bits}.mnn")
    mnnq.load(ROOT / "examples" / "digits" / "digits.onnx").save(folder / "digits.mnn")
    convert_onnx(_shapes()).save(folder / "shapes.mnn")
    convert_onnx(_indexing()).save(folder / "indexing.mnn")
    convert_onnx(_loop()).save(folder / "loop.mnn")
    return [*sorted(folder.glob("*.mnn")), *sorted(FIXTURES.glob("*.mnn"))]


def _attack(paths: list[Path], count: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.runtime.hostile", "--count", str(count), "--seed", str(seed)]
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == count
    assert [result for result in results if result["outcome"] not in ("ran", "refused")] == []
    # The damage must reach the runtime: some of it does no harm, most of it is noticed.
    assert set(Counter(result["outcome"] for result in results)) == {"ran", "refused"}


def test_damaged_models_run_or_are_refused(models: list[Path]) -> None:
    _attack(models, 150, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1_000_000])
def test_many_damaged_models_run_or_are_refused(models: list[Path], seed: int) -> None:
    _attack(models, 1000, seed)


def test_the_undamaged_models_run(models: list[Path]) -> None:
    from tests.runtime.hostile import attempt

    for path in models:
        if not path.with_name(f"{path.name}.weight").exists():  # from bytes there is no file beside
            assert attempt(path.read_bytes(), 0) == ("ran", ""), path.name


def test_the_harness_notices_crashes_hangs_and_foreign_errors() -> None:
    code = (
        "import os, time\n"
        "from tests.runtime import hostile\n"
        "def attempt(data, seed):\n"
        "    if data == b'abort': os.abort()\n"
        "    if data == b'sleep': time.sleep(60)\n"
        "    if data == b'empty': return real(b'', seed)\n"
        "    return 'wrong error', 'TypeError: x'\n"
        "real, hostile.attempt, hostile.TIMEOUT = hostile.attempt, attempt, 3.0\n"
        "print([hostile.in_child(data, 0)[0] for data in (b'abort', b'sleep', b'empty', b'type')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['signal', 'hung', 'refused', 'wrong error']"
