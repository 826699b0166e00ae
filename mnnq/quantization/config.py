"""What weight quantization is asked to do: checked, immutable values."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, TypedDict

from mnnq.errors import ConfigError

#: Bit widths that a layer may be given: float, codes of 2 to 8 bits, half floats.
BITS = (0, 2, 3, 4, 5, 6, 7, 8, 16)

#: Blocks are multiples of this many input channels: what every runtime of the format computes.
BLOCK_UNIT = 16


class WeightMethod(str, enum.Enum):
    """How scales, minima and codes are chosen."""

    #: The range of the block, then round to nearest: MNN's rule, code for code.
    RTN = "rtn"
    #: MNN's HQQ, code for code (asymmetric only).
    HQQ = "hqq"
    #: Half-quadratic quantization as published, with early stop (asymmetric only).
    HQQ_REFERENCE = "hqq_ref"
    #: Clipping search and least squares: the smallest squared error found.
    SEARCH = "search"
    #: Error compensation on calibration data (`mnnq.quantization.calibrated`); needs data.
    GPTQ = "gptq"
    #: The best of `SEARCH` and several compensations, layer by layer, on held-out samples; without data `SEARCH`
    #: with gain correction.
    AUTO = "auto"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, value: str | WeightMethod) -> WeightMethod:
        """Return the method of that name.

        Raises
        ------
        ConfigError
            The name is unknown.
        """
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(member.value for member in cls)
            msg = f"unknown method {value!r}; use one of {known}"
            raise ConfigError(msg, key="method") from None


def check_bits(bits: object) -> int:
    """Return `bits` if a layer can have that many.

    Raises
    ------
    ConfigError
        It is not one of `BITS`.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        msg = f"{bits!r} bits are not possible; use 2 to 8, 16 (half floats) or 0 (leave float)"
        raise ConfigError(msg, key="bits")
    return bits


def check_block(block: object) -> int | None:
    """Return `block` as a positive number of input channels, or None for one block per output channel.

    0 and -1 mean None, as in MNN's files.

    Raises
    ------
    ConfigError
        It is no whole number, or no block of that size can be stored.
    """
    if block is None or (isinstance(block, int) and not isinstance(block, bool) and block in (0, -1)):
        return None
    if isinstance(block, bool) or not isinstance(block, int) or block < BLOCK_UNIT:
        msg = (
            f"a block of {block!r} input channels is not possible; use a multiple of {BLOCK_UNIT}, "
            "or 0 for one block per output channel"
        )
        raise ConfigError(msg, key="block")
    if block % BLOCK_UNIT:
        below = block - block % BLOCK_UNIT
        msg = (
            f"a block of {block} input channels is not possible: runtimes compute multiples of {BLOCK_UNIT} "
            f"only; use {below} or {below + BLOCK_UNIT}"
        )
        raise ConfigError(msg, key="block")
    return block


@dataclass(frozen=True)
class LayerConfig:
    """What one layer is asked to become; every part is decided.

    Attributes
    ----------
    bits
        0 leaves the weights as they are, 2 to 8 are codes, 16 is half floats.
    symmetric
        Scale only (``w = scale * code``); else scale and minimum (``w = min + scale * index``).
    block
        Input channels that share a scale; None for all of an output channel.
    method
        How scales and codes are chosen.
    gain_correction
        Refit each output channel so that its gain is 1 and its mean error 0.
    fp16_scales
        Store scales and minima as half floats.
    sparse
        Use the sparse encoding where it is smaller.
    """

    bits: int = 8
    symmetric: bool = False
    block: int | None = None
    method: WeightMethod = WeightMethod.RTN
    gain_correction: bool = False
    fp16_scales: bool = False
    sparse: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        object.__setattr__(self, "block", check_block(self.block))
        object.__setattr__(self, "method", WeightMethod.parse(self.method))
        for name in ("symmetric", "gain_correction", "fp16_scales", "sparse"):
            if not isinstance(getattr(self, name), bool):
                msg = f"{getattr(self, name)!r} is neither True nor False"
                raise ConfigError(msg, key=name)
        if self.symmetric and self.coded and self.method in (WeightMethod.HQQ, WeightMethod.HQQ_REFERENCE):
            msg = (
                f"method {self.method} fits an offset, which symmetric weights do not have; "
                "use asymmetric weights, or method search or rtn"
            )
            raise ConfigError(msg, key="method")

    @property
    def coded(self) -> bool:
        """Whether the weights become integer codes."""
        return 2 <= self.bits <= 8

    @property
    def scheme(self) -> str:
        """``"symmetric"`` or ``"asymmetric"``."""
        return "symmetric" if self.symmetric else "asymmetric"


#: Fields of `LayerConfig` that matter for codes only, with the values that ask for nothing.
CODE_FIELDS: Mapping[str, object] = {
    entry.name: entry.default for entry in fields(LayerConfig) if entry.name != "bits"
}


@dataclass(frozen=True)
class Override:
    """What is different for some layers.

    Attributes
    ----------
    pattern
        Shell pattern over layer names (``*``, ``?``, ``[...]``; case matters), or an exact name. A layer made
        from a MatMul answers to its name with and without the suffix ``__matmul_converted``.
    changes
        Fields of `LayerConfig` with their values.
    subgraph
        Subgraph that the layer is in ("" for the main graph), or None for any.
    exact
        The pattern is a plain name, whatever characters it holds.
    """

    pattern: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    subgraph: str | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        known = {entry.name for entry in fields(LayerConfig)}
        for name in self.changes:
            if name not in known:
                msg = f"override {self.pattern!r}: unknown field; use {', '.join(sorted(known))}"
                raise ConfigError(msg, key=name)
        if "bits" in self.changes and check_bits(self.changes["bits"]) in (0, 16) and not self.exact:
            for name, default in CODE_FIELDS.items():
                if self.changes.get(name, default) != default:
                    msg = f"override {self.pattern!r}: it does nothing with {self.changes['bits']} bits"
                    raise ConfigError(msg, key=name)
        if "block" in self.changes:
            check_block(self.changes["block"])
        if "method" in self.changes:
            WeightMethod.parse(self.changes["method"])

    def matches(self, subgraph: str, name: str) -> bool:
        """Whether the layer `name` of `subgraph` is meant."""
        if self.subgraph is not None and self.subgraph != subgraph:
            return False
        names = {name, name.removesuffix("__matmul_converted")}
        if self.exact:
            return self.pattern in names
        return any(self.pattern == one or fnmatchcase(one, self.pattern) for one in names)


class WeightOptions(TypedDict, total=False):
    """Fields of `WeightConfig` as keyword arguments, in the types that it accepts."""

    bits: int
    symmetric: bool
    block: int | None
    method: WeightMethod | str
    gain_correction: bool
    fp16_scales: bool
    sparse: bool
    overrides: Sequence[Override] | Mapping[str, int | Mapping[str, Any]]
    embeddings: bool
    fp16_constants: bool
    allow_unmatched: bool
    threads: int | None
    bias_correction: bool


@dataclass(frozen=True)
class WeightConfig(LayerConfig):
    """What the weights of a model are asked to become. The first fields are those of every layer.

    Attributes
    ----------
    overrides
        What is different for some layers; later ones win. A mapping from pattern to a dict of fields (or to a
        number of bits) is accepted too.
    embeddings
        Quantize tables that are looked up by row (``GatherV2`` on a constant).
    fp16_constants
        Store large float constants as half floats (weights follow `bits`).
    allow_unmatched
        An override that matches no layer is a warning, not an error.
    threads
        Threads to use; None for all CPUs.
    bias_correction
        With calibration data: make the mean of every output channel that of the float model.
    """

    overrides: tuple[Override, ...] = ()
    embeddings: bool = True
    fp16_constants: bool = False
    allow_unmatched: bool = False
    threads: int | None = None
    bias_correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "overrides", _overrides(self.overrides))
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            msg = f"{self.threads!r} threads are not possible; use 1 or more"
            raise ConfigError(msg, key="threads")
        for override in self.overrides:
            self._apply(self._base(), [override])

    def layer(self, subgraph: str, name: str) -> LayerConfig:
        """Return what is asked of one layer."""
        return self._apply(self._base(), [o for o in self.overrides if o.matches(subgraph, name)])

    def unmatched(self, layers: list[tuple[str, str]]) -> list[Override]:
        """Return the overrides that match none of the layers, given as (subgraph, name)."""
        return [o for o in self.overrides if not any(o.matches(*layer) for layer in layers)]

    def _base(self) -> LayerConfig:
        return LayerConfig(**{entry.name: getattr(self, entry.name) for entry in fields(LayerConfig)})

    @staticmethod
    def _apply(base: LayerConfig, overrides: list[Override]) -> LayerConfig:
        for override in overrides:
            base = _changed(base, override)
        return base


def _changed(base: LayerConfig, override: Override) -> LayerConfig:
    try:
        return replace(base, **override.changes)
    except ConfigError as error:
        msg = f"layer {override.pattern!r}: {error.message}"
        raise ConfigError(msg, key=error.key) from None


def _overrides(value: object) -> tuple[Override, ...]:
    if isinstance(value, Mapping):
        return tuple(
            Override(str(pattern), changes if isinstance(changes, Mapping) else {"bits": changes})
            for pattern, changes in value.items()
        )
    if isinstance(value, (tuple, list)) and all(isinstance(entry, Override) for entry in value):
        return tuple(value)
    msg = "give Override values, or a mapping from layer pattern to fields"
    raise ConfigError(msg, key="overrides")
