"""Scaled dot-product attention and rotary position embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.ops._dims import Size
from mnnq.frontends.onnx.ops.data import pad_with
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo

#: Added to the score of a position that must not be attended to: small enough that its exponential is 0, yet
#: finite, so that a row without any allowed position does not become NaN before it is set to 0.
MASKED = np.float32(-1.0e30)

_LOWEST = np.float32(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Heads:
    """Tensors brought to ``[batch, heads, length, size]``."""

    q: str
    k: str
    v: str
    q_heads: int
    kv_heads: int
    batch: Size
    queries: Size
    keys: Size
    past: Size


@lowers("Attention")
def attention(b: Lowering, node: Node) -> None:
    """``softmax(softcap(q k^T scale) + mask) v`` with grouped heads, causal and window masks and a cache."""
    b.check_attributes(
        node, "is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap",
        "softmax_precision", "left_window_size", "right_window_size",
    )  # fmt: skip
    heads = _heads(b, node)
    size = (b.shape(heads.q) or (None,))[-1]
    scale = node.attrs.get("scale")
    if scale is None:
        if not isinstance(size, int):
            msg = "the size of a head must be known when no scale is given"
            raise Unsupported(msg)
        scale = 1.0 / math.sqrt(size)
    scaled = _like(b, b.binary("MUL", heads.q, b.const(np.float32(scale), "scale")), heads.q)
    group = heads.q_heads // heads.kv_heads
    rows = dims.arithmetic(b, "MUL", heads.queries, group)
    if group > 1:
        # The queries of all heads of a group lie side by side: one product per key head, no copies of k and v.
        scaled = dims.reshape_to(
            b, scaled, [heads.batch, heads.kv_heads, rows, size if isinstance(size, int) else -1]
        )
    scores = b.emit("MatMul", [scaled, heads.k], param_type="MatMul", transposeB=True, T="DT_FLOAT")
    full: list[Size] = [heads.batch, heads.q_heads, heads.queries, heads.keys]
    if group > 1:
        scores = dims.reshape_to(b, scores, full)
    b.note(scores, ValueInfo(np.dtype(np.float32), tuple(d if isinstance(d, int) else None for d in full)))
    mode, wanted = dims.int_attr(node, "qk_matmul_output_mode", 0), node.has_output(3)
    if wanted and mode == 0:
        b.identity(scores, node.outputs[3])
    softcap = float(node.attrs.get("softcap", 0.0))
    if softcap > 0:
        cap = b.const(np.float32(softcap), "softcap")
        scores = _like(b, b.binary("MUL", b.unary("TANH", b.binary("REALDIV", scores, cap)), cap), scores)
    if wanted and mode == 1:
        b.identity(scores, node.outputs[3])
    allowed, bias = _masks(b, node, heads)
    if wanted and mode == 2:
        _biased_output(b, scores, allowed, bias, node.outputs[3])
    probabilities = _softmax(b, scores, allowed, bias)
    if wanted and mode == 3:
        b.identity(probabilities, node.outputs[3])
    if wanted and mode not in (0, 1, 2, 3):
        msg = f"qk_matmul_output_mode {mode}; known: 0, 1, 2, 3"
        raise Unsupported(msg)
    if node.has_output(0):
        _weighted_values(b, node, heads, probabilities, rows)


def _like(b: Lowering, x: str, like: str) -> str:
    b.note(x, b.info(like))
    return x


def _heads(b: Lowering, node: Node) -> Heads:
    """Split the heads of inputs of rank 3 and append to the cache."""
    q, k, v = node.inputs[:3]
    rank = b.rank(q)
    if rank == 3:
        q_heads, kv_heads = dims.int_attr(node, "q_num_heads", 0), dims.int_attr(node, "kv_num_heads", 0)
        if q_heads <= 0 or kv_heads <= 0:
            msg = "inputs of rank 3 need q_num_heads and kv_num_heads"
            raise Unsupported(msg)
        q = _split_heads(b, q, q_heads)
        k = _split_heads(b, k, kv_heads)
        v = _split_heads(b, v, kv_heads)
    else:
        counts = [(b.shape(x) or (None, None))[1] for x in (q, k)]
        if not isinstance(counts[0], int) or not isinstance(counts[1], int):
            msg = "the numbers of heads must be known"
            raise Unsupported(msg)
        q_heads, kv_heads = counts[0], counts[1]
    if q_heads % kv_heads:
        msg = f"{q_heads} query heads cannot share {kv_heads} key heads evenly"
        raise Unsupported(msg)
    past: Size = 0
    if node.has_input(4):
        past = dims.size_of(b, node.inputs[4], 2)
    k = _append(b, node, 4, k, 1)
    v = _append(b, node, 5, v, 2)
    return Heads(
        q, k, v, q_heads, kv_heads, dims.size_of(b, q, 0), dims.size_of(b, q, 2), dims.size_of(b, k, 2), past
    )


def _split_heads(b: Lowering, x: str, heads: int) -> str:
    """``[batch, length, heads * size]`` to ``[batch, heads, length, size]``."""
    batch, length, width = b.shape(x) or (None, None, None)
    if isinstance(width, int) and width % heads:
        msg = f"{heads} heads do not divide the width {width}"
        raise Unsupported(msg)
    size = width // heads if isinstance(width, int) else -1
    apart = b.reshape(x, [d if isinstance(d, int) else 0 for d in (batch, length)] + [heads, size])
    known = tuple(d if isinstance(d, int) else None for d in (batch, length))
    b.note(apart, ValueInfo(b.info(x).dtype, (*known, heads, size if size > 0 else None)))
    return b.permute(apart, [0, 2, 1, 3])


def _append(b: Lowering, node: Node, past: int, new: str, present: int) -> str:
    """Join cached and new keys (values) and produce the present ones if they are wanted."""
    out = node.outputs[present] if node.has_output(present) else None
    if not node.has_input(past):
        if out is not None:
            b.identity(new, out)
        return new
    old = node.inputs[past]
    shapes = b.shape(old), b.shape(new)
    joined = None
    if shapes[0] is not None and shapes[1] is not None:
        lengths = [s[2] for s in shapes if s is not None]
        total = (
            sum(d for d in lengths if isinstance(d, int))
            if all(isinstance(d, int) for d in lengths)
            else None
        )
        joined = (*shapes[1][:2], total, shapes[1][3])
    return dims.concat(b, [old, new], 2, out, ValueInfo(b.info(new).dtype, joined))


def _masks(b: Lowering, node: Node, heads: Heads) -> tuple[str | None, str | None]:
    """What may be attended to (INT32, 1 = yes) and what is added to the scores (float); None for no mask."""
    allowed: list[str] = []
    bias = None
    if node.has_input(3):
        mask = node.inputs[3]
        floating = b.is_float(mask)
        mask = _padded_mask(b, mask, heads.keys, floating)
        fixed = b.constant(mask)
        if floating and fixed is not None:
            if np.isneginf(fixed).any():
                allowed.append(b.const((~np.isneginf(fixed)).astype(np.int32), "allowed"))
            bias = b.const(np.maximum(fixed, MASKED), "bias", np.float32)
        elif floating:
            allowed.append(b.binary("GREATER_EQUAL", mask, b.const(_LOWEST, "lowest")))
            bias = b.binary("MAXIMUM", mask, b.const(MASKED, "masked"))
        else:
            allowed.append(mask)
    left, right = (dims.int_attr(node, f"{side}_window_size", -1) for side in ("left", "right"))
    if dims.int_attr(node, "is_causal", 0):
        right = 0 if right < 0 else min(right, 0)
    lengths = ""
    if node.has_input(6):
        lengths = b.reshape(node.inputs[6], [-1, 1, 1, 1])
        keys = dims.iota(b, 0, heads.keys)
        allowed.append(b.binary("GREATER", lengths, keys))
    if left >= 0 or right >= 0:
        allowed.append(_window(b, heads, lengths, left, right))
    joined: str | None = None
    for mask in allowed:
        joined = mask if joined is None else b.binary("MUL", joined, mask)
    return joined, bias


def _padded_mask(b: Lowering, mask: str, keys: Size, floating: bool) -> str:
    """Extend a mask that covers the first keys only; the rest must not be attended to."""
    rank = b.rank(mask)
    have = dims.size_of(b, mask, rank - 1)
    missing = dims.arithmetic(b, "SUB", keys, have)
    if missing == 0 or (b.shape(mask) or (None,))[-1] == 1:
        return mask
    pads: list[tuple[Size, Size]] = [(0, 0)] * (rank - 1) + [(0, missing)]
    fill = b.const(np.float32(-np.inf) if floating else np.int32(0), "fill")
    return pad_with(b, mask, pads, fill)


def _window(b: Lowering, heads: Heads, lengths: str, left: int, right: int) -> str:
    """``position - left <= key <= position + right`` for the bounds that are not negative.

    The position of query i is i + offset; the offset is the length of the cache, or with `lengths` of the
    valid keys, ``[batch, 1, 1, 1]``, what precedes the queries.
    """
    if (
        isinstance(heads.queries, int)
        and isinstance(heads.keys, int)
        and isinstance(heads.past, int)
        and not lengths
    ):
        distance = np.arange(heads.queries)[:, None] + heads.past - np.arange(heads.keys)[None, :]
        keep = np.ones(distance.shape, bool)
        keep &= distance <= left if left >= 0 else True
        keep &= -distance <= right if right >= 0 else True
        return b.const(keep.astype(np.int32), "window")
    position = dims.reshape_to(b, dims.iota(b, 0, heads.queries), [-1, 1])
    if lengths:
        position = b.binary("ADD", b.binary("SUB", lengths, dims.as_vector(b, heads.queries)), position)
    elif heads.past != 0:
        position = b.binary("ADD", position, dims.as_vector(b, heads.past))
    distance_now = b.binary("SUB", position, dims.iota(b, 0, heads.keys))
    kept = None
    if left >= 0:
        kept = b.binary("LESS_EQUAL", distance_now, dims.scalar(b, left))
    if right >= 0:
        ahead = b.binary("GREATER_EQUAL", distance_now, dims.scalar(b, -right))
        kept = ahead if kept is None else b.binary("MUL", kept, ahead)
    assert kept is not None
    return kept


def _softmax(b: Lowering, scores: str, allowed: str | None, bias: str | None) -> str:
    """Softmax over the keys; positions that are not allowed get 0, also in rows where none is."""
    info = b.info(scores)
    keep = None
    if bias is not None:
        scores = _noted(b, b.binary("ADD", scores, bias), info)
    if allowed is not None:
        fixed = b.constant(allowed)
        if fixed is not None:
            keep = b.const(fixed.astype(np.float32), "keep")
            hidden = b.const(np.where(fixed > 0, np.float32(0), MASKED), "hidden")
        else:
            keep = b.cast(allowed, "DT_FLOAT")
            one = b.const(np.float32(1), "one")
            hidden = b.binary("MUL", b.binary("SUB", one, keep), b.const(MASKED, "masked"))
        scores = _noted(b, b.binary("ADD", scores, hidden), info)
        if fixed is not None and fixed.any(axis=-1).all():
            keep = None
    made = b.emit("Softmax", [scores], param_type="Axis", axis=-1, info=info)
    return made if keep is None else _noted(b, b.binary("MUL", made, keep), info)


def _noted(b: Lowering, x: str, info: ValueInfo) -> str:
    b.note(x, info)
    return x


def _biased_output(b: Lowering, scores: str, allowed: str | None, bias: str | None, out: str) -> None:
    """Scores plus mask as ONNX shows them, with infinities."""
    if bias is not None:
        scores = b.binary("ADD", scores, bias)
    if allowed is None:
        b.identity(scores, out)
        return
    zero, infinite = b.const(np.float32(0), "zero"), b.const(np.float32(-np.inf), "infinite")
    b.binary("ADD", scores, b.emit("Select", [allowed, zero, infinite]), out)


def _weighted_values(b: Lowering, node: Node, heads: Heads, probabilities: str, rows: Size) -> None:
    out, merged = node.outputs[0], b.rank(node.inputs[0]) == 3
    group = heads.q_heads // heads.kv_heads
    width = (b.shape(heads.v) or (None,))[-1]
    if group > 1:
        probabilities = dims.reshape_to(b, probabilities, [heads.batch, heads.kv_heads, rows, heads.keys])
    last = not merged and group == 1
    y = b.emit("MatMul", [probabilities, heads.v], out if last else None, param_type="MatMul", T="DT_FLOAT")
    if last:
        return
    size: Size = width if isinstance(width, int) else dims.size_of(b, heads.v, 3)
    whole: list[Size] = [heads.batch, heads.q_heads, heads.queries, size]
    if group > 1:
        y = dims.reshape_to(b, y, whole, None if merged else out)
    if merged:
        known = tuple(d if isinstance(d, int) else None for d in whole)
        b.note(y, ValueInfo(np.dtype(np.float32), known))
        joined = dims.arithmetic(b, "MUL", size, heads.q_heads)
        dims.reshape_to(b, b.permute(y, [0, 2, 1, 3]), [heads.batch, heads.queries, joined], out)


@lowers("RotaryEmbedding")
def rotary_embedding(b: Lowering, node: Node) -> None:
    """Rotate pairs of features (the two halves, or neighbours when interleaved) by position-dependent angles."""
    b.check_attributes(node, "interleaved", "num_heads", "rotary_embedding_dim")
    x, out = node.inputs[0], node.outputs[0]
    shape, head_axis = b.shape(x) or (), 1
    source = x
    if len(shape) == 3:
        heads, width = dims.int_attr(node, "num_heads", 0), shape[2]
        if heads <= 0 or not isinstance(width, int) or width % heads:
            msg = f"input of rank 3 and width {width} needs num_heads that divide it"
            raise Unsupported(msg)
        lead = [d if isinstance(d, int) else 0 for d in shape[:2]]
        source = b.reshape(x, [*lead, heads, width // heads])
        known = tuple(d if isinstance(d, int) else None for d in shape[:2])
        b.note(source, ValueInfo(b.info(x).dtype, (*known, heads, width // heads)))
        head_axis = 2
    size = (b.shape(source) or (None,))[-1]
    if not isinstance(size, int):
        msg = "the size of a head must be known"
        raise Unsupported(msg)
    rotated = dims.int_attr(node, "rotary_embedding_dim", 0) or size
    caches = []
    for index in (1, 2):
        cache = node.inputs[index]
        if node.has_input(3):
            cache = dims.gather(b, cache, node.inputs[3], 0)
            b.note(cache, ValueInfo(b.info(node.inputs[index]).dtype, (None, None, rotated // 2)))
        caches.append(dims.unsqueeze(b, cache, [head_axis]))
    turning = source if rotated == size else dims.strided_slice(b, source, [0], [rotated], [3])
    turned = _rotate(b, turning, caches[0], caches[1], rotated, bool(node.attrs.get("interleaved", 0)))
    if rotated < size:
        rest = dims.strided_slice(b, source, [rotated], [size], [3])
        turned = dims.concat(b, [turned, rest], 3, info=b.info(source))
    if len(shape) == 3:
        b.reshape(turned, [*(d if isinstance(d, int) else 0 for d in shape[:2]), heads * size], out)
    else:
        b.identity(turned, out)


def _rotate(b: Lowering, x: str, cos: str, sin: str, size: int, interleaved: bool) -> str:
    half, info = size // 2, b.info(x)
    if interleaved:
        first, second = (dims.strided_slice(b, x, [i], [size], [3], [2]) for i in (0, 1))
    else:
        first, second = (dims.strided_slice(b, x, [i * half], [(i + 1) * half], [3]) for i in (0, 1))
    part = b.info(first)
    real = b.binary("SUB", b.binary("MUL", cos, first), b.binary("MUL", sin, second))
    imaginary = b.binary("ADD", b.binary("MUL", sin, first), b.binary("MUL", cos, second))
    for tensor in (real, imaginary):
        b.note(tensor, part)
    if not interleaved:
        return dims.concat(b, [real, imaginary], 3, info=info)
    pairs = dims.concat(b, [dims.unsqueeze(b, t, [4]) for t in (real, imaginary)], 4)
    return _noted(b, b.reshape(pairs, [0, 0, 0, size]), info)
