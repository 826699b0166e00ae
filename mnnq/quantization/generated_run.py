"""Method ``auto`` on inputs that are made up: weights chosen without inputs and weights fitted to them; the better is kept.

"Better" is judged on made-up inputs of another kind than those fitted to, so that what only suits the kind is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mnnq.errors import ConfigError, MnnqError
from mnnq.ir.model import Model
from mnnq.quantization import generated, image_guess, tokens
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.report.quantization import QuantizationReport

#: Gain of the outputs' signal to noise ratio, on the judges, that a fit must bring.
MIN_GAIN_DB = 0.5

#: Mean gain over the kinds of judges that a fit to images must bring, which are further from photographs: with the range given,
#: and with a guess. A small MobileNetV1 gained 2.9 dB and lost on photographs, a recognizer of text 5.0 dB and gained as much.
MIN_IMAGE_GAIN_DB = 2.0
MIN_GUESS_GAIN_DB = 3.5

Feeds = Mapping[str, Any]

#: Quantizes a model in place, on samples or without.
Quantize = Callable[[Model, Sequence[Feeds] | None], QuantizationReport]


@dataclass(frozen=True)
class MadeUp:
    """Inputs that are made up.

    Attributes
    ----------
    what
        What they are, for the report.
    fitted
        Samples that weights are fitted to.
    judges
        Groups of samples of other kinds; a fit must help on each of them.
    least_gain
        By how many dB it must help on their average; on each it must by `MIN_GAIN_DB`.
    """

    what: str
    fitted: Sequence[Feeds]
    judges: Sequence[Sequence[Feeds]]
    least_gain: float = MIN_GAIN_DB


def made_up_images(model: Model, low: float, high: float) -> MadeUp:
    """Images with values from `low` to `high` for a model that takes images.

    Raises
    ------
    ConfigError
        The range is none, or the model does not take images.
    """
    generated.check_range(low, high)
    name, shape = generated.image_input(model)
    noise = generated.images(shape, generated.SAMPLES, low, high, 0)
    shapes = generated.rectangles(shape, generated.JUDGES, low, high, 0)
    what = f"generated images (1/f noise from {low:g} to {high:g})"
    return MadeUp(what, [{name: x} for x in noise], [[{name: x} for x in shapes]], MIN_IMAGE_GAIN_DB)


def made_up_inputs(model: Model) -> MadeUp | None:
    """Inputs for a model that says what they are like: tokens, or images of values of the order of 1; None for others."""
    found = made_up_tokens(model)
    if found is not None:
        return found
    guess = image_guess.guess_images(model)
    if guess is None:
        return None
    name, shape = guess
    low, high = image_guess.RANGE
    noise = generated.images(shape, generated.SAMPLES, low, high, 0)
    judges = [
        [{name: x} for x in generated.rectangles(shape, image_guess.JUDGES, *limits, seed)]
        for seed, limits in enumerate(image_guess.JUDGE_RANGES)
    ]
    what = f"generated images (1/f noise from {low:g} to {high:g}, the range being a guess)"
    return MadeUp(what, [{name: x} for x in noise], judges, MIN_GUESS_GAIN_DB)


def made_up_tokens(model: Model) -> MadeUp | None:
    """Random token sequences for a language model; None for other models."""
    found = tokens.token_input(model)
    if found is None:
        return None
    judges = found.sequences(tokens.JUDGES, 1, repeating=True)
    return MadeUp("random token sequences", found.sequences(tokens.SAMPLES, 0), [judges])


def quantize_on(
    model: Model, inputs: MadeUp, quantize: Quantize, *, threads: int | None
) -> QuantizationReport:
    """Quantize in place without any inputs and on made-up ones; the better of the two is kept, and the report says which."""
    reference, fitted = model.copy(), model.copy()
    plain = quantize(model, None)
    try:
        report = quantize(fitted, inputs.fitted)
        outputs = [
            [output_sqnr(one, reference, group, threads=threads) for one in (model, fitted)]
            for group in inputs.judges
        ]
    except ConfigError:
        raise
    except MnnqError as error:
        note = f"weights were chosen without inputs: the model does not run on {inputs.what}: {error.message}"
        return replace(plain, notes=(*plain.notes, note))
    before, after = min(outputs, key=lambda pair: pair[1] - pair[0])
    gains = [fit - without for without, fit in outputs]
    kept = min(gains) >= MIN_GAIN_DB and sum(gains) >= inputs.least_gain * len(gains)
    what = (
        f"weights and biases were fitted to {inputs.what}, not to data"
        if kept
        else f"weights were chosen without inputs: {inputs.what} do not help enough"
    )
    note = f"{what} (outputs on made-up inputs of another kind: {before:.1f} dB without, {after:.1f} dB with)"
    if not kept:
        return replace(plain, notes=(*plain.notes, note))
    model.ops, model.subgraphs, model.net = fitted.ops, fitted.subgraphs, fitted.net
    return replace(report, notes=(*report.notes, note), samples=None)
