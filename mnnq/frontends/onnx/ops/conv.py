"""Convolution and transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import INNER, Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Dim, Node, ValueInfo

_SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """Geometry of a sliding window over spatial axes; one entry per axis.

    Attributes
    ----------
    begins, ends
        Padding before and after.
    same
        Padding is left to the runtime (``SAME_UPPER`` over sizes that are not known).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    same: bool = False

    def extent(self, axis: int) -> int:
        """Size of the dilated kernel."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def out_dim(self, size: Dim, axis: int) -> int | None:
        """Output size of a convolution or floor-mode pooling."""
        if not isinstance(size, int):
            return None
        if self.same:
            return -(-size // self.strides[axis])
        return (size + self.begins[axis] + self.ends[axis] - self.extent(axis)) // self.strides[axis] + 1

    def of(self, axes: Sequence[int]) -> Window:
        """The window over some of the axes."""
        kernel, strides, dilations, begins, ends = (
            tuple(values[a] for a in axes)
            for values in (self.kernel, self.strides, self.dilations, self.begins, self.ends)
        )
        return Window(kernel, strides, dilations, begins, ends, self.same)

    def widened(self) -> Window:
        """A 1-D window as 2-D over a last axis of size 1."""
        return Window(
            (*self.kernel, 1),
            (*self.strides, 1),
            (*self.dilations, 1),
            (*self.begins, 0),
            (*self.ends, 0),
            self.same,
        )


def window(attrs: dict[str, Any], kernel: Sequence[int], spatial: Sequence[Dim]) -> Window:
    """Window of Conv and pooling attributes; named padding becomes numbers where sizes are known.

    Raises
    ------
    Unsupported
        Lists of wrong length, negative padding, or ``SAME_LOWER`` over unknown sizes.
    """
    rank = len(kernel)
    strides = tuple(int(v) for v in attrs["strides"] or (1,) * rank)
    dilations = tuple(int(v) for v in attrs["dilations"] or (1,) * rank)
    pads = [int(v) for v in attrs["pads"] or (0,) * (2 * rank)]
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        msg = f"strides {strides}, dilations {dilations}, pads {pads} for a kernel of rank {rank}"
        raise Unsupported(msg)
    if min(strides) < 1 or min(dilations) < 1 or min(kernel) < 1 or min(pads) < 0:
        msg = f"kernel {list(kernel)}, strides {strides}, dilations {dilations}, pads {pads}: out of range"
        raise Unsupported(msg)
    mode = attrs["auto_pad"]
    plain = Window(tuple(kernel), strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
    if mode == "NOTSET":
        return plain
    zero = replace(plain, begins=(0,) * rank, ends=(0,) * rank)
    if mode == "VALID":
        return zero
    if mode not in _SAME:
        msg = f"auto_pad {mode!r}"
        raise Unsupported(msg)
    if all(isinstance(d, int) for d in spatial):
        return _same_padding(zero, [d for d in spatial if isinstance(d, int)], mode)
    if mode == "SAME_LOWER":
        msg = "auto_pad SAME_LOWER over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    return replace(zero, same=True)


def _same_padding(win: Window, spatial: Sequence[int], mode: str) -> Window:
    begins, ends = [], []
    for axis, size in enumerate(spatial):
        stride = win.strides[axis]
        total = max((-(-size // stride) - 1) * stride + win.extent(axis) - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return replace(win, begins=tuple(begins), ends=tuple(ends))


@dataclass(frozen=True)
class Conv:
    """One convolution to emit: constant or run-time weight ``[oc, ic / group, *kernel]``."""

    window: Window
    group: int
    weight: npt.NDArray[Any] | str
    bias: npt.NDArray[Any] | str | None
    weight_shape: tuple[int, ...]

    @property
    def out_channels(self) -> int:
        """Output channels of all groups."""
        return self.weight_shape[0]

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        return self.weight_shape[1] * self.group


#: Attributes that convolutions share, with their defaults.
CONV_ATTRS: dict[str, Any] = {
    "auto_pad": "NOTSET",
    "dilations": None,
    "group": 1,
    "kernel_shape": None,
    "pads": None,
    "strides": None,
}


@lowers("Conv")
def conv(b: Lowering, node: Node) -> None:
    """``Conv`` of one, two or three spatial axes."""
    attrs = attributes(node, **CONV_ATTRS)
    x, out = node.input(0), node.outputs[0]
    weight_shape = b.static_shape(node.input(1))
    if weight_shape is None:
        msg = "the shape of the weight is unknown"
        raise Unsupported(msg)
    shape = b.shape(x)
    spatial = (None,) * (len(weight_shape) - 2) if shape is None else shape[2:]
    kernel = weight_shape[2:]
    if attrs["kernel_shape"] is not None and tuple(attrs["kernel_shape"]) != kernel:
        msg = f"kernel_shape {attrs['kernel_shape']} differs from the weight's {list(kernel)}"
        raise Unsupported(msg)
    spec = Conv(
        window(attrs, kernel, spatial), int(attrs["group"]), _float_operand(b, node.input(1)),
        _float_operand(b, node.input(2)) if node.has_input(2) else None, weight_shape,
    )  # fmt: skip
    _check_channels(spec, shape)
    emit_conv(b, x, spec, out)


def _float_operand(b: Lowering, name: str) -> npt.NDArray[Any] | str:
    """A constant as float32, or the name of a run-time tensor."""
    if not b.is_float(name):
        msg = f"operand {name!r} is not floating point"
        raise Unsupported(msg)
    array = b.constant(name)
    return name if array is None else array.astype(np.float32, copy=False)


def _check_channels(spec: Conv, shape: Sequence[Dim] | None) -> None:
    if spec.group < 1 or spec.out_channels % spec.group:
        msg = f"{spec.out_channels} output channels in {spec.group} groups"
        raise Unsupported(msg)
    channels = None if shape is None or len(shape) < 2 else shape[1]
    if isinstance(channels, int) and channels != spec.in_channels:
        msg = f"weight of shape {spec.weight_shape}, group {spec.group}, for {channels} input channels"
        raise Unsupported(msg)


def emit_conv(b: Lowering, x: str, spec: Conv, out: str | None = None) -> str:
    """Emit a convolution of any spatial rank and grouping."""
    rank = len(spec.window.kernel)
    if rank == 1:
        wide = emit_conv(b, emit.unsqueeze(b, x, [3]), _widen(b, spec), _inner(b, out))
        return emit.squeeze(b, wide, [3], out)
    if rank == 3:
        return _conv_3d(b, x, spec, out)
    if rank != 2:
        msg = f"{rank} spatial axes"
        raise Unsupported(msg)
    if isinstance(spec.bias, str) and not isinstance(spec.weight, str):
        plain = emit_conv(b, x, replace(spec, bias=None), _inner(b, out))
        return b.binary("ADD", plain, b.reshape(spec.bias, [1, -1, 1, 1]), out)
    if spec.group == 1:
        return _emit_2d(b, x, spec, "Convolution", out)
    if spec.group == spec.in_channels:
        return _depthwise(b, x, spec, out)
    return _per_group(b, x, spec, out)


def _inner(b: Lowering, out: str | None) -> str | None:
    """Name of the convolution inside a chain that ends in `out`."""
    return None if out is None else b.fresh(f"{out}{INNER}")


def _widen(b: Lowering, spec: Conv) -> Conv:
    shape = (*spec.weight_shape, 1)
    weight = spec.weight
    weight = emit.unsqueeze(b, weight, [3]) if isinstance(weight, str) else weight.reshape(shape)
    return replace(spec, window=spec.window.widened(), weight=weight, weight_shape=shape)


def _depthwise(b: Lowering, x: str, spec: Conv, out: str | None) -> str:
    """One filter per channel; with a depth multiplier every channel is first repeated."""
    times = spec.out_channels // spec.in_channels
    if times > 1:
        x = emit.gather(b, x, np.repeat(np.arange(spec.in_channels), times), 1)
        spec = replace(spec, group=spec.out_channels)
    return _emit_2d(b, x, spec, "ConvolutionDepthwise", out)


def _per_group(b: Lowering, x: str, spec: Conv, out: str | None) -> str:
    """Slice, a convolution per group, concat: native groups go wrong in the real runtime's low-memory mode."""
    stem = out or b.fresh("conv")
    step = spec.out_channels // spec.group
    inputs = emit.split(b, x, 1, [spec.weight_shape[1]] * spec.group, stem + "__split")
    shape = (step, *spec.weight_shape[1:])
    weights = _rows(b, spec.weight, spec.group, step, stem + "__weight")
    biases = (
        [None] * spec.group if spec.bias is None else _rows(b, spec.bias, spec.group, step, stem + "__bias")
    )
    parts = [
        _emit_2d(
            b, part, Conv(spec.window, 1, weights[i], biases[i], shape), "Convolution",
            b.fresh(f"{stem}__group__{i}"),
        )
        for i, part in enumerate(inputs)
    ]  # fmt: skip
    return emit.concat(b, parts, 1, out)


def _rows(
    b: Lowering, operand: npt.NDArray[Any] | str, group: int, step: int, stem: str
) -> Sequence[npt.NDArray[Any] | str]:
    if isinstance(operand, str):
        return emit.split(b, operand, 0, [step] * group, stem)
    return [operand[i * step : (i + 1) * step] for i in range(group)]


def _common(spec: Conv, **extra: Any) -> dict[str, Any]:
    """``Convolution2DCommon`` of a 2-D window."""
    win = spec.window
    fields = {
        "kernelX": win.kernel[1], "kernelY": win.kernel[0],
        "strideX": win.strides[1], "strideY": win.strides[0],
        "dilateX": win.dilations[1], "dilateY": win.dilations[0],
        "padMode": "SAME" if win.same else "CAFFE",
        "group": spec.group, "outputCount": spec.out_channels, "inputCount": spec.in_channels,
        **extra,
    }  # fmt: skip
    if not win.same:
        fields["padX"], fields["padY"] = win.begins[1], win.begins[0]
        fields["pads"] = np.asarray([*win.begins, *win.ends], np.int32)
    return fields


def _emit_2d(b: Lowering, x: str, spec: Conv, op_type: str, out: str | None) -> str:
    shape = b.shape(x)
    win = spec.window
    dims: tuple[Dim, ...] | None = None
    if shape is not None:
        dims = (shape[0], spec.out_channels, win.out_dim(shape[2], 0), win.out_dim(shape[3], 1))
    params: dict[str, Any] = {"common": _common(spec)}
    inputs = [x]
    if isinstance(spec.weight, str):
        inputs.append(spec.weight)
        if spec.bias is not None:
            inputs.append(spec.bias if isinstance(spec.bias, str) else b.const(spec.bias))
    else:
        params.update(constant_weight(spec.weight, spec.bias, spec.out_channels))
    info = ValueInfo(np.dtype(np.float32), dims)
    return b.emit(op_type, inputs, out, param_type="Convolution2D", info=info, **params)


def constant_weight(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any] | str | None, channels: int
) -> dict[str, Any]:
    """``weight`` and ``bias`` fields of a ``Convolution2D`` table; the bias is always written."""
    if isinstance(bias, str):
        msg = "a constant weight with a bias computed at run time"
        raise Unsupported(msg)
    vector = np.zeros(channels, np.float32) if bias is None else bias.astype(np.float32).reshape(-1)
    if vector.size != channels:
        msg = f"bias of {vector.size} values for {channels} channels"
        raise Unsupported(msg)
    if weight.dtype not in (np.float32, np.float16) and weight.dtype.name != "bfloat16":
        weight = weight.astype(np.float32)
    # Not flattened: a transposed view costs nothing, and the quantizer reads it in place.
    return {"weight": weight, "bias": vector}


# -- three spatial axes: the depth taps become channels of one 2-D convolution over planes


def _conv_3d(b: Lowering, x: str, spec: Conv, out: str | None) -> str:
    """3-D convolution as a 2-D one over the planes: ``y[d] = conv2d(concat_k x[d * stride + k * dilation])``."""
    if isinstance(spec.weight, str):
        msg = "a 3-D convolution with a weight computed at run time"
        raise Unsupported(msg)
    if spec.group > 1:
        return _conv_3d_groups(b, x, spec, out)
    if spec.window.same:
        msg = "a 3-D convolution with auto_pad over sizes that are not known"
        raise Unsupported(msg)
    planes, layout = _depth_taps(b, x, spec.window.of([0]))
    oc, ic, depth, height, width = spec.weight_shape
    weight = spec.weight.transpose(0, 2, 1, 3, 4).reshape(oc, depth * ic, height, width)
    flat = Conv(spec.window.of([1, 2]), 1, weight, spec.bias, weight.shape)
    return _planes_back(b, emit_conv(b, planes, flat, _inner(b, out)), layout, oc, out)


def _conv_3d_groups(b: Lowering, x: str, spec: Conv, out: str | None) -> str:
    stem = out or b.fresh("conv")
    assert not isinstance(spec.weight, str)
    step = spec.out_channels // spec.group
    inputs = emit.split(b, x, 1, [spec.weight_shape[1]] * spec.group, stem + "__split")
    shape = (step, *spec.weight_shape[1:])
    weights = _rows(b, spec.weight, spec.group, step, stem)
    biases = (
        [None] * spec.group if spec.bias is None else _rows(b, spec.bias, spec.group, step, stem + "__bias")
    )
    parts = [
        _conv_3d(b, part, Conv(spec.window, 1, weights[i], biases[i], shape), b.fresh(f"{stem}__group__{i}"))
        for i, part in enumerate(inputs)
    ]
    return emit.concat(b, parts, 1, out)


def _depth_taps(b: Lowering, x: str, depth: Window) -> tuple[str, tuple[str, str]]:
    """``[N, C, D, H, W]`` to ``[N * D', taps * C, H, W]``; also the tensors that know N and D'."""
    begin, end = depth.begins[0], depth.ends[0]
    if begin or end:
        x = emit.pad(b, x, [0, 0, begin, 0, 0], [0, 0, end, 0, 0], 0.0)
    taps = [emit_tap(b, x, 0, k, depth) for k in range(depth.kernel[0])]
    stacked = taps[0] if len(taps) == 1 else emit.concat(b, taps, 1)
    moved = b.permute(stacked, [0, 2, 1, 3, 4])
    channels = (moved, 2)
    planes = emit.reshape_to(b, moved, [-1, channels, (moved, 3), (moved, 4)])
    return planes, (moved, moved)


def emit_tap(b: Lowering, x: str, axis: int, k: int, win: Window) -> str:
    """What tap `k` of a window reads along spatial axis `axis` of a padded tensor, one element per output."""
    first = k * win.dilations[axis]
    rest = win.extent(axis) - 1 - first
    if first == 0 and rest == 0 and win.strides[axis] == 1:
        return x
    return emit.slice_axis(b, x, axis + 2, first, -rest if rest else emit.END, win.strides[axis])


def _planes_back(b: Lowering, y: str, layout: tuple[str, str], channels: int, out: str | None) -> str:
    """``[N * D', O, H, W]`` to ``[N, O, D', H, W]``."""
    batch, depth = layout
    wide = emit.reshape_to(b, y, [(batch, 0), (depth, 1), channels, (y, 2), (y, 3)])
    return b.permute(wide, [0, 2, 1, 3, 4], out)


# -- transposed convolution


@lowers("ConvTranspose")
def conv_transpose(b: Lowering, node: Node) -> None:
    """``ConvTranspose`` of one, two or three spatial axes."""
    attrs = attributes(node, **CONV_ATTRS, output_padding=None, output_shape=None)
    x, out = node.input(0), node.outputs[0]
    weight = _float_operand(b, node.input(1))
    bias = _float_operand(b, node.input(2)) if node.has_input(2) else None
    kernel = (b.static_shape(node.input(1)) or ())[2:]
    if not kernel:
        msg = "the shape of the weight is unknown"
        raise Unsupported(msg)
    if attrs["kernel_shape"] is not None and tuple(attrs["kernel_shape"]) != kernel:
        msg = f"kernel_shape {attrs['kernel_shape']} differs from the weight's {list(kernel)}"
        raise Unsupported(msg)
    shape = b.shape(x)
    spatial = (None,) * len(kernel) if shape is None else shape[2:]
    win, extra = transposed_window(attrs, kernel, spatial)
    group = int(attrs["group"])
    if isinstance(weight, str):
        emit_dynamic_deconv(b, x, weight, bias, win, extra, group, out)
        return
    if isinstance(bias, str):
        plain = emit_deconv(b, x, weight, None, win, extra, group, _inner(b, out))
        b.binary("ADD", plain, b.reshape(bias, [1, -1, *[1] * len(kernel)]), out)
        return
    emit_deconv(b, x, weight, bias, win, extra, group, out)


def emit_dynamic_deconv(
    b: Lowering,
    x: str,
    weight: str,
    bias: npt.NDArray[Any] | str | None,
    win: Window,
    extra: tuple[int, ...],
    group: int,
    out: str,
) -> None:
    """A transposed convolution whose weight is computed at run time, of one or two spatial axes."""
    if len(win.kernel) == 1:
        wide = _inner(b, out) or ""
        emit_dynamic_deconv(
            b, emit.unsqueeze(b, x, [3]), emit.unsqueeze(b, weight, [3]), bias, win.widened(), (*extra, 0), group, wide
        )  # fmt: skip
        emit.squeeze(b, wide, [3], out)
        return
    shape = b.static_shape(weight) or ()
    if len(win.kernel) != 2 or shape[0] % group:
        msg = f"a transposed convolution of {len(win.kernel)} axes with a weight computed at run time"
        raise Unsupported(msg)
    depth, channels = shape[0] // group, shape[1]
    inputs = emit.split(b, x, 1, [depth] * group, out + "__split")
    weights = emit.split(b, weight, 0, [depth] * group, out + "__weight")
    more = {"outPads": np.asarray(extra, np.int32)} if any(extra) else {}
    parts = []
    for part, kernel in zip(inputs, weights, strict=True):
        spec = Conv(win, 1, kernel, None, (channels, depth, *win.kernel))
        zero = b.const(np.zeros(channels, np.float32))
        last = out if group == 1 and bias is None else None
        parts.append(
            b.emit(
                "Deconvolution", [part, kernel, zero], last, param_type="Convolution2D",
                info=ValueInfo(np.dtype(np.float32), (None,) * 4), common=_common(spec, **more),
            )
        )  # fmt: skip
    result = parts[0] if group == 1 else emit.concat(b, parts, 1, out if bias is None else None)
    if bias is not None:
        offset = (
            b.reshape(bias, [1, -1, 1, 1]) if isinstance(bias, str) else b.const(bias.reshape(1, -1, 1, 1))
        )
        b.binary("ADD", result, offset, out)


def transposed_window(
    attrs: dict[str, Any], kernel: Sequence[int], spatial: Sequence[Dim]
) -> tuple[Window, tuple[int, ...]]:
    """Window with explicit padding, and what is appended to the output (``output_padding``), per axis."""
    rank = len(kernel)
    extra = [int(v) for v in attrs["output_padding"] or (0,) * rank]
    mode, wanted = attrs["auto_pad"], attrs["output_shape"]
    if mode not in ("NOTSET", "VALID", *_SAME):
        msg = f"auto_pad {mode!r}"
        raise Unsupported(msg)
    if wanted is None and mode in ("NOTSET", "VALID"):
        return window({**attrs, "auto_pad": mode}, kernel, spatial), tuple(extra)
    win = window({**attrs, "auto_pad": "VALID"}, kernel, spatial)
    sizes = None if wanted is None else [int(v) for v in wanted][-rank:]
    begins, ends = [], []
    for axis in range(rank):
        total = win.extent(axis) - win.strides[axis] + extra[axis]
        if sizes is not None:
            size = spatial[axis]
            if not isinstance(size, int):
                msg = "output_shape over sizes that are not known: give the input shape"
                raise Unsupported(msg)
            total = (size - 1) * win.strides[axis] + extra[axis] + win.extent(axis) - sizes[axis]
        if total < 0:
            extra[axis] -= total
            total = 0
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return replace(win, begins=tuple(begins), ends=tuple(ends)), tuple(extra)


def emit_deconv(
    b: Lowering,
    x: str,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[Any] | None,
    win: Window,
    extra: tuple[int, ...],
    group: int,
    out: str | None = None,
) -> str:
    """Emit a transposed convolution with weight ``[ic, oc / group, *kernel]``."""
    rank = len(win.kernel)
    if rank == 1:
        wide = emit_deconv(
            b, emit.unsqueeze(b, x, [3]), weight[..., None], bias, win.widened(), (*extra, 0), group, _inner(b, out)
        )  # fmt: skip
        return emit.squeeze(b, wide, [3], out)
    if rank == 3:
        return _deconv_3d(b, x, weight, bias, win, extra, group, out)
    ic, per_group = weight.shape[:2]
    if ic % group:
        msg = f"{ic} input channels in {group} groups"
        raise Unsupported(msg)
    if group == 1:
        return _deconv_2d(b, x, weight, bias, win, extra, 1, out)
    if group == ic:
        if per_group > 1:
            x = emit.gather(b, x, np.repeat(np.arange(ic), per_group), 1)
            weight = weight.reshape(ic * per_group, 1, *weight.shape[2:])
        return _deconv_2d(b, x, weight, bias, win, extra, weight.shape[0], out)
    stem = out or b.fresh("deconv")
    inputs = emit.split(b, x, 1, [ic // group] * group, stem + "__split")
    parts = []
    for i, part in enumerate(inputs):
        rows = weight[i * ic // group : (i + 1) * ic // group]
        own = None if bias is None else bias[i * per_group : (i + 1) * per_group]
        parts.append(_deconv_2d(b, part, rows, own, win, extra, 1, b.fresh(f"{stem}__group__{i}")))
    return emit.concat(b, parts, 1, out)


def _deconv_2d(
    b: Lowering,
    x: str,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[Any] | None,
    win: Window,
    extra: tuple[int, ...],
    group: int,
    out: str | None,
) -> str:
    channels = weight.shape[1] * group
    spec = Conv(win, group, weight, bias, (channels, weight.shape[0] // group, *win.kernel))
    shape = b.shape(x)
    dims: tuple[Dim, ...] | None = None
    if shape is not None:
        sizes = [
            (d - 1) * win.strides[a] + win.extent(a) - win.begins[a] - win.ends[a] + extra[a]
            if isinstance(d, int)
            else None
            for a, d in enumerate(shape[2:])
        ]
        dims = (shape[0], channels, *sizes)
    more = {"outPads": np.asarray(extra, np.int32)} if any(extra) else {}
    return b.emit(
        "Deconvolution" if group == 1 else "DeconvolutionDepthwise", [x], out, param_type="Convolution2D",
        info=ValueInfo(np.dtype(np.float32), dims), common=_common(spec, **more),
        **constant_weight(weight, bias, channels),
    )  # fmt: skip


def _deconv_3d(
    b: Lowering,
    x: str,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[Any] | None,
    win: Window,
    extra: tuple[int, ...],
    group: int,
    out: str | None,
) -> str:
    """3-D transposed convolution: depth is zero-stuffed and its taps become channels of 2-D ones over planes."""
    if group > 1:
        stem = out or b.fresh("deconv")
        ic, per_group = weight.shape[0] // group, weight.shape[1]
        parts = []
        for i, part in enumerate(emit.split(b, x, 1, [ic] * group, stem + "__split")):
            own = None if bias is None else bias[i * per_group : (i + 1) * per_group]
            rows = weight[i * ic : (i + 1) * ic]
            parts.append(_deconv_3d(b, part, rows, own, win, extra, 1, b.fresh(f"{stem}__group__{i}")))
        return emit.concat(b, parts, 1, out)
    ic, oc, depth, height, width = weight.shape
    reach = win.extent(0) - 1
    x = _zero_stuff(b, x, win.strides[0])
    before, after = reach - win.begins[0], reach - win.ends[0] + extra[0] - (win.strides[0] - 1)
    x = emit.pad(b, x, [0, 0, before, 0, 0], [0, 0, after, 0, 0], 0.0)
    planes, layout = _depth_taps(b, x, Window((depth,), (1,), (win.dilations[0],), (0,), (0,)))
    flipped = weight[:, :, ::-1].transpose(2, 0, 1, 3, 4).reshape(depth * ic, oc, height, width)
    y = emit_deconv(b, planes, flipped, bias, win.of([1, 2]), extra[1:], 1, _inner(b, out))
    return _planes_back(b, y, layout, oc, out)


def _zero_stuff(b: Lowering, x: str, stride: int) -> str:
    """``stride - 1`` zero planes after every plane of axis 2."""
    if stride == 1:
        return x
    wide = emit.unsqueeze(b, x, [3])
    padded = emit.pad(b, wide, [0] * 6, [0, 0, 0, stride - 1, 0, 0], 0.0)
    size = emit.known_dim(b, (x, 2))
    depth: emit.DimSource = -1 if size is None else size * stride
    return emit.reshape_to(b, padded, [(x, 0), (x, 1), depth, (x, 3), (x, 4)])
