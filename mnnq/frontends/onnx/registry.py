"""Which function lowers which ONNX operator to MNN operators."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from mnnq.ir.graph import Node

if TYPE_CHECKING:
    from mnnq.frontends.onnx.lowering import Lowering

LowerFn = Callable[["Lowering", Node], None]

#: Operators that are written with others before the lowering (`mnnq.passes.normalize`): no function lowers them.
REWRITTEN = ("Constant", "Dropout", "Scatter", "Upsample")

_REGISTRY: dict[tuple[str, str], LowerFn] = {}


def lowers(*op_types: str, domain: str = "") -> Callable[[LowerFn], LowerFn]:
    """Register the decorated function as the lowering of `op_types`.

    The function receives operators in the form of the newest opset (`mnnq.passes.normalize` brings them
    there) and raises `mnnq.frontends.onnx.lowering.Unsupported` for what it cannot express exactly.
    """

    def register(function: LowerFn) -> LowerFn:
        for op_type in op_types:
            key = (domain, op_type)
            if key in _REGISTRY:
                msg = f"operator {op_type!r} of domain {domain!r} is lowered twice"
                raise ValueError(msg)
            _REGISTRY[key] = function
        return function

    return register


def find(op_type: str, domain: str = "") -> LowerFn | None:
    """The lowering of an operator, or None when it is not supported."""
    _load()
    return _REGISTRY.get((domain, op_type))


def supported() -> list[str]:
    """Names of the supported operators of the default domain, sorted."""
    _load()
    return sorted({*(op for domain, op in _REGISTRY if domain == ""), *REWRITTEN})


@functools.cache
def _load() -> None:
    """Import every module of `mnnq.frontends.onnx.ops`; importing registers, and happens once."""
    package = importlib.import_module("mnnq.frontends.onnx.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
