"""Layers on codes against the documented formulas in NumPy (`docs/int8.md`), bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnnq import _native
from mnnq.ir.model import Model, Op
from mnnq.runtime import InferenceSession

F = np.float32
Info = dict[str, Any]


def info(scale: float, zero: int = 0, low: int = -127) -> Info:
    return {"scale": float(F(scale)), "zero": float(zero), "min": float(low), "max": 127.0, "type": "DT_INT8"}


def away(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return np.asarray(whole + np.sign(x) * (np.abs(x - whole) >= F(0.5)))


def clamp(codes: np.ndarray, q: Info, low: float | None = None) -> np.ndarray:
    return np.clip(codes, q["min"] if low is None else low, q["max"]).astype(np.int64)


def to_codes(x: np.ndarray, q: Info) -> np.ndarray:
    return clamp(away(x / F(q["scale"])) + q["zero"], q)


def real(codes: np.ndarray, q: Info) -> np.ndarray:
    return np.asarray((codes.astype(F) - F(q["zero"])) * F(q["scale"]), F)


def ratio(a: float, b: float) -> np.float32:
    return F(float(a) / float(b))


def source(shape: list[int]) -> Op:
    dims = np.array(shape, np.int32)
    return Op("Input", "x", [], ["x"], "Input", {"dims": dims, "dtype": "DT_FLOAT", "dformat": "NCHW"})


def convolution(
    name: str,
    read: str,
    weights: np.ndarray,
    alpha: np.ndarray,
    bias: np.ndarray,
    group: int = 1,
    **common: Any,
) -> Op:
    out, inside, height, width = weights.shape
    params = {
        "common": {
            "kernelX": width, "kernelY": height, "outputCount": out, "inputCount": inside * group, "group": group,
            **common,
        },
        "bias": bias,
        "quanParameter": _native.encode_weights(weights.astype(np.int8).reshape(out, -1), alpha, None, 8),
    }  # fmt: skip
    kind = "ConvolutionDepthwise" if group > 1 and group == out else "Convolution"
    return Op(kind, name, [read], [name], "Convolution2D", params)


def sums(x: np.ndarray, w: np.ndarray, group: int, stride: int, pad: int) -> np.ndarray:
    """Sums of products of `x` without its zero point, `[N, O, H, W]`."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum("nchwij,ocij->nohw", part, weights)
        for part, weights in zip(np.split(windows, group, 1), np.split(w, group, 0), strict=True)
    ]
    return np.concatenate(parts, 1)


def conv_codes(
    acc: np.ndarray, alpha: np.ndarray, bias: np.ndarray, q: Info, to: Info, relu: bool, depthwise: bool
) -> np.ndarray:
    shape = (1, -1, 1, 1)
    scale = (alpha.astype(np.float64) * q["scale"] / to["scale"]).astype(F)
    low = max(to["min"], to["zero"]) if relu else None
    if depthwise:
        offset = np.trunc(bias / (F(q["scale"]) * alpha)) + np.trunc(F(to["zero"]) / scale)
        return clamp(away((acc + offset.reshape(shape)).astype(F) * scale.reshape(shape)), to, low)
    shift = (bias.astype(np.float64) / to["scale"]).astype(F)
    value = acc.astype(F) * scale.reshape(shape) + shift.reshape(shape)
    return clamp(away(value) + to["zero"], to, low)


def outputs(model: Model, x: np.ndarray, path: Path, **options: Any) -> np.ndarray:
    model.save(path)
    session = InferenceSession(path, {"threads": 1, **options})
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@st.composite
def geometry(draw: st.DrawFn) -> dict[str, int]:
    kernel, group = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 1, 2, 8, 0]))
    return {
        "kernel": kernel, "stride": draw(st.integers(1, 2)), "pad": draw(st.integers(0, kernel - 1)),
        "channels": draw(st.sampled_from([1, 3, 8, 17, 33, 65, 96])), "out": draw(st.sampled_from([1, 5, 16, 32, 70])),
        "group": group, "size": draw(st.integers(6, 12)), "zero": draw(st.sampled_from([0, -7, 127])),
        "out_zero": draw(st.sampled_from([0, 13, -128])), "relu": draw(st.integers(0, 1)), "batch": draw(st.integers(1, 2)),
    }  # fmt: skip


@given(g=geometry(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_convolutions_sums_and_functions_follow_the_formulas(
    g: dict[str, int], seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    channels, out = g["channels"], g["out"]
    if g["group"] == 0:
        out = group = channels
    else:
        group = g["group"] if channels % g["group"] == 0 and out % g["group"] == 0 else 1
    depthwise = group > 1 and group == out == channels
    weights = rng.integers(-127, 128, (out, channels // group, g["kernel"], g["kernel"]))
    alpha = rng.uniform(1e-4, 2e-3, out).astype(F)
    bias = rng.uniform(-2, 2, out).astype(F)
    low = min(-127, g["out_zero"])
    qx, qc, qo = info(0.02, g["zero"], -128), info(0.031, g["out_zero"], low), info(0.043, -3, -128)
    x = rng.standard_normal((g["batch"], channels, g["size"], g["size"])).astype(F)
    common = {
        "strideX": g["stride"],
        "strideY": g["stride"],
        "padX": g["pad"],
        "padY": g["pad"],
        "relu": bool(g["relu"]),
    }
    conv = convolution("c", "x", weights, alpha, bias, group, **common)
    add = Op("BinaryOp", "y", ["c", "c2"], ["y"], "BinaryOp", {"opType": "ADD", "T": "DT_FLOAT"})
    second = convolution("c2", "x", weights[::-1], alpha, bias, group, **common)
    relu = Op("ReLU", "z", ["y"], ["z"], "Relu", {"slope": 0.0})
    model = Model([source(list(x.shape)), conv, second, add, relu], ["z"])
    model.tensor_quant = {"x": qx, "c": qc, "c2": qc, "y": qo, "z": qo}

    codes = to_codes(x, qx) - int(qx["zero"])
    of = [
        conv_codes(
            sums(codes, w, group, g["stride"], g["pad"]), alpha, bias, qx, qc, bool(g["relu"]), depthwise
        )
        for w in (weights, weights[::-1])
    ]
    scale = ratio(qc["scale"], qo["scale"])
    a, b = ((c - int(qc["zero"])).astype(F) * scale for c in of)
    want = np.maximum(clamp(away(a + b) + qo["zero"], qo), int(qo["zero"]))
    got = outputs(model, x, tmp_path / "m.mnn")
    assert np.array_equal(got, real(want, qo))
    for options in ({"fuse": False}, {"threads": 2}):
        assert outputs(model, x, tmp_path / "m.mnn", **options).tobytes() == got.tobytes()


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 64, 7, 7), (2, 40, 6, 1)])
def test_products_of_channels_tables_and_means_follow_the_formulas(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(F)
    qx, qs, qm = info(0.03, 4, -128), info(1 / 127), info(0.02, -5)
    pool = Op("Pooling3D", "p", ["x"], ["p"], "Pool3D", {"type": "AVEPOOL", "isGlobal": True})
    gate = Op("UnaryOp", "s", ["p"], ["s"], "UnaryOp", {"opType": "SIGMOID"})
    table = rng.integers(-127, 128, 255).astype(np.int8)
    gate.params["tableInt8"] = table
    product = Op("BinaryOp", "y", ["x", "s"], ["y"], "BinaryOp", {"opType": "MUL", "T": "DT_FLOAT"})
    model = Model([source(list(shape)), pool, gate, product], ["y"])
    model.tensor_quant = {"x": qx, "p": qx, "s": qs, "y": qm}

    codes = to_codes(x, qx)
    total, count = (codes - 4).sum((2, 3), keepdims=True), shape[2] * shape[3]
    mean = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count)) + 4
    scales = table.astype(np.int64)[np.maximum(mean, -127) + 127]
    value = ((codes - 4) * scales).astype(F) * F(float(qx["scale"]) * float(qs["scale"]) / float(qm["scale"]))
    want = real(clamp(away(value) + qm["zero"], qm), qm)
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn"), want)
    # The operands exchanged.
    product.inputs.reverse()
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn"), want)


def test_joining_tensors_of_different_scales_is_rounding_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 6, 5, 5)).astype(F)
    qx, qa, qb, qj = info(0.03), info(0.05), info(0.017, 3), info(0.04, -2)
    weights = rng.integers(-127, 128, (4, 6, 1, 1))
    alpha, bias = np.full(4, 1e-3, F), np.zeros(4, F)
    ops = [
        source([1, 6, 5, 5]),
        convolution("a", "x", weights, alpha, bias),
        convolution("b", "x", weights, alpha, bias),
    ]
    ops.append(Op("Concat", "j", ["a", "b"], ["j"], "Axis", {"axis": 1}))
    ops.append(convolution("y", "j", rng.integers(-9, 9, (3, 8, 1, 1)), np.full(3, 1e-2, F), np.zeros(3, F)))
    model = Model(ops, ["y"])
    model.tensor_quant = {"x": qx, "a": qa, "b": qb, "j": qj, "y": qa}
    model.save(tmp_path / "m.mnn")
    session = InferenceSession(tmp_path / "m.mnn", {"threads": 1})
    seen: dict[str, np.ndarray] = {}
    session.observe({"x": x}, lambda name, array: seen.update({name: array.copy()}))
    codes = to_codes(x, qx)
    parts = [conv_codes(sums(codes, weights, 1, 1, 0), alpha, bias, qx, q, False, False) for q in (qa, qb)]
    joined = np.concatenate([to_codes(real(part, q), qj) for part, q in zip(parts, (qa, qb), strict=True)], 1)
    assert np.array_equal(seen["j"], real(joined, qj))
    session.run(None, {"x": x})
    assert {step.node for step in session.profile() if step.op_type == "dequantize"} == {"y"}


@pytest.mark.parametrize(("groups", "inside", "outside"), [(8, 4, 4), (6, 3, 5), (2, 24, 40)])
def test_groups_that_are_spelt_out_run_as_one_convolution(
    groups: int, inside: int, outside: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(groups)
    x = rng.standard_normal((2, groups * inside, 9, 7)).astype(F)
    qx, qy = info(0.03, 5, -128), info(0.05, -9, -128)
    weights = rng.integers(-127, 128, (groups * outside, inside, 3, 3))
    alpha = rng.uniform(1e-4, 2e-3, len(weights)).astype(F)
    bias = rng.uniform(-2, 2, len(weights)).astype(F)
    cut = {"axis": 1, "slicePoints": np.full(groups, inside, np.int32), "sourceType": "ONNX"}
    pieces = [f"x{g}" for g in range(groups)]
    ops = [source(list(x.shape)), Op("Slice", "s", ["x"], pieces, "Slice", cut)]
    names = [f"y{g}" for g in range(groups)]
    for g, name in enumerate(names):
        rows = slice(g * outside, (g + 1) * outside)
        ops.append(
            convolution(name, pieces[g], weights[rows], alpha[rows], bias[rows], padX=1, padY=1, relu=True)
        )
    ops.append(Op("Concat", "y", names, ["y"], "Axis", {"axis": 1}))
    model = Model(ops, ["y"])
    model.tensor_quant = {"x": qx, "y": qy} | dict.fromkeys(pieces, qx) | dict.fromkeys(names, qy)

    codes = to_codes(x, qx) - int(qx["zero"])
    want = real(conv_codes(sums(codes, weights, groups, 1, 1), alpha, bias, qx, qy, True, False), qy)
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn"), want)
    session = InferenceSession(tmp_path / "m.mnn", {"threads": 1})
    assert np.array_equal(np.asarray(session.run(None, {"x": x})[0]), want)
    assert any(f"{groups} groups in one" in step.kernel for step in session.profile())
    assert not any(step.op_type == "Concat" for step in session.profile())
    seen: dict[str, np.ndarray] = {}
    session.observe({"x": x}, lambda name, array: seen.update({name: array.copy()}))
    assert np.array_equal(seen["y1"], want[:, outside : 2 * outside])


def test_maxima_and_conversions_are_shared(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4, 6, 6)).astype(F)
    q = info(0.03)
    size = {"kernelX": 2, "kernelY": 2, "strideX": 2, "strideY": 2, "type": "MAXPOOL", "ceilModel": False}
    pools = [Op("Pooling", name, ["x"], [name], "Pool", size) for name in ("a", "b")]
    add = Op("BinaryOp", "y", ["a", "b"], ["y"], "BinaryOp", {"opType": "SUB", "T": "DT_FLOAT"})
    model = Model([source([1, 4, 6, 6]), *pools, add], ["y"])
    model.tensor_quant = {"x": q, "a": q, "b": q, "y": info(0.03)}
    got = outputs(model, x, tmp_path / "m.mnn")
    assert not got.any()
    session = InferenceSession(tmp_path / "m.mnn", {"threads": 1})
    session.run(None, {"x": x})
    assert sum(step.op_type == "quantize" for step in session.profile()) == 1
    compat = outputs(model, x, tmp_path / "m.mnn", int8="compat")
    assert not compat.any()
    model.ops[-1:] = []
    model.outputs = ["a"]
    del model.tensor_quant["y"]
    codes = to_codes(x, q).reshape(1, 4, 3, 2, 3, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 4, 3, 3, 4)
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn"), real(codes.max(-1), q))
    unsigned = codes.astype(np.int8).view(np.uint8).max(-1).view(np.int8)
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn", int8="compat"), real(unsigned, q))


@pytest.mark.parametrize(
    ("hair", "low", "on_codes"), [(2.0**-18, -127, True), (2.0**-10, -127, False), (2.0**-18, 9, False)]
)
def test_maxima_between_almost_equal_scales_stay_codes(
    hair: float, low: int, on_codes: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 6, 8, 8)).astype(F)
    qx, qc = info(0.03), info(0.02, 5)
    qp = {**qc, "scale": float(F(qc["scale"] * (1 + hair))), "min": float(low)}
    w = [rng.integers(-127, 128, (8, inside, 1, 1)) for inside in (6, 8)]
    alpha, bias = np.full(8, 1e-3, F), np.zeros(8, F)
    size = {"kernelX": 2, "kernelY": 2, "strideX": 2, "strideY": 2, "type": "MAXPOOL", "ceilModel": False}
    pool = Op("Pooling", "p", ["c"], ["p"], "Pool", size)
    first, last = (convolution(n, r, v, alpha, bias) for n, r, v in zip("cy", "xp", w, strict=True))
    model = Model([source([1, 6, 8, 8]), first, pool, last], ["y"])
    model.tensor_quant = {"x": qx, "c": qc, "p": qp, "y": qx}

    codes = conv_codes(sums(to_codes(x, qx), w[0], 1, 1, 0), alpha, bias, qx, qc, False, False)
    largest = codes.reshape(1, 8, 4, 2, 4, 2).max((3, 5))
    pooled = to_codes(real(largest, qc), qp)
    assert np.array_equal(pooled, largest) is (low < 9)
    want = real(conv_codes(sums(pooled - 5, w[1], 1, 1, 0), alpha, bias, qp, qx, False, False), qx)
    for options in ({}, {"int8": "compat"}, {"fuse": False}):
        assert np.array_equal(outputs(model, x, tmp_path / "m.mnn", **options), want)
    session = InferenceSession(tmp_path / "m.mnn", {"threads": 1})
    session.run(None, {"x": x})
    (step,) = (step for step in session.profile() if step.op_type == "Pooling")
    assert ("int8" in step.kernel) is on_codes
    # Read as floats it is not rounded to its own grid.
    model.outputs = ["p"]
    model.ops.pop()
    del model.tensor_quant["y"]
    assert np.array_equal(outputs(model, x, tmp_path / "m.mnn"), real(largest, qc))


def test_codes_do_not_spread_to_tensors_described_as_floats(tmp_path: Path) -> None:
    x = np.linspace(-3, 3, 64, dtype=F).reshape(1, 4, 4, 4)
    gate = Op("UnaryOp", "s", ["x"], ["s"], "UnaryOp", {"opType": "SIGMOID"})
    coarse, fine = info(0.25), info(0.01)
    relu = Op("ReLU", "r", ["s"], ["r"], "Relu", {"slope": 0.0})
    both = Op("BinaryOp", "y", ["s", "s"], ["y"], "BinaryOp", {"opType": "ADD", "T": "DT_FLOAT"})
    model = Model([source([1, 4, 4, 4]), gate, relu, both], ["r", "y"])
    model.tensor_quant = {"r": coarse, "y": fine}

    def run() -> np.ndarray:
        model.save(tmp_path / "m.mnn")
        return np.asarray(InferenceSession(tmp_path / "m.mnn").run(["y"], {"x": x})[0])

    exact = 2 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(run() - exact).max() > 0.1
    model.tensor_quant["s"] = {**info(1.0), "scale": 0.0, "type": "DT_FLOAT"}
    assert np.abs(run() - exact).max() < 1e-5


CHECK = """
import hashlib, sys, numpy as np
from mnnq.runtime import InferenceSession
session = InferenceSession(sys.argv[1], {"threads": 2})
x = np.random.default_rng(0).standard_normal((2, 20, 9, 9)).astype(np.float32)
print(hashlib.sha256(session.run(None, {"x": x})[0].tobytes()).hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    ops = [source([2, 20, 9, 9])]
    for index, (out, inside, kernel, group) in enumerate([(70, 20, 3, 1), (70, 1, 3, 70), (40, 70, 1, 1)]):
        weights = rng.integers(-127, 128, (out, inside, kernel, kernel))
        alpha, bias = rng.uniform(1e-4, 1e-3, out).astype(F), rng.uniform(-1, 1, out).astype(F)
        name = f"c{index}"
        ops.append(convolution(name, ops[-1].outputs[0], weights, alpha, bias, group, padX=1, padY=1))
    ops.append(Op("UnaryOp", "y", ["c2"], ["y"], "UnaryOp", {"opType": "NEG"}))
    model = Model(ops, ["y"])
    model.tensor_quant = {op.outputs[0]: info(0.05, 3) for op in ops}
    model.save(tmp_path / "m.mnn")
    found = set()
    for level in ("baseline", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod", "i8mm", ""):
        environment = {**os.environ, "MNNQ_ISA": level} if level else dict(os.environ)
        done = subprocess.run(
            [sys.executable, "-c", CHECK, str(tmp_path / "m.mnn")],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            found.add(done.stdout.strip())
        else:
            assert "MNNQ_ISA" in done.stderr
    assert len(found) == 1
