"""``auto_pad`` and ``output_shape`` of convolutions and pooling become explicit ``pads``."""

from __future__ import annotations

from mnnq.ir.graph import Graph, Node


def resolve_padding(graph: Graph, node: Node) -> bool:
    """Replace padding by name with numbers where they are determined; return whether the node changed.

    With input size n, stride s and effective kernel k = (kernel - 1) * dilation + 1, ``SAME`` pads
    max((ceil(n / s) - 1) * s + k - n, 0) in all, the odd pixel at the end (``SAME_UPPER``) or at the
    beginning (``SAME_LOWER``); for s = 1 that is k - 1 whatever n is.
    """
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET" and not (node.op_type == "ConvTranspose" and "output_shape" in node.attrs):
        return node.attrs.pop("auto_pad", None) is not None
    kernel = _kernel(graph, node)
    if kernel is None:
        return False
    rank = len(kernel)
    shape = graph.info(node.inputs[0]).shape
    sizes: list[int | None] = [None] * rank
    if shape is not None:
        sizes = [d if isinstance(d, int) else None for d in shape[2:]]
    if len(sizes) != rank:
        return False
    strides = [int(s) for s in node.attrs.get("strides", [1] * rank)]
    dilations = [int(d) for d in node.attrs.get("dilations", [1] * rank)]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if node.op_type == "ConvTranspose":
        return _transposed(node, mode, sizes, strides, extent)
    if mode == "VALID":
        totals: list[int | None] = [0] * rank
    else:
        totals = [_same(n, s, k) for n, s, k in zip(sizes, strides, extent, strict=True)]
    return _store(node, mode, totals)


def _kernel(graph: Graph, node: Node) -> list[int] | None:
    if "kernel_shape" in node.attrs:
        return [int(k) for k in node.attrs["kernel_shape"]]
    weight = graph.info(node.input(1)).static_shape if node.op_type.startswith("Conv") else None
    return list(weight[2:]) if weight else None


def _same(size: int | None, stride: int, extent: int) -> int | None:
    if stride == 1:
        return extent - 1
    if size is None:
        return None
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


def _store(node: Node, mode: str, totals: list[int | None]) -> bool:
    known = [total for total in totals if total is not None]
    if len(known) != len(totals):
        return False
    small = [total // 2 for total in known]
    large = [total - half for total, half in zip(known, small, strict=True)]
    node.attrs.pop("auto_pad", None)
    node.attrs["pads"] = [*small, *large] if mode in ("SAME_UPPER", "VALID") else [*large, *small]
    return True


def _transposed(
    node: Node, mode: str, sizes: list[int | None], strides: list[int], extent: list[int]
) -> bool:
    """Transposed convolution: out = s * (n - 1) + output_padding + k - pads; ``SAME`` wants out = s * n."""
    rank = len(strides)
    extra = [int(p) for p in node.attrs.get("output_padding", [0] * rank)]
    wanted = node.attrs.get("output_shape")
    totals: list[int | None] = []
    for axis in range(rank):
        full = extent[axis] + extra[axis] - strides[axis]
        if wanted is not None:
            size = sizes[axis]
            if size is None:
                return False
            totals.append(full + strides[axis] * size - int(wanted[len(wanted) - rank + axis]))
        else:
            totals.append(0 if mode == "VALID" else full)
    grown = [max(-total, 0) for total in totals if total is not None]
    if any(more and more + e >= s for more, e, s in zip(grown, extra, strides, strict=True)):
        return False
    node.attrs.pop("output_shape", None)
    if any(grown):
        node.attrs["output_padding"] = [e + more for e, more in zip(extra, grown, strict=True)]
    return _store(node, mode, [max(total, 0) for total in totals if total is not None])
