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
from mnnq.quantization.windows import Windows

Array = npt.NDArray[Any]

#: One sample in so many is held out to choose between methods.
HOLD_OUT = 4

#: Positions per input that covariances are taken from; of larger data, evenly spread rows are counted.
POSITIONS_PER_INPUT = 64
MIN_POSITIONS = 16384

#: Largest ridge that scarce data lead to.
MOST_DAMPING = 2.0

#: With fewer samples nothing is held out.
MIN_HOLD_OUT = 4


@dataclass(frozen=True)
class Compensation:
    """Settings of error compensation.

    Attributes
    ----------
    damping
        Ridge as a fraction of the mean variance of the inputs: how far weights may move for what few samples say.
    scarcity
        What is added to it, times inputs per position that the statistics come from, up to `MOST_DAMPING`: the less
        is known of so many covariances, the less they are trusted.
    follow_float
        Aim at the outputs of the float model although earlier layers have changed the inputs.
    by_variance
        Round the inputs of the largest variance first.
    sweeps
        Most sweeps of coordinate descent and refits.
    """

    damping: float = 0.1
    scarcity: float = 0.8
    follow_float: bool = True
    by_variance: bool = True
    sweeps: int = 4

    def ridge(self, inputs: _native.InputStatistics) -> float:
        """Damping for statistics of so many inputs and positions."""
        scarce = self.scarcity * inputs.columns / max(inputs.count, 1)
        return max(self.damping, min(self.damping + scarce, MOST_DAMPING))

    @property
    def label(self) -> str:
        """Short name for reports."""
        return f"gptq(damping {self.damping:g}{'' if self.follow_float else ', own inputs'})"


#: What ``auto`` tries besides the search without data. More values of damping were tried: choosing among them per layer
#: follows the noise of few samples, and the model as a whole becomes worse than with one good value.
CANDIDATES = (Compensation(),)


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
        """Statistics of all samples."""
        if self.held_out is None:
            return self.fitted
        whole = _native.InputStatistics(*self.fitted.__getnewargs__())
        whole.merge(self.held_out)
        return whole


def collect(
    op: Op, pairs: Iterable[tuple[Array, Array]], samples: int, *, hold_out: bool, threads: int | None
) -> Inputs:
    """Collect the statistics of a layer's inputs.

    Parameters
    ----------
    pairs
        Input in the float model and in the quantized model, sample by sample.
    samples
        How many there are.
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
        step = _row_step(x.shape, windows, rows, columns, samples)
        collector.add(x, y, (top, left), (rows, columns), (step, index % step))
    if moments[0] is None:
        msg = "no calibration data was collected for the layer"
        raise QuantizationError(msg, node=op.name)
    return Inputs(moments[0].finish(), None if moments[1] is None else moments[1].finish())


def _row_step(shape: tuple[int, ...], windows: Windows, rows: int, columns: int, samples: int) -> int:
    """Every how many rows of a sample's outputs are enough for the covariances."""
    inputs = shape[1] // windows.group * windows.kernel[0] * windows.kernel[1]
    enough = max(POSITIONS_PER_INPUT * inputs, MIN_POSITIONS) / samples
    return int(max(1, min(shape[0] * rows * columns // max(enough, 1), rows)))


@dataclass(frozen=True)
class Chosen:
    """Codes of a layer and how they came about.

    Attributes
    ----------
    codes, scale, minimum
        ``[rows, row_len]``, ``[rows, blocks]``, ``[rows, blocks]`` or None.
    method
        What was chosen, for the report.
    error_before, error_after
        Relative output error on held-out samples (on all when none are held out), means corrected: of the search
        without data, of what was chosen.
    sqnr_db, relative_rms
        Error of the weights.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    minimum: npt.NDArray[np.float32] | None
    method: str
    error_before: float
    error_after: float
    sqnr_db: float
    relative_rms: float


def choose(
    weight: npt.NDArray[np.float32],
    config: LayerConfig,
    block: int | None,
    inputs: Inputs,
    candidates: Sequence[Compensation],
    threads: int | None,
) -> Chosen:
    """Choose the codes of one layer.

    With ``method="auto"`` the best of the search without data and of all candidates by the output error on held-out
    samples wins, and the winner is computed again from all samples; otherwise the only candidate is taken.

    Parameters
    ----------
    weight
        ``[rows, row_len]``, finite.
    block
        Weights per block; None for whole rows.
    """
    # What comes from another process may lie at any address.
    weight = np.require(weight, np.float32, ["C", "A"])
    return _Chooser(weight, config, block, inputs, threads).choose(candidates)


class _Chooser:
    """Chooses the codes of one layer."""

    def __init__(
        self,
        weight: npt.NDArray[np.float32],
        config: LayerConfig,
        block: int | None,
        inputs: Inputs,
        threads: int | None,
    ) -> None:
        self.weight, self.config, self.inputs, self.threads = weight, config, inputs, threads
        self._common: dict[str, Any] = {
            "bits": config.bits,
            "symmetric": config.symmetric,
            "block": block,
            "fp16_scales": config.fp16_scales,
            "threads": threads,
        }

    def choose(self, candidates: Sequence[Compensation]) -> Chosen:
        judge = self.inputs.held_out or self.inputs.fitted
        plain = self._plain()
        error = self._error(plain, judge)
        before, best_error = _relative(error), error["total"]
        best: Compensation | None = None
        if self.config.method is not WeightMethod.AUTO:
            best = candidates[0]
        elif error["own"] > 0:
            after = before
            for candidate in candidates:
                error = self._error(self._compensated(candidate, self.inputs.fitted), judge)
                if error["total"] < best_error:
                    best, best_error, after = candidate, error["total"], _relative(error)
        if best is None:
            return _chosen(plain, "search", before, before)
        everything = self.inputs.everything()
        final = self._compensated(best, everything)
        if self.config.method is not WeightMethod.AUTO or self.inputs.held_out is None:
            after = _relative(self._error(final, everything))
        return _chosen(final, best.label, before, after)

    def _plain(self) -> _native.QuantizedCodes:
        gain = self.config.gain_correction or self.config.method is WeightMethod.AUTO
        return _native.quantize_codes(self.weight, method="search", gain_correction=gain, **self._common)

    def _compensated(self, how: Compensation, inputs: _native.InputStatistics) -> _native.QuantizedCodes:
        return _native.compensate_weights(
            self.weight,
            inputs,
            damping=how.ridge(inputs),
            by_variance=how.by_variance,
            follow_float=how.follow_float,
            sweeps=how.sweeps,
            **self._common,
        )

    def _error(self, result: _native.QuantizedCodes, inputs: _native.InputStatistics) -> _native.OutputError:
        decoded = decode(result["codes"], result["scale"], result["min"], self.config.bits)
        return _native.layer_output_error(self.weight, decoded, inputs, threads=self.threads)


def _relative(error: _native.OutputError) -> float:
    return float(np.sqrt(max(error["own"], 0.0) / error["power"])) if error["power"] > 0 else 0.0


def _chosen(result: _native.QuantizedCodes, method: str, before: float, after: float) -> Chosen:
    stats = result["stats"]
    return Chosen(
        result["codes"],
        result["scale"],
        result["min"],
        method,
        before,
        after,
        stats["sqnr_db"],
        stats["relative_rms"],
    )


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
    decoded: npt.NDArray[np.float32] = shaped * scale[:, :, None] + offset
    return decoded.reshape(rows, row_len)
