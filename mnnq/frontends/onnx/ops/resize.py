"""Resize: the runtime's ``Interp`` where it is right, else a gather or a matrix product per axis.

Interpolation is linear in the input and separable, so for known sizes every mode is one constant matrix
``[out, in]`` per axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo

_CTM = {
    "align_corners": "AlignCorners",
    "half_pixel": "HalfPixels",
    "pytorch_half_pixel": "PytorchHalfPixels",
    "asymmetric": "Asymmetric",
}
_MODES = ("nearest", "linear", "cubic")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class _Axis:
    """Resizing of one axis: ``scale`` is output over input as the operator states it."""

    axis: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@lowers("Resize")
def resize(b: Lowering, node: Node) -> None:
    """``Resize`` in all modes over known sizes, and in those of ``Interp`` over unknown ones."""
    attrs = attributes(
        node, antialias=0, axes=None, coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75,
        exclude_outside=0, extrapolation_value=0.0, keep_aspect_ratio_policy="stretch", mode="nearest",
        nearest_mode="round_prefer_floor",
    )  # fmt: skip
    if attrs["mode"] not in _MODES or attrs["nearest_mode"] not in _NEAREST:
        msg = f"mode {attrs['mode']!r}, nearest_mode {attrs['nearest_mode']!r}"
        raise Unsupported(msg)
    plan = _plan(b, node, attrs)
    if plan is None:
        _interp_dynamic(b, node, attrs)
        return
    _emit_static(b, node, attrs, [p for p in plan if not _is_identity(p)])


def _is_identity(p: _Axis) -> bool:
    return p.size == p.out and math.isclose(p.scale, 1.0) and p.roi == (0.0, 1.0)


def _axes_of(b: Lowering, node: Node, attrs: dict[str, Any]) -> list[int]:
    rank = b.rank(node.input(0))
    if attrs["axes"] is None:
        return list(range(rank))
    return [emit.norm_axis(int(a), rank) for a in attrs["axes"]]


def _plan(b: Lowering, node: Node, attrs: dict[str, Any]) -> list[_Axis] | None:
    """How each axis is resized, or None when that is not known at conversion."""
    x = node.input(0)
    axes = _axes_of(b, node, attrs)
    sizes = b.constant(node.input(3)) if node.has_input(3) else None
    scales = b.constant(node.input(2)) if node.has_input(2) else None
    given = sizes if node.has_input(3) else scales
    if given is None or given.size == 0:
        if given is not None and not node.has_input(3):
            msg = "neither scales nor sizes"
            raise Unsupported(msg)
        return None
    if given.size != len(axes):
        msg = f"{given.size} scales or sizes for {len(axes)} axes"
        raise Unsupported(msg)
    rois = _rois(b, node, attrs, len(axes))
    dims = [emit.known_dim(b, (x, a)) for a in axes]
    plan = []
    factors = (
        _policy_scales(given, dims, attrs) if node.has_input(3) else [float(v) for v in given.reshape(-1)]
    )
    if factors is None:
        return None
    for i, (axis, dim) in enumerate(zip(axes, dims, strict=True)):
        if dim is None:
            if not node.has_input(3) and factors[i] == 1.0 and rois[i] == (0.0, 1.0):
                continue
            return None
        if not node.has_input(3):
            out = int(np.float32(dim) * np.float32(factors[i]))
        elif attrs["keep_aspect_ratio_policy"] == "stretch":
            out = int(given.reshape(-1)[i])
        else:
            out = int(factors[i] * dim + 0.5)
        plan.append(_Axis(axis, dim, out, factors[i], rois[i]))
    return plan


def _policy_scales(
    sizes: npt.NDArray[Any], dims: Sequence[int | None], attrs: dict[str, Any]
) -> list[float] | None:
    if any(d is None for d in dims):
        return None
    ratios = [int(s) / d for s, d in zip(sizes.reshape(-1), dims, strict=True) if d is not None]
    policy = attrs["keep_aspect_ratio_policy"]
    if policy == "stretch":
        return ratios
    if policy not in ("not_larger", "not_smaller"):
        msg = f"keep_aspect_ratio_policy {policy!r}"
        raise Unsupported(msg)
    return [min(ratios) if policy == "not_larger" else max(ratios)] * len(ratios)


def _rois(b: Lowering, node: Node, attrs: dict[str, Any], count: int) -> list[tuple[float, float]]:
    if attrs["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    roi = b.constant(node.input(1)) if node.has_input(1) else None
    if roi is None or roi.size != 2 * count:
        msg = "tf_crop_and_resize needs a constant roi with two values per axis"
        raise Unsupported(msg)
    flat = [float(v) for v in roi.reshape(-1)]
    return [(flat[i], flat[count + i]) for i in range(count)]


# -- the runtime's own interpolation


def _native(b: Lowering, node: Node, attrs: dict[str, Any], plan: Sequence[_Axis]) -> bool:
    """Whether ``Interp`` computes exactly this."""
    ctm = attrs["coordinate_transformation_mode"]
    if b.rank(node.input(0)) != 4 or not b.is_float(node.input(0)) or ctm not in _CTM:
        return False
    if any(p.axis < 2 for p in plan) or attrs["antialias"] or min((p.size for p in plan), default=1) < 1:
        return False
    if node.has_input(3) and attrs["keep_aspect_ratio_policy"] != "stretch":
        return False
    if ctm == "align_corners" and any(abs(p.scale * p.size - p.out) > 1e-6 for p in plan):
        return False
    if attrs["mode"] == "nearest":
        return attrs["nearest_mode"] in ("floor", "round_prefer_floor") and all(
            np.array_equal(_nearest_indices(p, attrs), _interp_indices(p, attrs)) for p in plan
        )
    if attrs["mode"] == "cubic":
        return ctm in ("align_corners", "asymmetric") and not attrs["exclude_outside"]
    return not attrs["exclude_outside"]


def _interp_indices(p: _Axis, attrs: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Positions that ``Interp`` reads in its nearest modes, in its arithmetic: ``floor(x + 0.499)``, clamped."""
    ctm = attrs["coordinate_transformation_mode"]
    step = np.float32(1 / p.scale)
    offset = np.float32(0)
    if ctm == "align_corners":
        step = np.float32((p.size - 1) / (p.out - 1) if p.out > 1 else 0)
    elif ctm in ("half_pixel", "pytorch_half_pixel"):
        step = np.float32(0) if ctm == "pytorch_half_pixel" and p.out == 1 else step
        offset = np.float32(0.5) * step - np.float32(0.5)
    x = np.arange(p.out, dtype=np.float32) * step + offset
    shift = np.float32(0 if attrs["nearest_mode"] == "floor" else 0.499)
    positions: npt.NDArray[np.int64] = np.clip(np.floor(x + shift), 0, p.size - 1).astype(np.int64)
    return positions


def _interp(
    b: Lowering, inputs: list[str], attrs: dict[str, Any], out: str, info: ValueInfo, **fields: Any
) -> None:
    kinds = {"linear": 2, "cubic": 3, "nearest": 1 if attrs["nearest_mode"] == "floor" else 4}
    b.emit(
        "Interp", inputs, out, param_type="Interp", resizeType=kinds[attrs["mode"]],
        ctm=_CTM[attrs["coordinate_transformation_mode"]], cubicCoeffA=float(attrs["cubic_coeff_a"]),
        alignCorners=attrs["coordinate_transformation_mode"] == "align_corners",
        halfPixelCenters="half_pixel" in attrs["coordinate_transformation_mode"],
        default_format="NCHW", info=info, **fields,
    )  # fmt: skip


def _interp_dynamic(b: Lowering, node: Node, attrs: dict[str, Any]) -> None:
    """``Interp`` with scales or sizes as it finds them, for sizes that are known only at run time."""
    ctm, mode = attrs["coordinate_transformation_mode"], attrs["mode"]
    x = node.input(0)
    axes = _axes_of(b, node, attrs)
    exact_nearest = mode != "nearest" or attrs["nearest_mode"] in ("floor", "round_prefer_floor")
    exact_cubic = mode != "cubic" or ctm in ("align_corners", "asymmetric")
    plain = (
        not (attrs["antialias"] or attrs["exclude_outside"])
        and attrs["keep_aspect_ratio_policy"] == "stretch"
    )
    scales = b.constant(node.input(2)) if node.has_input(2) else None
    whole = scales is not None and bool((scales == np.rint(scales)).all())
    if ctm == "align_corners" and not node.has_input(3) and not whole:
        msg = "align_corners with fractional scales over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    if not (plain and exact_nearest and exact_cubic and ctm in _CTM and b.rank(x) == 4 and b.is_float(x)):
        msg = f"mode {mode!r}, {ctm!r} with these attributes over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    by_size = node.has_input(3)
    source = node.input(3) if by_size else node.input(2)
    if axes != [0, 1, 2, 3]:
        rest = [a for a in range(4) if a not in axes]
        one = emit.int_list(b, [1])
        unit = b.const(np.ones(1, np.float32))
        parts = {a: emit.dim_of(b, x, a) if by_size else unit for a in rest}
        for i, axis in enumerate(axes):
            parts[axis] = emit.slice_axis(b, source, 0, i, i + 1)
        source = emit.concat(b, [parts.get(a, one) for a in range(4)], 0)
    _interp(b, [x, source], attrs, node.outputs[0], emit.with_shape(b, x, (None,) * 4))


# -- known sizes


def _emit_static(b: Lowering, node: Node, attrs: dict[str, Any], plan: Sequence[_Axis]) -> None:
    x, out = node.input(0), node.outputs[0]
    if not plan:
        b.identity(x, out)
        return
    if any(p.out < 1 or p.size < 1 for p in plan):
        msg = "an output without elements"
        raise Unsupported(msg)
    if _native(b, node, attrs, plan):
        dims = list(b.shape(x) or ())
        factors = [1.0] * 4
        for p in plan:
            dims[p.axis], factors[p.axis] = p.out, p.scale
        info = emit.with_shape(b, x, dims)
        if node.has_input(3):
            _interp(b, [x], attrs, out, info, outputHeight=dims[2], outputWidth=dims[3])
        else:
            _interp(b, [x, b.const(np.asarray(factors, np.float32))], attrs, out, info)
        return
    crop = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    if attrs["mode"] == "nearest" and not crop:
        for p in plan:
            x = emit.gather(b, x, _nearest_indices(p, attrs), p.axis, out if p is plan[-1] else None)
        return
    if not b.is_float(x):
        msg = f"mode {attrs['mode']!r} on {b.info(x).dtype}"
        raise Unsupported(msg)
    outside = np.zeros([1] * b.rank(x), bool)
    for p in plan:
        matrix, missing = _matrix(p, attrs)
        column = [1] * b.rank(x)
        column[p.axis] = p.out
        outside = outside | missing.reshape(column)
        x = _apply(b, x, matrix, p.axis, out if p is plan[-1] and not crop else None)
    if crop:
        fill = np.where(outside, attrs["extrapolation_value"], 0.0).astype(np.float32)
        b.binary("ADD", x, b.const(fill), out)


def _apply(b: Lowering, x: str, matrix: npt.NDArray[np.float32], axis: int, out: str | None) -> str:
    """``matrix [out, in]`` along an axis."""
    rank = b.rank(x)
    if rank == 1:
        return emit.squeeze(b, _apply(b, emit.unsqueeze(b, x, [0]), matrix, 1, None), [0], out)
    if axis == rank - 1:
        return emit.matmul(b, x, b.const(np.ascontiguousarray(matrix.T)), out)
    if axis == rank - 2:
        return emit.matmul(b, b.const(matrix), x, out)
    perm = [i for i in range(rank) if i != axis]
    perm.insert(rank - 2, axis)
    moved = emit.matmul(b, b.const(matrix), b.permute(x, perm))
    return b.permute(moved, list(np.argsort(perm)), out)


def _sources(p: _Axis, ctm: str) -> npt.NDArray[np.float64]:
    """Input coordinate of every output position, without the rounding noise that would move ties."""
    return np.round(_raw_sources(p, ctm), 9)


def _raw_sources(p: _Axis, ctm: str) -> npt.NDArray[np.float64]:
    y = np.arange(p.out, dtype=np.float64)
    width = p.scale * p.size
    if ctm == "align_corners":
        return y * 0 if width == 1 else y * (p.size - 1) / (width - 1)
    if ctm == "asymmetric":
        return y / p.scale
    if ctm == "tf_crop_and_resize":
        begin, end = p.roi
        span = (end - begin) * (p.size - 1)
        return begin * (p.size - 1) + (y * 0 + span / 2 if width == 1 else y * span / (width - 1))
    if ctm == "pytorch_half_pixel" and width == 1:
        return y * 0 - 0.5
    if ctm in ("half_pixel", "pytorch_half_pixel"):
        return (y + 0.5) / p.scale - 0.5
    if ctm == "half_pixel_symmetric":
        return p.size / 2 * (1 - p.out / width) + (y + 0.5) / p.scale - 0.5
    msg = f"coordinate_transformation_mode {ctm!r}"
    raise Unsupported(msg)


def _nearest_indices(p: _Axis, attrs: dict[str, Any]) -> npt.NDArray[np.int64]:
    x = _sources(p, attrs["coordinate_transformation_mode"])
    rounded = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[attrs["nearest_mode"]]
    return np.clip(rounded, 0, p.size - 1).astype(np.int64)


def _kernel(t: npt.NDArray[np.float64], attrs: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Triangle, or Keys' cubic with coefficient a, at distance `t`."""
    t = np.abs(t)
    if attrs["mode"] == "linear":
        return np.maximum(1 - t, 0)
    a = float(attrs["cubic_coeff_a"])
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _matrix(p: _Axis, attrs: dict[str, Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Interpolation matrix ``[out, in]`` and which outputs lie outside the input (crop mode)."""
    x = _sources(p, attrs["coordinate_transformation_mode"])
    matrix = np.zeros((p.out, p.size))
    outside = np.zeros(p.out, bool)
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        outside = (x < 0) | (x > p.size - 1)
    if attrs["mode"] == "nearest":
        matrix[np.arange(p.out), _nearest_indices(p, attrs)] = 1
    else:
        shrink = min(p.scale, 1.0) if attrs["antialias"] else 1.0
        reach = (1 if attrs["mode"] == "linear" else 2) / shrink
        for row, centre in enumerate(x):
            taps = np.arange(math.floor(centre - reach), math.ceil(centre + reach) + 1)
            weights = _kernel((taps - centre) * shrink, attrs)
            if attrs["exclude_outside"]:
                weights = np.where((taps < 0) | (taps >= p.size), 0.0, weights)
            if attrs["antialias"] or attrs["exclude_outside"]:
                weights = weights / weights.sum()
            np.add.at(matrix[row], np.clip(taps, 0, p.size - 1), weights)
    matrix[outside] = 0
    return matrix.astype(np.float32), outside
