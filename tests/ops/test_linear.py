"""MatMul, Gemm, Linear and Einsum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mnnq.convert import convert_onnx
from tests.builders import single
from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(1)


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


_SHAPES = [
    ((2, 3), (3, 4)),
    ((3,), (3, 4)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((5, 2, 3), (3,)),
    ((6, 5, 2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((5, 1, 2, 3), (4, 3, 7)),
    ((2, 3), (5, 3, 4)),
]


def _matmul_cases() -> Iterator[Case]:
    for first, second in _SHAPES:
        a, b, label = _f(*first), _f(*second), f"{first}x{second}"
        yield case(label, "MatMul", {"a": a, "b": b})
        yield case(f"{label}-constant-b", "MatMul", {"a": a}, {"b": b})
        yield case(f"{label}-constant-a", "MatMul", {"b": b}, {"a": a}, order=["a", "b"])
        yield case(f"{label}-symbolic", "MatMul", {"a": a}, {"b": b}, shapes={"a": symbols(a)})
        x, y = (v.astype(np.int32) for v in (a * 9, b * 9))
        yield case(f"{label}-int32", "MatMul", {"a": x, "b": y})


@parametrize(_matmul_cases())
def test_matmul(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _gemm_cases() -> Iterator[Case]:
    for trans_a, trans_b in np.ndindex(2, 2):
        a = _f(*((3, 2) if trans_a else (2, 3)))
        b = _f(*((4, 3) if trans_b else (3, 4)))
        for alpha, beta in ((1.0, 1.0), (0.5, 2.0), (0.5, 0.0)):
            for shape in (None, (1,), (4,), (2, 1), (2, 4), ()):
                added = {} if shape is None else {"c": _f(*shape)}
                label = f"{trans_a}{trans_b}-{alpha}-{beta}-{shape}"
                attrs = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
                yield case(label, "Gemm", {"a": a, "b": b, **added}, **attrs)
                yield case(f"{label}-constant", "Gemm", {"a": a}, {"b": b, **added}, **attrs)


@parametrize(_gemm_cases())
def test_gemm(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


_EQUATIONS = [
    ("ij->ji", (3, 4)),
    ("ij->i", (3, 4)),
    ("ij->", (3, 4)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("...ii->...i", (2, 3, 3)),
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,jk", (3, 4), (4, 5)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("nchw,cd->ndhw", (2, 3, 4, 5), (3, 6)),
    ("i,j->ij", (3,), (4,)),
    ("i,i->", (3,), (3,)),
    ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
    ("...ij,jk->...ik", (2, 3, 4), (4, 5)),
    ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bhij,bhjd->bihd", (2, 3, 4, 5), (2, 3, 5, 6)),
    ("ij,jk,kl->il", (3, 4), (4, 5), (5, 2)),
    ("ij,ij->ij", (3, 4), (3, 4)),
    ("ij,ij->i", (3, 4), (3, 4)),
    ("abc,cde->abde", (2, 3, 4), (4, 5, 6)),
    ("abcd,bcde->ae", (2, 3, 4, 5), (3, 4, 5, 6)),
    ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 7, 5)),
    ("ij,kj->", (3, 4), (5, 4)),
    ("ij,k->ijk", (3, 4), (5,)),
    ("...,...->...", (2, 3), (2, 3)),
]


def _einsum_cases() -> Iterator[Case]:
    for equation, *shapes in _EQUATIONS:
        inputs = {f"x{i}": _f(*shape) for i, shape in enumerate(shapes)}
        yield case(equation, "Einsum", inputs, equation=equation)
        first, *rest = inputs.items()
        if rest:
            yield case(f"{equation}-constant", "Einsum", dict([first]), dict(rest), equation=equation)
    inputs = {"q": _f(2, 3, 4, 5), "k": _f(2, 3, 6, 5)}
    named = {"q": ["b", 3, "i", 5], "k": ["b", 3, "j", 5]}
    equation = "bhid,bhjd->bhij"
    yield case("symbolic", "Einsum", inputs, equation=equation, shapes=named)


@parametrize(_einsum_cases())
def test_einsum(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_constant_weight_becomes_a_convolution_with_mnns_name() -> None:
    model = convert_onnx(single("MatMul", {"x": _f(2, 5, 3)}, {"w": _f(3, 4)}))
    (op,) = [op for op in model.ops if op.type == "Convolution"]
    assert op.name == "y__matmul_converted"
    assert op.params["common"]["inputCount"] == 3
    assert op.params["common"]["outputCount"] == 4
