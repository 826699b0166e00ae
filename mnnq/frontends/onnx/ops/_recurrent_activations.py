"""Activation functions of the recurrent operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.ir.graph import Node

#: Default alpha and beta of the activations that have them (None: it has no such parameter).
_DEFAULTS: dict[str, tuple[float | None, float | None]] = {
    "sigmoid": (None, None),
    "tanh": (None, None),
    "relu": (None, None),
    "softsign": (None, None),
    "softplus": (None, None),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters.

    Attributes
    ----------
    kind
        Lower-case name.
    alpha, beta
        Parameters, meaningless where the activation has none.
    clip
        Its input is limited to [-clip, clip] first; None for no limit.
    """

    kind: str
    alpha: float = 0.0
    beta: float = 0.0
    clip: float | None = None

    def __call__(self, b: Lowering, x: str) -> str:
        """Emit the activation of `x`."""
        if self.clip is not None:
            x = b.emit(
                "ReLU6", [x], param_type="Relu6", minValue=-self.clip, maxValue=self.clip, info=b.info(x)
            )  # fmt: skip
        return _EMIT[self.kind](b, x, self)


def activations(node: Node, defaults: list[str], directions: int) -> list[list[Activation]]:
    """The activations of every direction; `defaults` are those of one direction.

    ``activation_alpha`` and ``activation_beta`` hold values for the functions that have such a parameter, in
    order; functions beyond the lists get the defaults of the operator of the same name.
    """
    names = [str(name) for name in node.attrs.get("activations") or defaults * directions]
    each = len(defaults)
    if len(names) != each * directions:
        msg = f"{len(names)} activations, want {each * directions}"
        raise Unsupported(msg)
    clip = node.attrs.get("clip")
    alphas = [float(v) for v in node.attrs.get("activation_alpha") or []]
    betas = [float(v) for v in node.attrs.get("activation_beta") or []]
    found = []
    for name in names:
        kind = name.lower()
        if kind not in _DEFAULTS:
            msg = f"activation {name!r}; known: {', '.join(sorted(_DEFAULTS))}"
            raise Unsupported(msg)
        alpha, beta = _DEFAULTS[kind]
        alpha = alphas.pop(0) if alpha is not None and alphas else alpha
        beta = betas.pop(0) if beta is not None and betas else beta
        found.append(Activation(kind, alpha or 0.0, beta or 0.0, None if clip is None else float(clip)))
    return [found[i * each : (i + 1) * each] for i in range(directions)]


def _number(b: Lowering, value: float) -> str:
    return b.const(np.asarray(value, np.float32), "number")


def _affine(b: Lowering, x: str, a: Activation) -> str:
    return b.binary("ADD", b.binary("MUL", x, _number(b, a.alpha)), _number(b, a.beta))


def _thresholded(b: Lowering, x: str, a: Activation) -> str:
    above = b.binary("GREATER", x, _number(b, a.alpha))
    return b.emit("Select", [above, x, _number(b, 0.0)], info=b.info(x))


def _scaled_tanh(b: Lowering, x: str, a: Activation) -> str:
    return b.binary("MUL", b.unary("TANH", b.binary("MUL", x, _number(b, a.beta))), _number(b, a.alpha))


def _hard_sigmoid(b: Lowering, x: str, a: Activation) -> str:
    return b.emit("ReLU6", [_affine(b, x, a)], param_type="Relu6", minValue=0.0, maxValue=1.0, info=b.info(x))


def _softsign(b: Lowering, x: str, _: Activation) -> str:
    return b.binary("REALDIV", x, b.binary("ADD", b.unary("ABS", x), _number(b, 1.0)))


def _softplus(b: Lowering, x: str, _: Activation) -> str:
    """``max(x, 0) + log(1 + exp(-|x|))``."""
    tail = b.unary("LOG", b.binary("ADD", b.unary("EXP", b.unary("NEG", b.unary("ABS", x))), _number(b, 1.0)))
    return b.binary("ADD", b.emit("ReLU", [x], param_type="Relu", slope=0.0, info=b.info(x)), tail)


_EMIT: dict[str, Callable[[Lowering, str, Activation], str]] = {
    "sigmoid": lambda b, x, _: b.unary("SIGMOID", x),
    "tanh": lambda b, x, _: b.unary("TANH", x),
    "relu": lambda b, x, _: b.emit("ReLU", [x], param_type="Relu", slope=0.0, info=b.info(x)),
    "softsign": _softsign,
    "softplus": _softplus,
    "affine": _affine,
    "leakyrelu": lambda b, x, a: b.emit("ReLU", [x], param_type="Relu", slope=a.alpha, info=b.info(x)),
    "thresholdedrelu": _thresholded,
    "scaledtanh": _scaled_tanh,
    "hardsigmoid": _hard_sigmoid,
    "elu": lambda b, x, a: b.emit("ELU", [x], param_type="ELU", alpha=a.alpha, info=b.info(x)),
}
