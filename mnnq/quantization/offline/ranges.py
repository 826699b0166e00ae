"""From statistics to the codes of each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.calibration import Calibration
from mnnq.quantization.offline.config import OfflineConfig, RangeMethod
from mnnq.quantization.offline.function_ranges import Function, functions_behind, range_for
from mnnq.quantization.offline.layout import Layout

#: Fields of a ``TensorQuantInfo``.
TensorQuant = dict[str, Any]

#: Weight of clipping errors against rounding errors, which the sums of the next layer average out.
CLIPPING = 4.0

#: What tells the codes of a pooled tensor from those of its source: too little to move a value to another code.
_HAIR = 1 + 2.0**-18


def choose_codes(
    model: Model,
    layout: Layout,
    calibration: Calibration,
    config: OfflineConfig,
    clipping: Mapping[str, float] | None = None,
) -> dict[str, TensorQuant]:
    """The codes of every tensor of a layout.

    Parameters
    ----------
    clipping
        What errors of clipping weigh against those of rounding, by tensor, where it is more than usual.

    Raises
    ------
    QuantizationError
        A tensor was never computed over the data.
    """
    weights = clipping or {}
    codes: dict[str, TensorQuant] = {}
    for group in code_groups(model, layout, calibration, config):
        weight = max((weights.get(name, CLIPPING) for name in group.members), default=CLIPPING)
        chosen = group.codes(calibration, config, weight)
        codes.update({name: dict(chosen) for name in group.members})
    for target, source in layout.pooled.items():
        for name in layout.members()[target]:
            codes[name] = {**codes[source], "scale": codes[source]["scale"] * _HAIR}
    return codes


@dataclass(frozen=True)
class CodeGroup:
    """Tensors that share their codes.

    Attributes
    ----------
    members
        All of them.
    sources
        Those whose values are not only repeated from others.
    below
        Whether there may be one code more on the negative side.
    functions
        All that reads the tensors, if the range is to be chosen for the values of functions.
    """

    members: list[str]
    sources: list[str]
    below: bool
    functions: tuple[Function, ...]

    def codes(self, calibration: Calibration, config: OfflineConfig, clipping: float) -> TensorQuant:
        """The codes, where errors of clipping weigh so many times those of rounding."""
        return tensor_codes(
            calibration,
            self.sources,
            config,
            below=self.below,
            functions=self.functions,
            clipping=clipping,
        )


def code_groups(
    model: Model, layout: Layout, calibration: Calibration, config: OfflineConfig
) -> list[CodeGroup]:
    """The groups of tensors of a layout that share codes.

    Raises
    ------
    QuantizationError
        A tensor was never computed over the data.
    """
    known = set(calibration.tensors)
    moved = _moved(model, layout)
    readers: dict[str, list[Op]] = {}
    for op in model.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    outputs = set(model.outputs)
    groups = []
    for root, members in layout.members().items():
        missing = [name for name in members if name not in known]
        if missing:
            msg = f"tensor {missing[0]!r} was not computed with any sample"
            raise QuantizationError(msg)
        sources = [name for name in members if name not in moved] or members[:1]
        functions = functions_behind(members, readers, outputs) if _by_functions(config) else ()
        groups.append(CodeGroup(members, sources, root not in layout.tables, functions))
    return groups


def _moved(model: Model, layout: Layout) -> set[str]:
    """Tensors that only repeat values of others of their group."""
    found = set()
    for op in model.ops:
        inputs = [name for name in op.inputs if name in layout.described]
        for name in op.outputs:
            same = [
                layout.groups[source] == layout.groups[name] for source in inputs if name in layout.groups
            ]
            if same and all(same):
                found.add(name)
    return found


def _by_functions(config: OfflineConfig) -> bool:
    """Whether ranges may be chosen for what is computed from tensors rather than for them."""
    return config.feature_method is RangeMethod.MSE and not config.symmetric


def tensor_codes(
    calibration: Calibration,
    names: list[str],
    config: OfflineConfig,
    *,
    below: bool = True,
    functions: Sequence[Function] = (),
    clipping: float = CLIPPING,
) -> TensorQuant:
    """The codes of tensors that share them; see `CodeGroup`."""
    chosen = (config.feature_method, config.symmetric, config.compat, config.feature_limit, config.bits)
    key = ("codes", tuple(sorted(names)), below, chosen, config.percentile, tuple(functions), clipping)
    return dict(
        calibration.once(key, lambda: _choose(calibration, names, config, below, functions, clipping))
    )


def _choose(
    calibration: Calibration,
    names: list[str],
    config: OfflineConfig,
    below: bool,
    functions: Sequence[Function],
    clipping: float,
) -> TensorQuant:
    """The codes of tensors that share them."""
    method, statistics = config.feature_method, calibration.statistics
    compat = config.compat and method in (RangeMethod.KL, RangeMethod.ADMM)
    symmetric = config.symmetric or compat
    limit = config.feature_limit
    low_code = (
        -limit - 1 if below and not symmetric and limit in (127, 2 ** (config.bits - 1) - 1) else -limit
    )
    if config.compat and method is RangeMethod.KL:
        scales = [statistics.mnn_scale(name, limit) for name in names]
        found = [scale for scale in scales if scale is not None]
        if found:
            return _info(max(found), 0, -limit, limit)
    if not config.compat and any(name in calibration.inputs for name in names):
        return _input_codes(calibration, names, symmetric, low_code, limit)
    if functions and (seen := _histogram(calibration, names))[0].size:
        low, high = range_for(functions, *seen, low_code=low_code, high_code=limit, clipping=clipping)
    else:
        low, high = statistics.range(
            names,
            method.value,
            symmetric=symmetric,
            low_code=low_code,
            high_code=limit,
            percentile=config.percentile,
            clipping=clipping,
        )
    return _info(
        *_native.activation_codes(low, high, symmetric=symmetric, low_code=low_code, high_code=limit)
    )


def _histogram(
    calibration: Calibration, names: list[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values and how often they were seen, zeros apart."""
    summaries = [calibration.statistics.summary(name) for name in names]
    values = np.concatenate([summary["centres"] for summary in summaries]).astype(np.float64)
    return values, np.concatenate([summary["counts"] for summary in summaries]).astype(np.float64)


def _input_codes(
    calibration: Calibration, names: list[str], symmetric: bool, low_code: int, high_code: int
) -> TensorQuant:
    """The codes of a graph input: its whole range, stretched by up to 2 % where that suits the values better.

    Pictures are combs of few values, which may all lie halfway between codes: the error is taken from the values themselves.
    """
    statistics = calibration.statistics
    low, high = statistics.range(names, "minmax", symmetric=symmetric, low_code=low_code, high_code=high_code)
    values, counts = _histogram(calibration, names)
    best, least = None, np.inf
    for stretch in np.linspace(1.0, 1.02, 41):
        info = _info(
            *_native.activation_codes(
                low * stretch, high * stretch, symmetric=symmetric, low_code=low_code, high_code=high_code
            )
        )
        codes = np.clip(np.rint(values / info["scale"]) + info["zero"], info["min"], info["max"])
        error = float(np.square(values - (codes - info["zero"]) * info["scale"]) @ counts)
        if best is None or error < least:
            best, least = info, error
    assert best is not None
    return best


def _info(scale: float, zero: int, low: int, high: int) -> TensorQuant:
    return {
        "scale": float(scale),
        "zero": float(zero),
        "min": float(low),
        "max": float(high),
        "type": "DT_INT8",
    }


def one_sided(info: TensorQuant) -> bool:
    """Whether the codes begin at the code of 0."""
    return bool(info["zero"] == info["min"])


def is_relu_sum(op: Op) -> bool:
    """A binary operator with a fused ReLU."""
    return op.type == "BinaryOp" and int(op.params.get("activationType", 0)) == 1
