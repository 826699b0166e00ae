"""What a model is worth on data: accuracy on labels, agreement with the float model, or a function of the user."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Dataset, Feeds
from mnnq.errors import ConfigError, InputError, MnnqError
from mnnq.ir.model import Model
from mnnq.runtime.session import InferenceSession, SessionOptions
from mnnq.writer.to_mnn import to_bytes

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """What a metric is told of a sample besides the outputs.

    Attributes
    ----------
    index
        Its number in the data.
    feeds
        Its inputs.
    label
        Class index, or None without labels.
    source
        Where it comes from: a file name, or "".
    """

    index: int
    feeds: Feeds
    label: int | None = None
    source: str = ""


class Metric(Protocol):
    """Judges the outputs of one model, sample by sample; larger results are better."""

    def update(self, outputs: Arrays, sample: Sample) -> None:
        """Take the outputs of one sample."""

    def result(self) -> float:
        """The value over all samples so far."""


class Mean:
    """Mean of a number per sample."""

    def __init__(self, score: Callable[[Arrays, Sample], float]) -> None:
        self._score = score
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Arrays, sample: Sample) -> None:
        """Add the score of one sample."""
        self._sum += float(self._score(outputs, sample))
        self._count += 1

    def result(self) -> float:
        """The mean."""
        return self._sum / max(self._count, 1)


def _classes(outputs: Arrays) -> npt.NDArray[Any]:
    """The first output, one row per item of the batch."""
    first = np.asarray(next(iter(outputs.values())))
    return first.reshape(first.shape[0] if first.ndim > 1 else 1, -1)


def accuracy() -> Mean:
    """Top-1 accuracy: share of samples whose largest value of the first output is at the index of the label."""

    def score(outputs: Arrays, sample: Sample) -> float:
        if sample.label is None:
            msg = "accuracy needs labels: sub-folders per class, or a file of labels"
            raise ConfigError(msg, key="metric")
        scores = _classes(outputs)
        if not 0 <= sample.label < scores.shape[1]:
            msg = f"sample {sample.index} ({sample.source}): class {sample.label}, the model has {scores.shape[1]}"
            raise InputError(msg, key="labels")
        return float(np.mean(scores.argmax(1) == sample.label))

    return Mean(score)


class Agreement:
    """Share of samples for which the largest value of the first output is where it is in the float model.

    Parameters
    ----------
    reference
        Class of the float model by sample, filled in the first evaluation: evaluate the float model first.
    """

    def __init__(self, reference: dict[int, npt.NDArray[Any]]) -> None:
        self._reference = reference
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Arrays, sample: Sample) -> None:
        """Compare one sample."""
        chosen = _classes(outputs).argmax(1)
        self._sum += float(np.mean(chosen == self._reference.setdefault(sample.index, chosen)))
        self._count += 1

    def result(self) -> float:
        """The share."""
        return self._sum / max(self._count, 1)


@dataclass(frozen=True)
class Evaluator:
    """Runs a model over data and returns its metric.

    Attributes
    ----------
    data
        Samples; labels are taken from a `Dataset` that has them.
    metric
        Makes a fresh metric for each evaluation.
    name
        What the metric is called in reports.
    options
        Options of the session.
    """

    data: Collection[Feeds]
    metric: Callable[[], Metric]
    name: str = "metric"
    options: SessionOptions | Mapping[str, Any] | None = None

    def __call__(self, model: Model) -> float:
        """Evaluate one model; larger is better.

        Raises
        ------
        ConfigError
            The metric is no finite number, or needs labels that are not there.
        InputError
            A sample does not fit the model.
        """
        session = InferenceSession(to_bytes(model), self.options)
        names = [port.name for port in session.get_outputs()]
        labels = self.data.labels if isinstance(self.data, Dataset) else None
        metric = self.metric()
        for index, feeds in enumerate(self.data):
            source = self.data.source(index) if isinstance(self.data, Dataset) else ""
            outputs = dict(zip(names, session.run(None, feeds), strict=True))
            label = None if labels is None else labels[index]
            self._update(metric, outputs, Sample(index, feeds, label, source))
        value = self._finish(metric)
        if not math.isfinite(value):
            msg = f"{self.name} is {value}; wanted a finite number"
            raise ConfigError(msg, key="metric")
        return value

    def _update(self, metric: Metric, outputs: Arrays, sample: Sample) -> None:
        try:
            metric.update(outputs, sample)
        except MnnqError:
            raise
        except Exception as error:
            msg = f"{self.name} failed on sample {sample.index}: {type(error).__name__}: {error}"
            raise ConfigError(msg, key="metric") from error

    def _finish(self, metric: Metric) -> float:
        try:
            return float(metric.result())
        except MnnqError:
            raise
        except Exception as error:
            msg = f"{self.name} gave no number: {type(error).__name__}: {error}"
            raise ConfigError(msg, key="metric") from error


def make_evaluator(
    data: Collection[Feeds],
    metric: str | Callable[..., Any] | None = None,
    *,
    options: SessionOptions | Mapping[str, Any] | None = None,
) -> Evaluator:
    """The evaluator for data and a metric by name.

    Parameters
    ----------
    metric
        ``"accuracy"`` (top-1, needs labels); ``"agreement"`` (with the float model, evaluated first);
        ``"module:name"`` or ``"file.py:name"`` or the object itself: a function ``(outputs, sample) -> number``,
        averaged over the samples, or a class with `Metric`'s methods. By default accuracy with labels, else
        agreement.

    Raises
    ------
    ConfigError
        There is no such metric, or accuracy is asked for without labels.
    """
    labelled = isinstance(data, Dataset) and data.labels is not None
    if metric is None:
        metric = "accuracy" if labelled else "agreement"
    if metric == "accuracy":
        if not labelled:
            msg = "accuracy needs labels: a folder with a sub-folder per class, or a file of labels"
            raise ConfigError(msg, key="metric")
        return Evaluator(data, accuracy, "accuracy", options)
    if metric == "agreement":
        reference: dict[int, npt.NDArray[Any]] = {}
        return Evaluator(data, lambda: Agreement(reference), "agreement with the float model", options)
    target = _import(metric) if isinstance(metric, str) else metric
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if inspect.isclass(target):
        for method in ("update", "result"):
            if not callable(getattr(target, method, None)):
                msg = (
                    f"class {name!r} has no method {method!r}; it needs update(outputs, sample) and result()"
                )
                raise ConfigError(msg, key="metric")
        make: Callable[[], Any] = target
        return Evaluator(data, make, name, options)
    if not callable(target):
        msg = f"{name!r} is {type(target).__name__}, wanted a function or a class"
        raise ConfigError(msg, key="metric")
    function = target
    return Evaluator(data, lambda: Mean(function), name, options)


def _import(spec: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` names."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        msg = f"{spec!r} is unknown; use accuracy, agreement, module:function or file.py:function"
        raise ConfigError(msg, key="metric")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    except Exception as error:
        msg = f"{place!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(msg, key="metric") from error
    try:
        return getattr(module, name)
    except AttributeError:
        msg = f"{place!r} has no {name!r}"
        raise ConfigError(msg, key="metric") from None


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is no Python file"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
