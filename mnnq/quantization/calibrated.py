"""Weights of a layer chosen for the inputs it sees: statistics, candidates, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Op
from mnnq.quantization.config import LayerConfig, WeightMethod
from mnnq.quantization.stored import float_weights
from mnnq.quantization.windows import Windows

Array = npt.NDArray[Any]

#: One sample in so many is held out to choose between methods.
HOLD_OUT = 4

#: With fewer samples nothing is held out.
MIN_HOLD_OUT = 4


@dataclass(frozen=True)
class Compensation:
    """Settings of error compensation.

    Attributes
    ----------
    damping
        Ridge as a fraction of the mean variance of the inputs: how far weights may move for what few samples say.
    follow_float
        Aim at the outputs of the float model although earlier layers have changed the inputs.
    by_variance
        Round the inputs of the largest variance first.
    sweeps
        Most sweeps of coordinate descent and refits.
    """

    damping: float = 0.03
    follow_float: bool = True
    by_variance: bool = True
    sweeps: int = 4

    @property
    def label(self) -> str:
        """Short name for reports."""
        return f"gptq(damping {self.damping:g}{'' if self.follow_float else ', own inputs'})"


#: What ``auto`` tries besides the search without data.
CANDIDATES = tuple(
    Compensation(damping=damping, follow_float=follow) for damping in (0.01, 0.1, 1.0) for follow in (True, False)
)


@dataclass(frozen=True)
class Inputs:
    """Statistics of a layer's inputs.

    Attributes
    ----------
    fitted
        From the samples that weights are chosen with.
    held_out
        From other samples, to judge the choice; None when there are too few.
    """

    fitted: _native.InputStatistics
    held_out: _native.InputStatistics | None

    def everything(self) -> _native.InputStatistics:
        """Statistics of all samples; `fitted` becomes them."""
        if self.held_out is not None:
            self.fitted.merge(self.held_out)
        return self.fitted


def collect(op: Op, pairs: Iterable[tuple[Array, Array]], *, hold_out: bool, threads: int | None) -> Inputs:
    """Collect the statistics of a layer's inputs.

    Parameters
    ----------
    pairs
        Input in the float model and in the quantized model, sample by sample.
    hold_out
        Whether to keep one sample in `HOLD_OUT` apart.
    """
    windows = Windows.of(op)
    moments: list[_native.InputMoments | None] = [None, None]
    for index, (exact, actual) in enumerate(pairs):
        if actual.ndim != 4:
            msg = f"its input has shape {list(actual.shape)}, wanted [N, C, H, W]"
            raise QuantizationError(msg, node=op.name)
        side = int(hold_out and index % HOLD_OUT == HOLD_OUT - 1)
        same = exact is actual
        collector = moments[side]
        if collector is None:
            collector = moments[side] = _native.InputMoments(
                actual.shape[1],
                windows.group,
                kernel=windows.kernel,
                stride=windows.stride,
                dilation=windows.dilation,
                cross=not same,
                threads=threads,
            )
        (top, rows), (left, columns) = windows.axis(0, actual.shape[2]), windows.axis(1, actual.shape[3])
        x = np.require(actual, np.float32, ["C", "A"])
        y = None if same else np.require(exact, np.float32, ["C", "A"])
        collector.add(x, y, (top, left), (rows, columns))
    if moments[0] is None:
        msg = "no calibration data was collected for the layer"
        raise QuantizationError(msg, node=op.name)
    return Inputs(moments[0].finish(), None if moments[1] is None else moments[1].finish())


@dataclass(frozen=True)
class Chosen:
    """Codes of a layer and how they came about.

    Attributes
    ----------
    codes, scale, minimum
        ``[rows, row_len]``, ``[rows, blocks]``, ``[rows, blocks]`` or None.
    method
        Name for the report.
    error_before, error_after
        Relative output error on held-out samples (on all when none are held out), means corrected: of the search
        without data, of what was chosen.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    minimum: npt.NDArray[np.float32] | None
    stats: _native.WeightStats
    method: str
    error_before: float
    error_after: float


class Chooser:
    """Chooses the codes of one layer."""

    def __init__(
        self, weight: Array, config: LayerConfig, block: int | None, inputs: Inputs, threads: int | None
    ) -> None:
        self.weight = np.require(weight, np.float32, ["C", "A"])
        self.config, self.inputs, self.threads = config, inputs, threads
        self._common: dict[str, Any] = {
            "bits": config.bits,
            "symmetric": config.symmetric,
            "block": block,
            "fp16_scales": config.fp16_scales,
            "threads": threads,
        }

    def choose(self, candidates: Sequence[Compensation]) -> Chosen:
        """Return the best of plain search and compensation by the error on held-out samples.

        The winner is computed again from all samples. A single candidate is taken as it is.
        """
        judge = self.inputs.held_out or self.inputs.fitted
        plain = self._plain(gain=self.config.gain_correction)
        plain_error = self._error(plain, judge)
        power = max(plain_error["power"], 1e-30)
        before = plain_error["own"] / power
        best, best_error = (None, plain_error["total"])
        trial = plain
        if len(candidates) == 1 and self.config.method is not WeightMethod.AUTO:
            best = candidates[0]
        else:
            for candidate in candidates:
                result = self._compensated(candidate, self.inputs.fitted)
                error = self._error(result, judge)["total"]
                if error < best_error:
                    best, best_error, trial = candidate, error, result
        after = self._error(trial, judge)["own"] / power
        if best is None:
            return self._chosen(plain, "search", before, before)
        everything = self.inputs.everything()
        final = self._compensated(best, everything)
        if self.inputs.held_out is None or len(candidates) == 1:
            after = self._error(final, everything)["own"] / power
        return self._chosen(final, best.label, before, after)

    def _plain(self, *, gain: bool) -> _native.QuantizedCodes:
        return _native.quantize_codes(self.weight, method="search", gain_correction=gain, **self._common)

    def _compensated(self, how: Compensation, inputs: _native.InputStatistics) -> _native.QuantizedCodes:
        return _native.compensate_weights(
            self.weight,
            inputs,
            damping=how.damping,
            by_variance=how.by_variance,
            follow_float=how.follow_float,
            sweeps=how.sweeps,
            **self._common,
        )

    def _error(self, result: _native.QuantizedCodes, inputs: _native.InputStatistics) -> dict[str, float]:
        return _native.layer_output_error(self.weight, self.decoded(result), inputs, threads=self.threads)

    def decoded(self, result: _native.QuantizedCodes) -> npt.NDArray[np.float32]:
        """Weights that codes stand for."""
        return decode(result["codes"], result["scale"], result["min"], self.config.bits)

    def _chosen(self, result: _native.QuantizedCodes, method: str, before: float, after: float) -> Chosen:
        return Chosen(
            result["codes"], result["scale"], result["min"], result["stats"], method,
            float(np.sqrt(max(before, 0))), float(np.sqrt(max(after, 0))),
        )  # fmt: skip


def decode(
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    minimum: npt.NDArray[np.float32] | None,
    bits: int,
) -> npt.NDArray[np.float32]:
    """Weights ``[rows, row_len]`` of codes with scales and minima ``[rows, blocks]``."""
    rows, row_len = codes.shape
    shaped = codes.reshape(rows, scale.shape[1], -1).astype(np.float32)
    offset = np.float32(0) if minimum is None else (minimum + np.float32(1 << (bits - 1)) * scale)[:, :, None]
    return (shaped * scale[:, :, None] + offset).reshape(rows, row_len)


def mean_outputs(inputs: _native.InputStatistics, exact_op: Op, op: Op) -> tuple[Array, Array]:
    """Mean outputs without bias of the float layer on its inputs, and of the quantized layer on its own."""
    actual, exact = inputs.means()
    results = []
    for layer, mean in ((exact_op, exact), (op, actual)):
        weight = np.asarray(float_weights(layer), np.float64)
        rows = weight.reshape(mean.shape[0], -1, mean.shape[1])
        results.append(np.einsum("gok,gk->go", rows, mean).reshape(-1))
    return results[0], results[1]
