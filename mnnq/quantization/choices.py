"""What is done with a layer when the configuration alone does not settle it: block and method."""

from __future__ import annotations

from mnnq.quantization.config import BLOCK_UNIT, LayerConfig, WeightMethod

#: `WeightMethod.AUTO` corrects the gain up to this many bits: beyond, least squares attenuate too little to matter.
GAIN_BITS = 5

#: Correlation of the inputs of a kernel's taps that `WeightMethod.AUTO` counts on without data: neighbours on a feature map
#: resemble each other. Output errors of trained networks hardly differ from 0.2 to 0.5.
KERNEL_CORRELATION = 0.3


def choose_block(asked: int | None, channels: int) -> int | None:
    """Return the block to use: the largest one not above `asked` that runtimes compute correctly.

    Such a block is a multiple of 16 input channels (`BLOCK_UNIT`) and divides them. None is one block per output
    channel.
    """
    if asked is None or asked >= channels:
        return None
    candidates = range(asked - asked % BLOCK_UNIT, 0, -BLOCK_UNIT)
    return next((block for block in candidates if channels % block == 0), None)


def block_reason(asked: int | None, used: int | None, channels: int) -> str | None:
    """Why a block other than the one asked for is used; None if it is that one."""
    if asked is None or used == asked or asked >= channels:
        return None
    instead = "one block per output channel" if used is None else f"blocks of {used}"
    return f"a block of {asked} does not divide its {channels} input channels: {instead}"


def without_data(config: LayerConfig, *, normalized: bool = False) -> tuple[str, bool]:
    """Native method, and whether to correct the gain, of a layer that no data are used for.

    ``auto`` corrects it where attenuations multiply from layer to layer: not where the model normalizes its layers.
    """
    if config.method in (WeightMethod.GPTQ, WeightMethod.AUTO):
        return "search", config.gain_correction or (config.bits <= GAIN_BITS and not normalized)
    return str(config.method), config.gain_correction
