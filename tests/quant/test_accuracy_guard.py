"""Evaluator, ranker and selection, each with toys; then together on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import mnnq
from mnnq.data import ArrayDataset, input_specs
from mnnq.errors import ConfigError, QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.accuracy_guard import (
    GuardLimits,
    GuardProgress,
    guard,
    parse_drop,
    rank_by_error,
    rank_by_trial,
    select,
)
from tests import mnn_models


@dataclass
class Toy:
    """A network of layers that cost a known share of the metric when they are quantized."""

    costs: dict[str, float]
    built: list[frozenset[str]] = field(default_factory=list)

    def build(self, skip: frozenset[str]) -> Any:
        self.built.append(skip)
        return skip

    def evaluate(self, model: Any) -> float:
        return 1.0 - sum(cost for layer, cost in self.costs.items() if layer not in model)

    @property
    def ranking(self) -> list[str]:
        return sorted(self.costs, key=lambda layer: -self.costs[layer])


def toy(*costs: float) -> Toy:
    return Toy({f"l{i}": cost for i, cost in enumerate(costs)})


# -- selection


def test_nothing_is_left_out_when_the_metric_is_kept() -> None:
    net = toy(0.001, 0.002)
    result = select(net.build, net.evaluate, _unused, 0.99)
    assert (result.met, result.skip, len(result.trials)) == (True, (), 1)


def _unused(_: Model) -> Sequence[str]:
    msg = "the ranking is not needed"
    raise AssertionError(msg)


@pytest.mark.parametrize(
    ("target", "want"),
    [
        (0.60, 1),  # 0.9 lost: l2 (0.5) back
        (0.85, 2),  # l2 and l0
        (0.95, 3),
        (0.99, 4),
        (1.0, 5),
    ],
)
def test_the_smallest_set_by_a_true_ranking(target: float, want: int) -> None:
    net = toy(0.25, 0.01, 0.5, 0.1, 0.04)
    result = select(net.build, net.evaluate, net.ranking, target - 1e-9)
    assert result.met
    assert result.skip == tuple(sorted(net.ranking[:want]))
    assert result.model == frozenset(result.skip)


def test_layers_that_a_wrong_ranking_put_first_are_put_back() -> None:
    net = toy(0.0, 0.0, 0.0, 0.4, 0.0, 0.3)
    result = select(net.build, net.evaluate, [f"l{i}" for i in range(6)], 0.95)
    assert result.skip == ("l3", "l5")


def test_a_layer_that_helps_when_quantized_is_not_left_out() -> None:
    net = toy(0.3, -0.05, 0.2)
    result = select(net.build, net.evaluate, ["l1", "l0", "l2"], 0.99)
    assert result.skip == ("l0", "l2")


def test_many_layers_need_few_trials() -> None:
    costs = [0.0] * 200
    costs[17], costs[3] = 0.2, 0.1
    net = toy(*costs)
    result = select(net.build, net.evaluate, net.ranking, 0.99)
    assert result.skip == ("l17", "l3")
    assert len(result.trials) <= 6
    assert len(set(net.built)) == len(net.built)


def test_the_best_found_is_kept_when_the_target_cannot_be_met() -> None:
    net = toy(0.1, 0.2)
    result = select(net.build, net.evaluate, net.ranking, 1.5)
    assert not result.met
    assert result.best.metric == pytest.approx(1.0)
    assert result.skip == ("l0", "l1")


def test_a_limit_of_trials_keeps_the_best_so_far() -> None:
    net = toy(*[0.05] * 16)
    result = select(net.build, net.evaluate, net.ranking, 0.90, limits=GuardLimits(max_trials=3))
    assert len(result.trials) == 3
    assert not result.met
    assert len(result.skip) == 2
    assert "3 trials" in (result.stopped or "")
    result = select(net.build, net.evaluate, net.ranking, 0.90, limits=GuardLimits(max_trials=6))
    assert result.met
    assert len(result.skip) == 16


def test_a_limit_of_time_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("mnnq.quantization.accuracy_guard.time.monotonic", lambda: float(next(clock)))
    net = toy(*[0.05] * 16)
    result = select(net.build, net.evaluate, net.ranking, 0.90, limits=GuardLimits(max_seconds=12))
    assert 1 <= len(result.trials) < 8
    assert "time limit of 12 s" in (result.stopped or "")


def test_progress_tells_the_best_and_the_time_left() -> None:
    seen: list[GuardProgress] = []
    net = toy(0.1, 0.2, 0.3)
    select(net.build, net.evaluate, net.ranking, 0.95, progress=seen.append)
    assert [state.done for state in seen] == list(range(1, len(seen) + 1))
    assert all(state.expected >= state.done for state in seen)
    assert seen[-1].best.met
    assert all(state.seconds_left >= 0 for state in seen)
    bests = [state.best.metric for state in seen if not state.best.met]
    assert bests == sorted(bests)


def test_a_ranking_with_a_layer_twice_is_an_error() -> None:
    net = toy(0.5, 0.5)
    with pytest.raises(QuantizationError, match="twice"):
        select(net.build, net.evaluate, ["l0", "l0"], 0.9)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"max_trials": 0}, "max_trials"),
        ({"max_trials": True}, "max_trials"),
        ({"max_seconds": 0}, "max_seconds"),
    ],
    ids=str,
)
def test_wrong_limits(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GuardLimits(**fields)
    assert caught.value.key == key


def test_guard_measures_the_float_model_first() -> None:
    net = toy(0.1, 0.2, 0.004)
    everything: Any = frozenset(net.costs)
    result = guard(net.build, net.evaluate, everything, 0.005, net.ranking)
    assert result.reference == 1.0
    assert result.target == pytest.approx(0.995)
    assert result.skip == ("l0", "l1")


@pytest.mark.parametrize(
    ("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), (0.02, 0.02), ("0", 0.0), ("1%", 0.01)]
)
def test_drops(text: str | float, value: float) -> None:
    assert parse_drop(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["abc", "-1", "nan", "%", "inf"])
def test_wrong_drops(text: str) -> None:
    with pytest.raises(ConfigError, match=r"0.5% or 0.005"):
        parse_drop(text)


# -- ranking


def test_rank_by_trial_orders_by_the_gain_of_each_layer() -> None:
    net = toy(0.1, 0.3, 0.0, 0.2)
    assert rank_by_trial(net.build, net.evaluate, list(net.costs)) == ["l1", "l3", "l0", "l2"]


def test_rank_by_error_finds_the_noisiest_layer() -> None:
    model = mnn_models.chain()
    data = ArrayDataset(
        np.random.default_rng(0).standard_normal((3, 96, 8, 8)).astype(np.float32), input_specs(model)
    )
    quantized = mnnq.quantize_weights(model, bits=8, overrides={"mid": 2})
    assert (
        rank_by_error(model, quantized, data, ["head__matmul_converted", "other", "stem", "mid"])[0] == "mid"
    )
    assert rank_by_error(model, quantized, data, ["other", "stem"])[-1] == "other"


# -- together


def test_a_model_keeps_its_decisions() -> None:
    from mnnq.quantization.metrics import make_evaluator

    model = mnn_models.chain()
    values = np.random.default_rng(1).standard_normal((40, 96, 8, 8)).astype(np.float32)
    data = ArrayDataset(values, input_specs(model))
    layers = ["stem", "mid", "head__matmul_converted"]
    evaluate = make_evaluator(data, "agreement")

    def build(skip: frozenset[str]) -> Model:
        return mnnq.quantize_weights(model, bits=2, overrides=dict.fromkeys(skip, 0))

    result = guard(build, evaluate, model, 0.1, lambda q: rank_by_error(model, q, data.subset(4), layers))
    assert result.reference == 1.0
    assert result.met
    assert result.best.metric >= 0.9 - 1e-9
    assert 0 < len(result.skip) <= 3
    if len(result.skip) > 1:
        for layer in result.skip:
            tried = [trial for trial in result.trials if trial.skip == result.best.skip - {layer}]
            assert all(not trial.met for trial in tried)
