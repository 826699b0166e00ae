"""Attention and rotary embedding in the real runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from tests.builders import single
from tests.ops.harness import check, needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

BATCH, QUERIES, KEYS, SIZE, PAST = 2, 3, 5, 4, 2
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def heads_first(q_heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    return {
        "q": random(BATCH, q_heads, QUERIES, SIZE),
        "k": random(BATCH, kv_heads, KEYS, SIZE),
        "v": random(BATCH, kv_heads, KEYS, SIZE + 2),
    }


def masks() -> dict[str, np.ndarray]:
    allowed = RNG.uniform(size=(QUERIES, KEYS)) > 0.4
    allowed[1] = False
    return {
        "bool": allowed,
        "bool4": np.broadcast_to(allowed, (BATCH, 1, QUERIES, KEYS)).copy(),
        "float": random(QUERIES, KEYS),
        "infinite": np.where(allowed, 0, -np.inf).astype(np.float32),
        "short": allowed[:, : KEYS - 2],
    }


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)])
@pytest.mark.parametrize("mask", ["", "bool", "bool4", "float", "infinite", "short"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("attrs", [{}, {"is_causal": 1}, {"softcap": 2.0, "scale": 0.3}], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_attention(
    mnn_runtime: MnnRuntime,
    q_heads: int,
    kv_heads: int,
    mask: str,
    constant: bool,
    attrs: dict[str, Any],
    symbolic: bool,
) -> None:
    feeds, constants = heads_first(q_heads, kv_heads), {}
    if mask:
        (constants if constant else feeds)["m"] = masks()[mask]
    shapes: dict[str, Sequence[Any]] = {}
    if symbolic:
        shapes = {
            "q": ["b", q_heads, "s", SIZE], "k": ["b", kv_heads, "t", SIZE], "v": ["b", kv_heads, "t", SIZE + 2],
            **({"m": ["s", "u"]} if "m" in feeds and feeds["m"].ndim == 2 else {}),
        }  # fmt: skip
    check(single("Attention", feeds, constants, opset=23, shapes=shapes, **attrs), feeds, mnn_runtime)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2)])
def test_all_outputs(mnn_runtime: MnnRuntime, mode: int, cache: bool, heads: tuple[int, int]) -> None:
    feeds = heads_first(*heads)
    feeds["m"] = np.tril(np.ones((QUERIES, KEYS + (PAST if cache else 0)), bool), 2)
    order = ["q", "k", "v", "m"]
    if cache:
        feeds["pk"], feeds["pv"] = (
            random(BATCH, heads[1], PAST, SIZE),
            random(BATCH, heads[1], PAST, SIZE + 2),
        )
        order += ["pk", "pv"]
    # In mode 0 the reference shows capped scores, where the specification says raw ones.
    proto = single(
        "Attention",
        feeds,
        order=order,
        n_outputs=4,
        opset=23,
        qk_matmul_output_mode=mode,
        softcap=3.0 if mode else 0.0,
        is_causal=1,
    )
    check(proto, feeds, mnn_runtime)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("shapes", [False, True])
def test_heads_in_the_last_axis(mnn_runtime: MnnRuntime, heads: tuple[int, int], shapes: bool) -> None:
    q_heads, kv_heads = heads
    feeds = {
        "q": random(BATCH, QUERIES, q_heads * SIZE),
        "k": random(BATCH, KEYS, kv_heads * SIZE),
        "v": random(BATCH, KEYS, kv_heads * SIZE),
    }
    symbolic = {name: ["b", "s" if name == "q" else "t", array.shape[2]] for name, array in feeds.items()}
    proto = single(
        "Attention", feeds, opset=23, q_num_heads=q_heads, kv_num_heads=kv_heads, is_causal=1,
        shapes=symbolic if shapes else None,
    )  # fmt: skip
    check(proto, feeds, mnn_runtime)


@pytest.mark.parametrize("causal", [0, 1])
def test_padded_cache(mnn_runtime: MnnRuntime, causal: int) -> None:
    feeds = {**heads_first(2, 2), "n": np.array([3, 5])}
    proto = single("Attention", feeds, order=["q", "k", "v", "", "", "", "n"], opset=24, is_causal=causal)
    check(proto, feeds, mnn_runtime)


def test_a_head_size_is_needed() -> None:
    feeds = heads_first(2, 2)
    shapes = {"q": ["b", 2, "s", "d"], "k": ["b", 2, "t", "d"], "v": ["b", 2, "t", "e"]}
    with pytest.raises(UnsupportedError, match="size of a head"):
        convert_onnx(single("Attention", feeds, opset=23, shapes=shapes))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [0, 4])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("symbolic", [True, False])
def test_rotary_embedding(
    mnn_runtime: MnnRuntime, interleaved: int, partial: int, rank: int, positions: bool, symbolic: bool
) -> None:
    heads, size, length = 2, 8, 3
    half = (partial or size) // 2
    x = random(BATCH, heads, length, size) if rank == 4 else random(BATCH, length, heads * size)
    caches = (10, half) if positions else (BATCH, length, half)
    feeds = {"x": x, "c": random(*caches), "s": random(*caches)}
    if positions:
        feeds["p"] = np.array([[0, 1, 2], [3, 9, 4]])
    shape = ["b", heads, "t", size] if rank == 4 else ["b", "t", heads * size]
    attrs = {"num_heads": heads} if rank == 3 else {}
    proto = single(
        "RotaryEmbedding", feeds, opset=23, interleaved=interleaved, rotary_embedding_dim=partial,
        shapes={"x": shape} if symbolic else None, **attrs,
    )  # fmt: skip
    check(proto, feeds, mnn_runtime)
