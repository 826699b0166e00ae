"""What offline int8 quantization is asked to do: checked, immutable values."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mnnq.errors import ConfigError


class RangeMethod(str, enum.Enum):
    """How the range of an activation is chosen from its statistics."""

    #: The range with the smallest expected squared error, clipping weighed more than rounding.
    MSE = "mse"
    #: The whole range seen.
    MINMAX = "minmax"
    #: Quantiles of the values.
    PERCENTILE = "percentile"
    #: The threshold whose quantized distribution diverges least from the original (Kullback-Leibler).
    KL = "kl"
    #: Least squares between values and codes, alternating.
    ADMM = "admm"
    #: Ranges of the batches, averaged with a momentum.
    EMA = "ema"

    def __str__(self) -> str:
        return self.value


class WeightRange(str, enum.Enum):
    """How the scale of an output channel's weights is chosen."""

    #: The scale with the smallest squared error.
    SEARCH = "search"
    #: The largest magnitude gets the largest code.
    MAX_ABS = "max_abs"
    #: Least squares between weights and codes, alternating, from the float weights.
    ADMM = "admm"

    def __str__(self) -> str:
        return self.value


_E = TypeVar("_E", bound=enum.Enum)


def _member(kind: type[_E], value: object, key: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(member.value) for member in kind)
        msg = f"{value!r}, wanted one of {allowed}"
        raise ConfigError(msg, key=key) from None


@dataclass(frozen=True)
class OfflineConfig:
    """What `mnnq.quantize` does.

    Attributes
    ----------
    feature_method
        How ranges of activations are chosen (`RangeMethod` or its value).
    weight_method
        How scales of weights are chosen (`WeightRange` or its value).
    symmetric
        Activations have zero point 0 and codes of -127 to 127; by default each tensor has the zero point that
        wastes the fewest codes.
    compat
        Statistics and thresholds exactly as MNN's tool computes them (`feature_method` ``"kl"``, ``"admm"`` or
        ``"ema"``), to compare files; implies `symmetric` for the first two.
    percentile
        Share of the values that the range holds, in percent, for ``"percentile"``.
    momentum
        Weight of the past, for ``"ema"``.
    feature_clamp, weight_clamp
        Largest code of activations and weights, 1 to 127.
    bits
        Bits of weights and activations, 2 to 8: bounds the codes by ``2 ** (bits - 1) - 1``; the file keeps a byte
        per code.
    skip
        Operators left float: names or patterns (``"head/*"``). Each must match an operator.
    bias_correction
        Take the mean error of each layer's output off its bias.
    sequential
        Choose weights and biases layer by layer for the inputs that the int8 model really has, with errors of rounding
        compensated (up to 64 samples): slower. Takes the place of `weight_method` for dense convolutions. None: from 24
        samples on it is tried with three quarters of them, and kept if the others show less noise; not with other settings of weights
        than the defaults, nor without the check, nor where it would take more than about half a minute on one thread.
    equalization
        Even out the channels of activations between layers where this changes nothing in float.
    keep_float
        Leave the outputs of the model float, and with them the operators that produce them.
    float_share
        Largest share of the convolutions, 0 to 1, that stay float because they cause an outsized part of the outputs'
        noise, as measured on the samples of the check; 0: none. Only where this takes at least 40 % of the noise away.
    min_sqnr_db
        The model is refused when the signal to noise ratio of an output falls below this, in dB.
    check_samples
        Number of samples, from the start of the data, that the quantized model is run on to check it; 0: none.
    force
        Return the model although the check fails.
    fix
        When the check fails, leave the worst layers float until it passes.
    max_samples
        Samples used at most; None: all.
    threads
        Threads; by default one per CPU. Results do not depend on it.
    """

    feature_method: RangeMethod = RangeMethod.MSE
    weight_method: WeightRange = WeightRange.SEARCH
    symmetric: bool = False
    compat: bool = False
    percentile: float = 99.99
    momentum: float = 0.99
    feature_clamp: int = 127
    weight_clamp: int = 127
    bits: int = 8
    skip: tuple[str, ...] = ()
    bias_correction: bool = True
    sequential: bool | None = None
    equalization: bool = True
    keep_float: bool = True
    float_share: float = 0.12
    min_sqnr_db: float = 6.0
    check_samples: int = 16
    force: bool = False
    fix: bool = False
    max_samples: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "feature_method", _member(RangeMethod, self.feature_method, "feature_method"))
        put(self, "weight_method", _member(WeightRange, self.weight_method, "weight_method"))
        put(self, "skip", _names(self.skip))
        for key in ("symmetric", "compat", "bias_correction", "equalization", "keep_float"):
            self._flag(key)
        if self.sequential is not None:
            self._flag("sequential")
        self._flag("force")
        self._flag("fix")
        for key in ("feature_clamp", "weight_clamp"):
            self._whole(key, 1, 127)
        self._whole("bits", 2, 8)
        self._whole("check_samples", 0, None)
        for key in ("max_samples", "threads"):
            if getattr(self, key) is not None:
                self._whole(key, 1, None)
        self._number("percentile", 50.0, 100.0)
        self._number("momentum", 0.0, 1.0)
        self._number("float_share", 0.0, 1.0)
        self._number("min_sqnr_db", -math.inf, math.inf)
        if self.sequential and (self.compat or self.weight_clamp < (1 << (self.bits - 1)) - 1):
            msg = "True together with compat or weight_clamp; use bits for fewer codes"
            raise ConfigError(msg, key="sequential")
        if self.compat and self.feature_method not in (RangeMethod.KL, RangeMethod.ADMM, RangeMethod.EMA):
            msg = f"True with feature_method {self.feature_method}; MNN's tool has kl, admm and ema"
            raise ConfigError(msg, key="compat")

    @property
    def weight_limit(self) -> int:
        """Largest code of a weight."""
        return min(self.weight_clamp, (1 << (self.bits - 1)) - 1)

    @property
    def feature_limit(self) -> int:
        """Largest code of an activation."""
        return min(self.feature_clamp, (1 << (self.bits - 1)) - 1)

    @property
    def tries_sequential(self) -> bool:
        """Whether the sequential stage is to be tried."""
        plain = self.bits == 8 and self.weight_clamp == 127 and self.weight_method is WeightRange.SEARCH
        checked = self.check_samples > 0 and self.bias_correction and not self.compat
        return self.sequential is None and plain and checked

    @property
    def measures_ranges(self) -> bool:
        """Whether ranges are checked by what they do to the outputs."""
        return self.feature_method is RangeMethod.MSE and not self.compat

    def _flag(self, key: str) -> None:
        if not isinstance(getattr(self, key), bool):
            msg = f"{getattr(self, key)!r} is neither True nor False"
            raise ConfigError(msg, key=key)

    def _whole(self, key: str, low: int, high: int | None) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high and value > high):
            wanted = f"{low} or more" if high is None else f"{low} to {high}"
            msg = f"{value!r}, wanted a whole number, {wanted}"
            raise ConfigError(msg, key=key)

    def _number(self, key: str, low: float, high: float) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            msg = f"{value!r}, wanted a number from {low:g} to {high:g}"
            raise ConfigError(msg, key=key)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str) or not name:
            msg = f"{name!r}, wanted names of operators or patterns"
            raise ConfigError(msg, key="skip")
    return names
