"""Ranges of tensors that matter more than their errors tell, by what clipping does to the outputs.

A few large values can decide: the only place of a picture with an object in it, the sum of a whole row. The squared error
over all values does not know. Each tensor that is clipped is rounded alone in the float model, which is run on samples.
"""

from __future__ import annotations

from mnnq.ir.model import Model
from mnnq.passes.describe_quantized import rounding
from mnnq.quantization.offline.build import Builder, Built
from mnnq.quantization.offline.ranges import CLIPPING, CodeGroup, TensorQuant, code_groups
from mnnq.quantization.offline.sensitivity import Trials

#: Weights of clipping against rounding that are tried.
_WEIGHTS = (32.0, 1e6)

#: Ratio of the scales with the largest weight and with the usual one from which a tensor counts as clipped.
_CLIPPED = 1.05

#: Tensors that are tried, those first whose scales differ most.
_MOST = 12

#: Share of the noise of all of them from which a tensor is worth more trials.
_WORTH = 0.02

#: Share of a tensor's noise that must be left at most for another range.
_GAIN = 0.8


def measured_clipping(builder: Builder, built: Built, trials: Trials) -> dict[str, float]:
    """What clipping should weigh for which tensors.

    Parameters
    ----------
    builder, built
        A model with the usual ranges, and what made it.
    trials
        Runs models.
    """
    calibration, config = builder.calibration, builder.config
    pooled = set(built.layout.pooled)
    ranked: list[tuple[float, CodeGroup]] = []
    for group in code_groups(built.model, built.layout, calibration, config):
        if any(built.layout.groups[name] in pooled or name in calibration.inputs for name in group.members):
            continue
        usual = group.codes(calibration, config, CLIPPING)
        ratio = group.codes(calibration, config, _WEIGHTS[-1])["scale"] / usual["scale"]
        if ratio > _CLIPPED:
            ranked.append((ratio, group))
    ranked.sort(key=lambda item: -item[0])

    def noise(group: CodeGroup, weight: float) -> float:
        info = group.codes(calibration, config, weight)
        return trials.measure(rounded(calibration.model, group.sources, info)).total

    before = {id(group): noise(group, CLIPPING) for _, group in ranked[:_MOST]}
    found: dict[str, float] = {}
    for _, group in ranked[:_MOST]:
        usual_noise = before[id(group)]
        if usual_noise < _WORTH * sum(before.values()):
            continue
        least, weight = min((noise(group, weight), weight) for weight in _WEIGHTS)
        if least < _GAIN * usual_noise:
            found.update(dict.fromkeys(group.sources, weight))
    return found


def rounded(model: Model, names: list[str], info: TensorQuant) -> Model:
    """A float model in which tensors are rounded to codes."""
    new = model.copy()
    ops = []
    for op in new.ops:
        op.inputs = [f"{name}__rounded" if name in names else name for name in op.inputs]
        ops.append(op)
        for name in op.outputs:
            if name in names:
                ops += rounding(name, f"{name}__rounded", info)
    new.ops = ops
    return new
