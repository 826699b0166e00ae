"""Sampling and rearranging of images: GridSample, RoiAlign, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import itertools

import numpy as np

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node

#: Keys' coefficient of GridSample's cubic mode.
_CUBIC = -0.75


@lowers("DepthToSpace")
def depth_to_space(b: Lowering, node: Node) -> None:
    """``DepthToSpace`` in both orders."""
    attrs = attributes(node, blocksize=0, mode="DCR")
    if attrs["mode"] not in ("DCR", "CRD"):
        msg = f"mode {attrs['mode']!r}"
        raise Unsupported(msg)
    block, shape, x = int(attrs["blocksize"]), b.shape(node.input(0)), node.input(0)
    info = None
    if shape is not None:
        known = [d if isinstance(d, int) else None for d in shape]
        channels = None if known[1] is None else known[1] // block**2
        info = emit.with_shape(
            b, x, [shape[0], channels, *(None if d is None else d * block for d in known[2:])]
        )
    b.emit(
        "DepthToSpace", [x], node.outputs[0], param_type="DepthSpaceParam", blockSize=block, mode=attrs["mode"],
        info=info,
    )  # fmt: skip


@lowers("SpaceToDepth")
def space_to_depth(b: Lowering, node: Node) -> None:
    """``SpaceToDepth``, the inverse of ``DepthToSpace`` in DCR order."""
    attrs = attributes(node, blocksize=0, mode="DCR")
    block, x = int(attrs["blocksize"]), node.input(0)
    if attrs["mode"] == "CRD":
        n, c, h, w = ((x, i) for i in range(4))
        height, width = emit.known_dim(b, h), emit.known_dim(b, w)
        if height is None or width is None:
            msg = "mode 'CRD' over sizes that are not known: give the input shape"
            raise Unsupported(msg)
        cut = emit.reshape_to(b, x, [n, c, height // block, block, width // block, block])
        moved = b.permute(cut, [0, 1, 3, 5, 2, 4])
        channels = emit.known_dim(b, c)
        depth = -1 if channels is None else channels * block**2
        emit.reshape_to(b, moved, [n, depth, height // block, width // block], node.outputs[0])
        return
    if attrs["mode"] != "DCR":
        msg = f"mode {attrs['mode']!r}"
        raise Unsupported(msg)
    b.emit("SpaceToDepth", [x], node.outputs[0], param_type="DepthSpaceParam", blockSize=block, mode="DCR")


@lowers("RoiAlign")
def roi_align(b: Lowering, node: Node) -> None:
    """``RoiAlign`` in average mode."""
    attrs = attributes(
        node, coordinate_transformation_mode="half_pixel", mode="avg", output_height=1, output_width=1,
        sampling_ratio=0, spatial_scale=1.0,
    )  # fmt: skip
    ctm = attrs["coordinate_transformation_mode"]
    if attrs["mode"] != "avg" or ctm not in ("half_pixel", "output_half_pixel"):
        msg = f"mode {attrs['mode']!r} with {ctm!r}"
        raise Unsupported(msg)
    rois = [node.input(i) for i in range(3)]
    b.emit(
        "ROIAlign", rois, node.outputs[0], param_type="RoiParameters",
        pooledWidth=int(attrs["output_width"]), pooledHeight=int(attrs["output_height"]),
        spatialScale=float(attrs["spatial_scale"]), samplingRatio=int(attrs["sampling_ratio"]) or -1,
        aligned=ctm == "half_pixel", poolType="AVEPOOL",
    )  # fmt: skip


@lowers("GridSample")
def grid_sample(b: Lowering, node: Node) -> None:
    """``GridSample``: the runtime's own for bilinear without reflection, else gathered taps."""
    attrs = attributes(node, mode="linear", padding_mode="zeros", align_corners=0)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(attrs["mode"], attrs["mode"])
    padding = attrs["padding_mode"]
    if mode not in ("linear", "nearest", "cubic") or padding not in ("zeros", "border", "reflection"):
        msg = f"mode {mode!r} with padding_mode {padding!r}"
        raise Unsupported(msg)
    x, grid, out = node.input(0), node.input(1), node.outputs[0]
    align = bool(attrs["align_corners"])
    if mode == "linear" and padding != "reflection" and b.rank(x) == 4:
        b.emit(
            "GridSample", [x, grid], out, param_type="GridSample", mode="BILINEAR",
            paddingMode="ZEROS" if padding == "zeros" else "CLAMP", alignCorners=align,
        )  # fmt: skip
        return
    _Sampler(b, x, grid, mode, padding, align).sample(out)


class _Sampler:
    """GridSample from gathered elements: any spatial rank, exact integer positions.

    Positions are computed per spatial axis as float tensors ``[N, 1, P]``, P the number of output positions.
    """

    def __init__(self, b: Lowering, x: str, grid: str, mode: str, padding: str, align: bool) -> None:
        shape, where = b.static_shape(x), b.static_shape(grid)
        if shape is None or where is None:
            msg = f"mode {mode!r} with padding_mode {padding!r} over sizes that are not known: give the input shape"
            raise Unsupported(msg)
        self.b, self.mode, self.padding, self.align = b, mode, padding, align
        self.batch, self.channels, *self.dims = shape
        self.out_dims = where[1:-1]
        self.flat = b.reshape(x, [self.batch, self.channels, int(np.prod(self.dims))])
        self.grid = b.reshape(grid, [self.batch, int(np.prod(self.out_dims)), len(self.dims)])

    def sample(self, out: str) -> None:
        """Sum of taps times weights over all spatial axes."""
        b = self.b
        per_axis = [self._taps(axis) for axis in range(len(self.dims))]
        total: str | None = None
        for combination in itertools.product(*per_axis):
            value = self._lookup([position for position, _ in combination])
            for _, weight in combination:
                if weight is not None:
                    value = b.binary("MUL", value, weight)
            total = value if total is None else b.binary("ADD", total, value)
        assert total is not None
        b.reshape(total, [self.batch, self.channels, *self.out_dims], out)

    def _number(self, value: float) -> str:
        return self.b.const(np.float32(value))

    def _position(self, axis: int) -> str:
        """Position along an axis in elements; the grid lists axes from the last to the first."""
        b, size = self.b, self.dims[axis]
        last = len(self.dims) - 1 - axis
        moved = b.permute(emit.slice_axis(b, self.grid, 2, last, last + 1), [0, 2, 1])
        shifted = b.binary("ADD", moved, self._number(1))
        if self.align:
            return b.binary("MUL", shifted, self._number((size - 1) / 2))
        scaled = b.binary("SUB", b.binary("MUL", shifted, self._number(size)), self._number(1))
        return b.binary("MUL", scaled, self._number(0.5))

    def _into_range(self, position: str, axis: int) -> str:
        """Clamp or reflect a position."""
        size = self.dims[axis]
        if self.padding == "zeros":
            return position
        if self.padding == "reflection":
            position = self._reflect(position, axis)
            return emit.clip(self.b, position, -0.5, size - 0.5) if not self.align else position
        return emit.clip(self.b, position, 0.0, size - 1.0)

    def _reflect(self, position: str, axis: int) -> str:
        """Triangle wave between the borders: ``low + span - | (p - low) mod (2 span) - span |``."""
        b, size = self.b, self.dims[axis]
        low, span = (0.0, size - 1.0) if self.align else (-0.5, float(size))
        if span == 0:
            return b.binary("MUL", position, self._number(0))
        turn = self._number(2 * span)
        moved = b.binary("SUB", position, self._number(low))
        laps = b.unary("FLOOR", b.binary("REALDIV", moved, turn))
        rest = b.binary("SUB", moved, b.binary("MUL", laps, turn))
        peak = b.unary("ABS", b.binary("SUB", rest, self._number(span)))
        return b.binary("SUB", self._number(low + span), peak)

    def _taps(self, axis: int) -> list[tuple[str, str | None]]:
        """Integer positions and weights of the taps along an axis."""
        b = self.b
        position = self._position(axis)
        if self.mode == "nearest":
            return [(self._settle(self._into_range(emit.round_even(b, position), axis), axis), None)]
        if not (self.mode == "cubic" and self.padding == "border"):  # There only the taps are clamped.
            position = self._into_range(position, axis)
        base = b.unary("FLOOR", position)
        t = b.binary("SUB", position, base)
        offsets = (0, 1) if self.mode == "linear" else (-1, 0, 1, 2)
        taps: list[tuple[str, str | None]] = []
        for offset in offsets:
            place = base if offset == 0 else b.binary("ADD", base, self._number(offset))
            weight = self._linear(t, offset) if self.mode == "linear" else self._cubic(t, offset)
            taps.append((self._settle(self._into_range(place, axis), axis), weight))
        return taps

    def _settle(self, position: str, axis: int) -> str:
        """The element of a reflected position: halves go down to the element below, never under 0."""
        if self.padding != "reflection":
            return position
        return emit.clip(self.b, self.b.unary("FLOOR", position), 0.0, self.dims[axis] - 1.0)

    def _linear(self, t: str, offset: int) -> str:
        return t if offset else self.b.binary("SUB", self._number(1), t)

    def _cubic(self, t: str, offset: int) -> str:
        """Keys' kernel at distance ``|t - offset|``, by Horner's rule."""
        b = self.b
        distance = {-1: (1.0, 1), 0: (0.0, 1), 1: (1.0, -1), 2: (2.0, -1)}[offset]
        d = (
            t
            if distance == (0.0, 1)
            else b.binary("ADD" if distance[1] > 0 else "SUB", self._number(distance[0]), t)
        )
        a = _CUBIC
        near = offset in (0, 1)
        factors = (a + 2, -(a + 3), 0.0, 1.0) if near else (a, -5 * a, 8 * a, -4 * a)
        value = self._number(factors[0])
        for factor in factors[1:]:
            value = b.binary("MUL", value, d)
            if factor:
                value = b.binary("ADD", value, self._number(factor))
        return value

    def _lookup(self, positions: list[str]) -> str:
        """Elements at integer positions; 0 outside of the input for padding with zeros."""
        b = self.b
        inside: str | None = None
        index: str | None = None
        for axis, position in enumerate(positions):
            size = self.dims[axis]
            safe = emit.clip(b, position, 0.0, size - 1.0)
            if self.padding == "zeros":
                same = b.binary(
                    "MUL", emit.compare(b, "GREATER_EQUAL", position, self._number(-0.5)),
                    emit.compare(b, "LESS_EQUAL", position, self._number(size - 0.5)),
                )  # fmt: skip
                inside = same if inside is None else b.binary("MUL", inside, same)
            place = b.cast(safe, "DT_INT32")
            index = (
                place
                if index is None
                else b.binary("ADD", b.binary("MUL", index, b.const(np.int32(size))), place)
            )
        assert index is not None
        spread = emit.broadcast_to(b, index, [self.batch, self.channels, int(np.prod(self.out_dims))])
        found = b.emit(
            "GatherElements", [self.flat, spread, b.const(np.int32(2))],
            info=emit.with_shape(b, self.flat, b.shape(spread)),
        )  # fmt: skip
        if inside is None:
            return found
        spread_mask = emit.broadcast_to(b, inside, b.static_shape(spread) or ())
        return emit.select(b, spread_mask, found, emit.scalar_like(b, found, 0))
