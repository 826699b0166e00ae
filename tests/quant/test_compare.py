"""Comparing two versions of a model layer by layer."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mnnq
from mnnq.data import ArrayDataset, InputSpec, RandomDataset, input_specs
from mnnq.errors import ConfigError, InputError
from mnnq.ir.model import Model
from mnnq.report.errors import ErrorSums
from mnnq.verify import compare as compare_pairs
from tests import mnn_models


def images(count: int = 3) -> ArrayDataset:
    values = np.random.default_rng(0).standard_normal((count, 96, 8, 8)).astype(np.float32)
    return ArrayDataset(values, [InputSpec("x", "float32", (1, 96, 8, 8))])


@pytest.fixture
def pair() -> tuple[Model, Model]:
    model = mnn_models.chain()
    return model, mnnq.quantize_weights(model, bits=4)


def test_a_model_equals_itself() -> None:
    model = mnn_models.chain()
    result = mnnq.compare(model, model, images())
    assert result.passed
    assert [layer.node for layer in result.layers] == ["stem", "mid", "head__matmul_converted"]
    assert all(layer.error.sqnr_db == math.inf and layer.added == 0 for layer in result.layers)
    assert result.worst() == ()
    assert (result.samples, result.data) == (3, "3 samples of an array")


def test_numbers_are_those_of_the_formulas(pair: tuple[Model, Model]) -> None:
    data = images()
    result = mnnq.compare(*pair, data)
    (output,) = result.outputs
    sides = []
    for model in pair:
        session = mnnq.InferenceSession(_bytes(model))
        sides.append(np.stack([session.run(None, feeds)[0] for feeds in data]).astype(np.float64))
    ref, got = sides
    noise = np.square(got - ref).sum()
    assert output.sqnr_db == pytest.approx(10 * np.log10(np.square(ref).sum() / noise), abs=1e-6)
    assert output.cosine == pytest.approx((ref * got).sum() / np.linalg.norm(ref) / np.linalg.norm(got))
    assert output.max_abs == pytest.approx(np.abs(got - ref).max())
    assert output.relative == pytest.approx(np.abs(got - ref).max() / np.abs(ref).max())


def _bytes(model: Model) -> bytes:
    from mnnq.writer.to_mnn import to_bytes

    return to_bytes(model)


def test_a_layer_adds_the_noise_that_its_inputs_do_not_have(pair: tuple[Model, Model]) -> None:
    result = mnnq.compare(*pair, images())
    noise = [10 ** (-layer.error.sqnr_db / 10) for layer in result.layers]
    before = [0.0, *noise[:-1]]
    want = [max(0.0, after - own) for after, own in zip(noise, before, strict=True)]
    assert [layer.added for layer in result.layers] == pytest.approx(want)
    assert result.worst(1)[0].added == max(want)
    assert len(result.worst(2)) <= 2


def test_the_layer_that_is_rounded_most_is_the_worst() -> None:
    model = mnn_models.chain()
    result = mnnq.compare(model, mnnq.quantize_weights(model, bits=8, overrides={"mid": 2}), images())
    added = {layer.node: layer.added or 0.0 for layer in result.layers}
    assert added["mid"] > 100 * added["stem"]
    assert added["mid"] > 10 * added["head__matmul_converted"]


def test_outputs_only(pair: tuple[Model, Model]) -> None:
    result = mnnq.compare(*pair, images(), layers=False)
    assert result.layers == ()
    assert result.outputs[0].sqnr_db == pytest.approx(
        mnnq.compare(*pair, images()).outputs[0].sqnr_db, abs=0.1
    )


@pytest.mark.parametrize(
    ("limits", "passed"),
    [({"min_sqnr_db": 5.0}, True), ({"min_sqnr_db": 60.0}, False), ({"min_cosine": 0.5}, True), ({"min_cosine": 1.0}, False)],
    ids=str,
)  # fmt: skip
def test_thresholds(pair: tuple[Model, Model], limits: dict[str, float], passed: bool) -> None:
    result = mnnq.compare(*pair, images(), **limits)  # type: ignore[arg-type]
    assert result.passed is passed
    assert bool(result.failures) is not passed
    assert all("output 'y'" in line and "is below" in line for line in result.failures)


@pytest.mark.parametrize(
    ("options", "key"),
    [({"min_sqnr_db": math.nan}, "min_sqnr_db"), ({"min_cosine": 2.0}, "min_cosine")],
    ids=str,
)
def test_wrong_thresholds(pair: tuple[Model, Model], options: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mnnq.compare(*pair, images(), **options)  # type: ignore[arg-type]
    assert caught.value.key == key


def test_files_of_both_kinds(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10),
        tmp_path / "m.onnx",
    )
    mnnq.quantize_weights(mnnq.load(tmp_path / "m.onnx"), bits=8).save(tmp_path / "m.mnn")
    data = RandomDataset([InputSpec("x", "float32", (2, 64))], 2)
    result = mnnq.compare(tmp_path / "m.onnx", tmp_path / "m.mnn", data)
    assert 30 < result.outputs[0].sqnr_db < 60
    assert result.reference.endswith("m.onnx")


def test_models_that_do_not_belong_together() -> None:
    other = mnn_models.single_conv(np.ones((4, 96, 1, 1), np.float32), size=8)
    other.ops[0].outputs = ["z"]
    other.ops[1].inputs = ["z"]
    with pytest.raises(ConfigError, match="its inputs are z; model has x") as caught:
        mnnq.compare(mnn_models.chain(), other, images())
    assert caught.value.key == "inputs"


def test_tensors_only_one_has_are_listed() -> None:
    model = mnn_models.chain()
    renamed = model.copy()
    for op in renamed.ops:
        op.inputs = ["other" if name == "mid" else name for name in op.inputs]
        op.outputs = ["other" if name == "mid" else name for name in op.outputs]
    result = mnnq.compare(model, renamed, images())
    assert result.unmatched == ("other",)
    assert result.passed


def test_nan_in_a_layer_is_a_problem() -> None:
    model = mnn_models.chain()
    broken = model.copy()
    op = next(op for op in broken.ops if op.name == "mid")
    weight = op.params["weight"].copy()
    weight[0] = np.inf
    op.params["weight"] = weight
    result = mnnq.compare(model, broken, images())
    assert not result.passed
    found = {layer.node: layer for layer in result.layers}
    assert found["mid"].error.problem == "NaN or infinity"
    assert found["mid"].added is None
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_no_samples_and_wrong_samples_are_errors(pair: tuple[Model, Model]) -> None:
    with pytest.raises(ConfigError, match="no samples"):
        mnnq.compare(*pair, [])
    with pytest.raises(InputError, match="sample 0: "):
        mnnq.compare(*pair, [{"x": np.zeros((1, 96, 8, 8), np.float64)}])


def test_memory_is_that_of_one_sample(pair: tuple[Model, Model]) -> None:
    def peak(count: int) -> int:
        data = RandomDataset(input_specs(pair[0]), count)
        tracemalloc.start()
        mnnq.compare(*pair, data)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    assert peak(40) < 1.5 * peak(4)


def test_progress_and_plain_collections(pair: tuple[Model, Model]) -> None:
    seen: list[tuple[int, int]] = []

    class Two:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            return iter([dict(feeds) for feeds in images(2)])

        def __contains__(self, item: object) -> bool:
            return False

    result = mnnq.compare(*pair, Two(), progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert result.data == "2 samples"


def test_codes_are_compared_as_the_numbers_they_stand_for() -> None:
    from mnnq.report.compare import _real

    model = Model(tensor_quant={"t": {"scale": 0.5, "zero": 3.0}})
    np.testing.assert_array_equal(_real(model, "t", np.array([3, 5], np.int8)), [0.0, 1.0])
    np.testing.assert_array_equal(_real(model, "t", np.array([3.0], np.float32)), [3.0])
    np.testing.assert_array_equal(_real(model, "u", np.array([3], np.int8)), [3])


# -- sums


def test_sums_equal_a_comparison_of_pairs() -> None:
    generator = np.random.default_rng(0)
    pairs = [(generator.standard_normal((2, 5)), generator.standard_normal((2, 5))) for _ in range(4)]
    sums = ErrorSums("y")
    for reference, output in pairs:
        sums.add(reference, output)
    assert sums.result() == compare_pairs("y", pairs)


@pytest.mark.parametrize(
    ("reference", "output", "problem"),
    [
        (np.zeros(3), np.zeros(4), "shape [4], the reference has [3]"),
        (np.zeros(3), np.array([0, np.nan, 0]), "NaN or infinity"),
        (np.array([np.inf]), np.zeros(1), "the reference is not finite"),
    ],
    ids=["shape", "output", "reference"],
)
def test_problems_stay(reference: np.ndarray, output: np.ndarray, problem: str) -> None:
    sums = ErrorSums("y")
    sums.add(reference, output)
    sums.add(np.zeros(3), np.zeros(3))
    assert problem in (sums.result().problem or "")


def test_zeros_against_zeros_are_exact() -> None:
    sums = ErrorSums("y")
    sums.add(np.zeros(3), np.zeros(3))
    error = sums.result()
    assert (error.cosine, error.sqnr_db, error.relative) == (1.0, math.inf, 0.0)
