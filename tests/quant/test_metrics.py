"""Evaluators: accuracy, agreement, functions and classes of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq.data import ArrayDataset, open_dataset
from mnnq.errors import ConfigError, InputError
from mnnq.ir.model import Model, Op
from mnnq.quantization.metrics import Sample, make_evaluator
from tests.data.pictures import save


def identity(shape: tuple[int, ...] = (1, 4)) -> Model:
    """x -> Relu -> y."""
    dims = np.asarray(shape, np.int32)
    ops = [
        Op("Input", "x", [], ["x"], "Input", {"dims": dims, "dtype": "DT_FLOAT", "dformat": "NCHW"}),
        Op("ReLU", "y", ["x"], ["y"], "Relu", {"slope": 0.0}),
    ]
    return Model(ops=ops, outputs=["y"], net={"sourceType": "ONNX"})


class Labelled(ArrayDataset):
    """One-hot samples with labels."""

    def __init__(self, scores: list[int], labels: list[int]) -> None:
        from mnnq.data import input_specs

        super().__init__([{"x": np.eye(4, dtype=np.float32)[[i]]} for i in scores], input_specs(identity()))
        self._labels = tuple(labels)

    @property
    def labels(self) -> tuple[int, ...]:
        return self._labels


def test_accuracy_is_the_share_of_right_classes() -> None:
    evaluate = make_evaluator(Labelled([0, 1, 2, 3], [0, 1, 2, 0]))
    assert evaluate.name == "accuracy"
    assert evaluate(identity()) == 0.75
    assert evaluate(identity()) == 0.75


def test_accuracy_of_folders(tmp_path: Path) -> None:
    folder = save(tmp_path, ["a/1.png", "b/1.png", "b/2.png"], 4, 4)
    model = identity((1, 3, 4, 4))
    data = open_dataset(folder, model, preset="unit")
    evaluate = make_evaluator(data, "accuracy")
    assert 0 <= evaluate(model) <= 1


def test_accuracy_without_labels_is_an_error() -> None:
    data = ArrayDataset([{"x": np.zeros((1, 4))}], Labelled([0], [0]).inputs)
    with pytest.raises(ConfigError, match="accuracy needs labels"):
        make_evaluator(data, "accuracy")
    assert make_evaluator(data).name == "agreement with the float model"


def test_labels_beyond_the_classes_are_an_error() -> None:
    with pytest.raises(InputError, match="class 9, the model has 4"):
        make_evaluator(Labelled([0], [9]))(identity())


def test_agreement_compares_with_the_first_model() -> None:
    data = Labelled([0, 1, 2, 3], [0, 0, 0, 0])
    evaluate = make_evaluator(data, "agreement")
    assert evaluate(identity()) == 1.0
    broken = identity()
    broken.ops[1] = Op("UnaryOp", "y", ["x"], ["y"], "UnaryOp", {"opType": "NEG"})
    assert evaluate(broken) < 1.0


def test_a_function_of_the_user_sees_outputs_and_sample() -> None:
    seen: list[Sample] = []

    def score(outputs: Any, sample: Sample) -> float:
        seen.append(sample)
        return float(outputs["y"].argmax() == sample.label)

    assert make_evaluator(Labelled([0, 1], [0, 0]), score)(identity()) == 0.5
    assert [sample.index for sample in seen] == [0, 1]
    assert set(seen[0].feeds) == {"x"}


def test_a_class_of_the_user_is_made_anew_each_time() -> None:
    class Count:
        def __init__(self) -> None:
            self.count = 0

        def update(self, outputs: Any, sample: Sample) -> None:
            self.count += 1

        def result(self) -> float:
            return self.count

    evaluate = make_evaluator(Labelled([0, 1], [0, 0]), Count)
    assert evaluate(identity()) == evaluate(identity()) == 2


def test_metrics_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_metric.py").write_text("def half(outputs, sample):\n    return 0.5\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    data = Labelled([0], [0])
    assert make_evaluator(data, "my_own_metric:half")(identity()) == 0.5
    assert make_evaluator(data, f"{tmp_path}/my_own_metric.py:half")(identity()) == 0.5
    for spec, message in (
        ("my_own_metric:third", "has no 'third'"),
        ("my_own_metric:number", "is int, wanted a function or a class"),
        ("no_such_module:f", "cannot be imported"),
        ("missing.py:f", "cannot be imported"),
        ("top5", "use accuracy, agreement, module:function"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            make_evaluator(data, spec)
        assert caught.value.key == "metric"


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "is nan; wanted a finite number"), ("text", "failed on sample 0: ValueError")],
    ids=["nan", "text"],
)
def test_metrics_that_are_no_numbers(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_evaluator(Labelled([0], [0]), lambda outputs, sample: value)(identity())


def test_classes_without_the_methods_are_refused() -> None:
    class Empty:
        pass

    with pytest.raises(ConfigError, match="has no method 'update'"):
        make_evaluator(Labelled([0], [0]), Empty)
