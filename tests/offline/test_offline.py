"""The whole job of offline quantization on small networks, in our runtime and in MNN's."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import mnnq
from mnnq.errors import ConfigError, InputError, QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.offline import OfflineConfig, calibrate, quantize_calibrated
from mnnq.writer.to_mnn import to_bytes
from tests import builders
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

SHAPE = (1, 8, 16, 16)
#: Codes by which runtimes may differ where a sum lies between two of them.
ONE_CODE = 1.01


def conv(x: str, y: str, weight: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight], [y], **attrs)


def network(middle: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Two convolutions that give ``p`` and ``r``, whatever makes ``q`` of them, a convolution behind."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"w1": normal(16, 8, 3, 3), "w2": normal(16, 8, 1, 1), "w3": normal(12, 16, 1, 1)}
    nodes = [
        conv("x", "p", "w1", pads=[1, 1, 1, 1]),
        conv("x", "r0", "w2"),
        helper.make_node("Relu", ["r0"], ["r"]),
        *middle,
        conv("q", "y", "w3"),
        helper.make_node("Sin", ["y"], ["result"]),
    ]
    inputs = {"x": np.zeros(SHAPE, np.float32)}
    return builders.model(nodes, inputs, ["result"], {**weights, **(constants or {})})


def node(op_type: str, inputs: list[str], output: str = "q", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attrs)


def uneven(rows: int, columns: int) -> np.ndarray:
    """Weights ``[rows, columns, 1, 1]`` whose rows have ranges from 1/4 to 4."""
    weight = np.random.default_rng(6).normal(size=(rows, columns, 1, 1)) / np.sqrt(columns)
    return (weight * np.geomspace(0.25, 4, rows)[:, None, None, None]).astype(np.float32)


SIZES = {"s": np.array([1, 1, 2, 2], np.float32)}

#: What stands between the convolutions, constants it needs, whether it computes on codes.
MIDDLES: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "sum": ([node("Add", ["p", "r"])], {}),
    "sum and relu": ([node("Add", ["p", "r"], "q0"), node("Relu", ["q0"])], {}),
    "product": ([node("Mul", ["p", "r"])], {}),
    "difference": ([node("Sub", ["p", "r"])], {}),
    "maximum pooling": (
        [node("MaxPool", ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {},
    ),
    "maximum pooling of one sign": ([node("MaxPool", ["r"], kernel_shape=[2, 2], strides=[2, 2])], {}),
    "average pooling": ([node("AveragePool", ["p"], kernel_shape=[2, 2], strides=[2, 2])], {}),
    "sigmoid": ([node("Sigmoid", ["p"])], {}),
    "silu": ([node("Sigmoid", ["p"], "s0"), node("Mul", ["p", "s0"])], {}),
    "hard swish": ([node("HardSwish", ["p"])], {}),
    "tanh": ([node("Tanh", ["p"])], {}),
    "magnitude": ([node("Abs", ["r"], "b"), node("Add", ["p", "b"])], {}),
    "leaky": ([node("LeakyRelu", ["p"], alpha=0.1)], {}),
    "nearest": (
        [
            node(
                "Resize",
                ["p", "", "s"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        ],
        SIZES,
    ),
    "shuffle": (
        [
            node("Concat", ["p", "r"], "c", axis=1),
            node("Reshape", ["c", "to5"], "c5"),
            node("Transpose", ["c5"], "c6", perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["c6", "to4"], "c4"),
            helper.make_node("Split", ["c4"], ["q", "rest"], axis=1),
        ],
        {"to5": np.array([1, 2, 16, 16, 16]), "to4": np.array([1, 32, 16, 16])},
    ),
    "pooling joined with its input": (
        [
            node("HardSwish", ["p"], "h"),
            node("MaxPool", ["h"], "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Concat", ["h", "m"], "c", axis=1),
            conv("c", "q", "w4"),
        ],
        {"w4": uneven(16, 32)},
    ),
    "numbers behind a function": (
        [
            conv("p", "u", "w4"),
            node("HardSwish", ["u"], "h"),
            node("Mul", ["h", "by"], "m"),
            node("Add", ["m", "more"]),
        ],
        {"w4": uneven(16, 16), "by": np.float32([0.05]), "more": np.float32([-0.01])},
    ),
    "gate": (
        [
            node("GlobalAveragePool", ["r"], "g"),
            node("Sigmoid", ["g"], "g1"),
            node("Mul", ["p", "g1"]),
        ],
        {},
    ),
}


def samples(count: int = 8, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0.3, 1, shape).astype(np.float32)} for _ in range(count)]


def load(proto: onnx.ModelProto) -> Model:
    from mnnq.convert import convert_onnx

    return convert_onnx(proto)


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(float(np.square(wanted - got).sum()), 1e-30)))


def run(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return mnnq.InferenceSession(to_bytes(model)).run(None, feeds)[0]


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("name", MIDDLES)
def test_networks_stay_close_to_float(name: str, symmetric: bool) -> None:
    model = load(network(*MIDDLES[name]))
    result = mnnq.quantize(model, samples(), symmetric=symmetric)
    feeds = samples(1, seed=9)[0]
    wanted = 24 if symmetric or name == "numbers behind a function" else 26
    assert sqnr(run(model, feeds), run(result.model, feeds)) > wanted
    convolutions = [layer for layer in result.report.layers if layer.op_type == "Convolution"]
    assert len(convolutions) >= 2
    if name != "magnitude":
        assert all(layer.integer for layer in convolutions), result.report.left_float


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("name", MIDDLES)
def test_the_real_runtime_computes_the_same(name: str, tmp_path: Path, mnn_runtime: MnnRuntime) -> None:
    result = mnnq.quantize(load(network(*MIDDLES[name])), samples())
    path = tmp_path / "model.mnn"
    result.model.save(path)
    feeds = samples(1, seed=9)[0]
    ours = mnnq.InferenceSession(path).run(None, feeds)[0]
    theirs = mnn_runtime.run(path, feeds, ["result"])["result"].reshape(ours.shape)
    codes = next(t for t in result.report.tensors if t.name == "y" or t.name.startswith("y_"))
    step = codes.scale
    assert np.abs(ours - theirs).max() <= ONE_CODE * step
    assert np.mean(np.abs(ours - theirs) > step / 2) < 0.01


def test_methods_and_their_order() -> None:
    model = load(network(*MIDDLES["sum and relu"]))
    found = calibrate(model, samples())
    feeds = samples(1, seed=9)[0]
    wanted = run(model, feeds)
    quality = {}
    for method in ("mse", "minmax", "percentile", "kl", "admm", "ema"):
        config = OfflineConfig(feature_method=method, force=True)  # type: ignore[arg-type]
        result = quantize_calibrated(model, found, samples(), config)
        quality[method] = sqnr(wanted, run(result.model, feeds))
    assert min(quality.values()) > 15, quality
    assert quality["mse"] > max(quality.values()) - 3, quality


@pytest.mark.parametrize("method", ["search", "max_abs", "admm"])
def test_weight_methods(method: str) -> None:
    model = load(network(*MIDDLES["sum"]))
    result = mnnq.quantize(model, samples(), weight_method=method)
    errors = [layer.weight_sqnr_db for layer in result.report.integer if layer.weight_sqnr_db is not None]
    assert len(errors) == 3
    assert min(errors) > 36
    if method == "search":
        plain = mnnq.quantize(model, samples(), weight_method="max_abs").report
        assert sum(errors) > sum(layer.weight_sqnr_db or 0 for layer in plain.integer)


def test_the_model_given_is_not_changed() -> None:
    model = load(network(*MIDDLES["sum"]))
    before = to_bytes(model)
    mnnq.quantize(model, samples())
    assert to_bytes(model) == before


def test_shards_give_the_result_of_one_run() -> None:
    model = load(network(*MIDDLES["sum"]))
    data = samples(40)
    alone = calibrate(model, data)
    with ProcessPoolExecutor(2) as executor:
        spread = calibrate(model, data, executor=executor)
    assert spread.samples == alone.samples == 40
    for name in {op.inputs[0] for op in model.ops if op.type == "Convolution"}:
        pairs = zip(*(found.statistics.channel_statistics(name) for found in (alone, spread)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    for name in alone.tensors:
        a, b = alone.statistics.summary(name), spread.statistics.summary(name)
        assert a["counts"].tolist() == b["counts"].tolist()
        assert (a["min"], a["max"], a["zeros"], a["width"]) == (b["min"], b["max"], b["zeros"], b["width"])
    config = OfflineConfig(feature_method="ema")  # type: ignore[arg-type]
    one, two = (quantize_calibrated(model, found, data, config) for found in (alone, spread))
    assert to_bytes(one.model) == to_bytes(two.model)


def test_a_dask_cluster_gives_the_result_of_one_run() -> None:
    distributed = pytest.importorskip("distributed")
    model, data = load(network(*MIDDLES["sum"])), samples(40)
    alone = calibrate(model, data)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        spread = calibrate(model, data, executor=client.get_executor())
    assert spread.to_bytes() == alone.to_bytes()


def test_skipped_operators_stay_float() -> None:
    model = load(network(*MIDDLES["sum"]))
    name = next(op.name for op in model.ops if op.outputs[0] == "p")
    result = mnnq.quantize(model, samples(), skip=(name,))
    layer = result.report.layer(name)
    assert not layer.integer
    assert layer.reason == "skipped as asked"
    op = next(op for op in result.model.ops if op.name == name)
    assert op.params.get("quanParameter") is None
    everything = mnnq.quantize(model, samples(), skip=("*",))
    assert not everything.report.integer
    assert everything.report.sqnr_db == pytest.approx(float("inf"))


def test_names_that_match_nothing_are_an_error() -> None:
    model = load(network(*MIDDLES["sum"]))
    with pytest.raises(ConfigError, match="'heads/\\*' matches no operator") as caught:
        mnnq.quantize(model, samples(), skip=("heads/*",))
    assert caught.value.key == "skip"


def test_fewer_bits_and_clamps_are_honoured() -> None:
    model = load(network(*MIDDLES["sum"]))
    config = {"force": True, "equalization": False}
    for options, weight, feature in (
        ({"bits": 5}, 15, 15),
        ({"weight_clamp": 100}, 100, 127),
        ({"feature_clamp": 60}, 127, 60),
    ):
        result = mnnq.quantize(model, samples(), **config, **options)
        for op in result.model.ops:
            if op.type == "Convolution" and op.params.get("quanParameter") is not None:
                codes = np.asarray(mnnq._native.decode_weights(op.params)["codes"])
                assert np.abs(codes).max() == weight, options
        assert {tensor.max for tensor in result.report.tensors} == {feature}


def test_a_bad_model_is_refused_with_advice_and_repaired() -> None:
    model = load(network(*MIDDLES["product"]))
    options: dict[str, Any] = {"bits": 2, "bias_correction": False}
    with pytest.raises(QuantizationError, match=r"worst layers: .* leave float: ") as caught:
        mnnq.quantize(model, samples(), min_sqnr_db=20.0, **options)
    assert "dB, wanted 20" in str(caught.value)
    forced = mnnq.quantize(model, samples(), min_sqnr_db=20.0, force=True, **options)
    assert forced.report.sqnr_db is not None
    assert forced.report.sqnr_db < 20
    fixed = mnnq.quantize(model, samples(), min_sqnr_db=20.0, fix=True, **options)
    assert fixed.report.fixed
    assert fixed.report.sqnr_db is not None
    assert fixed.report.sqnr_db >= 20


def test_report() -> None:
    model = load(network(*MIDDLES["sum"]))
    report = mnnq.quantize(model, samples()).report
    assert report.samples == 8
    assert report.checked == 8
    assert report.bytes_after < 0.35 * report.bytes_before
    assert [output.name for output in report.outputs] == ["result"]
    for layer in report.integer:
        if layer.op_type == "ConvertTensor":
            continue
        assert layer.cosine is not None
        assert 0.99 < layer.cosine <= 1 + 1e-9
        assert layer.overflow is not None
        assert 0 <= layer.overflow < 0.05
    known = [layer.sqnr_db for layer in report.integer if layer.sqnr_db is not None]
    assert report.worst(1)[0].sqnr_db == min(known)
    assert report.to_dict()["outputs"][0]["sqnr_db"] == report.sqnr_db


def test_bad_samples_are_named() -> None:
    model = load(network(*MIDDLES["sum"]))
    good = samples(3)
    with pytest.raises(QuantizationError, match="no calibration samples"):
        mnnq.quantize(model, [])
    for bad, text in (
        ({"x": np.zeros(SHAPE, np.float64)}, "sample 1: input 'x' is float64"),
        ({"x": np.zeros((1, 4, 16, 16), np.float32)}, "x"),
        ([1, 2], "sample 1 is list"),
    ):
        with pytest.raises(InputError, match=text):
            mnnq.quantize(model, [good[0], bad, good[1]])  # type: ignore[list-item]
    holes = good[1]["x"].copy()
    holes[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="sample 1: input 'x' holds NaN"):
        mnnq.quantize(model, [good[0], {"x": holes}])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"feature_method": "best"}, "feature_method"),
        ({"weight_method": "KL"}, "weight_method"),
        ({"feature_clamp": 200}, "feature_clamp"),
        ({"weight_clamp": 0}, "weight_clamp"),
        ({"bits": 9}, "bits"),
        ({"bits": True}, "bits"),
        ({"percentile": 101}, "percentile"),
        ({"skip": ("",)}, "skip"),
        ({"compat": True}, "compat"),
        ({"force": 1}, "force"),
        ({"threads": 0}, "threads"),
        ({"clamp": 1}, "clamp"),
    ],
)
def test_wrong_options(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mnnq.quantize(load(network(*MIDDLES["sum"])), samples(), **options)
    assert caught.value.key == key


def test_several_inputs_and_integer_inputs() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(20, 16)).astype(np.float32)
    weight = (rng.normal(size=(16, 24)) / 4).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Add", ["e", "extra"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    feeds = {"ids": np.arange(6)[None], "extra": np.zeros((1, 6, 16), np.float32)}
    model = load(builders.model(nodes, feeds, ["y"], {"table": table, "w": weight}))

    def sample() -> dict[str, np.ndarray]:
        return {
            "ids": rng.integers(0, 20, (1, 6)),
            "extra": rng.normal(size=(1, 6, 16)).astype(np.float32),
        }

    result = mnnq.quantize(model, [sample() for _ in range(8)])
    assert any(layer.op_type == "Convolution" for layer in result.report.integer)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 25


def test_uneven_channels_are_evened_out() -> None:
    rng = np.random.default_rng(3)
    first = (rng.normal(size=(32, 8, 1, 1)) / 3).astype(np.float32)
    first[3] *= 200
    second = (rng.normal(size=(12, 32, 1, 1)) / 6).astype(np.float32)
    second[:, 3] /= 100
    nodes = [
        conv("x", "a", "w1"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "c", "w2"),
        conv("c", "d", "w3"),
    ]
    third = (rng.normal(size=(4, 12, 1, 1)) / 4).astype(np.float32)
    proto = builders.model(
        nodes, {"x": np.zeros(SHAPE, np.float32)}, ["d"], {"w1": first, "w2": second, "w3": third}
    )
    model = load(proto)
    found = calibrate(model, samples())
    assert any("evened out" in note for note in found.notes)
    feeds = samples(1, seed=9)[0]
    wanted = run(model, feeds)
    assert sqnr(wanted, run(found.model, feeds)) > 100, "nothing changes in float"
    plain = mnnq.quantize(model, samples(), equalization=False, force=True).report.layers
    even = mnnq.quantize(model, samples()).report.layers
    noise = [
        next(layer.sqnr_db for layer in layers if layer.name.startswith("c")) for layers in (plain, even)
    ]
    assert noise[0] is not None
    assert noise[1] is not None
    assert noise[1] > noise[0] + 6


def test_channels_beside_a_float_function_get_all_codes() -> None:
    model = load(network(*MIDDLES["numbers behind a function"]))
    found = calibrate(model, samples())
    assert [op.type for op in found.model.ops].count("Scale") == 2
    feeds = samples(1, seed=9)[0]
    wanted = run(model, feeds)
    assert sqnr(wanted, run(found.model, feeds)) > 100, "nothing changes in float"
    tensors = mnnq.quantize(model, samples()).report.tensors
    even = next(tensor for tensor in tensors if tensor.name == "u__even")
    assert 0.9 < even.high < 1.5
    assert -1.1 < (even.min - even.zero) * even.scale < -0.9


def test_codes_are_chosen_for_the_function_behind() -> None:
    low = {}
    for name in ("hard swish", "sum"):
        proto = network(*MIDDLES[name])
        for weight in proto.graph.initializer:
            if weight.name == "w1":
                weight.CopyFrom(onnx.numpy_helper.from_array(8 * onnx.numpy_helper.to_array(weight), "w1"))
        tensors = mnnq.quantize(load(proto), samples(), equalization=False).report.tensors
        p = next(tensor for tensor in tensors if tensor.name == "p")
        assert p.low < -20
        low[name] = (p.min - p.zero) * p.scale
    assert -4 < low["hard swish"] <= -2.5
    assert low["sum"] < -15


def test_a_weight_of_clipping_widens_the_range_of_its_tensor_alone() -> None:
    from mnnq.quantization.offline.build import Builder
    from mnnq.quantization.offline.measured_ranges import rounded

    model = load(network(*MIDDLES["sum"]))
    rng = np.random.default_rng(4)
    data = [{"x": rng.standard_t(3, SHAPE).clip(-15, 15).astype(np.float32)} for _ in range(8)]
    config = OfflineConfig(equalization=False)
    builder = Builder(calibrate(model, data, config), data, config)
    usual = builder.build(set()).codes
    builder.clipping = {"r": 1e6}
    wide = builder.build(set()).codes
    assert wide["r"]["scale"] > usual["r"]["scale"]
    assert all(wide[name] == usual[name] for name in usual if name != "r")
    wanted = run(model, data[0])
    coarse = run(rounded(model, ["r"], {**wide["r"], "scale": 20 * wide["r"]["scale"]}), data[0])
    assert sqnr(wanted, run(rounded(model, ["r"], wide["r"]), data[0])) > sqnr(wanted, coarse) + 20


def test_work_on_codes_is_reported() -> None:
    model = load(network(*MIDDLES["sum"]))
    assert mnnq.quantize(model, samples()).report.integer_share == 1.0
    report = mnnq.quantize(model, samples(), skip=("p",)).report
    parts = [16 * 8 * 9, 16 * 8, 12 * 16]
    assert report.integer_share == pytest.approx(sum(parts[1:]) / sum(parts))


def test_memory_does_not_grow_with_the_samples() -> None:
    model = load(network(*MIDDLES["sum"]))
    sizes = [len(calibrate(model, samples(count)).to_bytes()) for count in (4, 64)]
    assert sizes[1] < 2.5 * sizes[0]


def amplified() -> onnx.ModelProto:
    """A difference of two channels that are almost the same, behind a convolution, and plain layers after it."""
    rng = np.random.default_rng(5)
    first = rng.normal(0, 0.3, (8, 8, 3, 3)).astype(np.float32)
    first[1::2] = first[::2] + rng.normal(0, 0.004, first[::2].shape).astype(np.float32)
    second = np.zeros((8, 8, 1, 1), np.float32)
    for row in range(8):
        pair = row // 2 * 2
        second[row, pair], second[row, pair + 1] = 40.0, -40.0
    constants = {"w0": first, "w1": second}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["t0"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["t0", "w1"], ["t1"]),
    ]
    for index in range(2, 18):
        constants[f"w{index}"] = rng.normal(0, 0.35, (8, 8, 1, 1)).astype(np.float32)
        nodes.append(
            helper.make_node("Conv", [f"t{index - 1}", f"w{index}"], [f"t{index}"], name=f"conv{index}")
        )
    nodes[-1].output[0] = "result"
    return builders.model(nodes, {"x": np.zeros(SHAPE, np.float32)}, ["result"], constants)


def test_layers_that_cause_most_of_the_noise_stay_float() -> None:
    """The codes between the first two layers are what hurts: both must stay float for them to go."""
    model = load(amplified())
    plain = mnnq.quantize(model, samples(), float_share=0.0, force=True).report
    assert not plain.fixed
    chosen = mnnq.quantize(model, samples(), float_share=0.15, force=True).report
    assert {"t0", "t1"} <= {layer.name for layer in chosen.left_float} | set(chosen.fixed)
    assert len(chosen.fixed) == 2
    assert plain.sqnr_db is not None
    assert chosen.sqnr_db is not None
    assert chosen.sqnr_db > plain.sqnr_db + 3
    # The message of a refusal names the layers that repair it.
    wanted = (plain.sqnr_db + chosen.sqnr_db) / 2
    with pytest.raises(QuantizationError) as caught:
        mnnq.quantize(model, samples(), float_share=0.0, min_sqnr_db=wanted)
    named = caught.value.message.split("leave float: ")[1].split(" (or")[0].split(", ")
    repaired = mnnq.quantize(model, samples(), float_share=0.0, min_sqnr_db=wanted, skip=named)
    assert repaired.report.sqnr_db is not None
    assert repaired.report.sqnr_db >= wanted


def test_the_sequential_stage_takes_noise_away_on_other_samples() -> None:
    """Correlated inputs, which is where compensated rounding gains; and codes of few bits, where it shows."""
    rng = np.random.default_rng(8)
    mixing = rng.normal(0, 1, (8, 3)).astype(np.float32)

    def correlated(count: int) -> list[dict[str, np.ndarray]]:
        sources = rng.normal(0, 1, (count, 3, *SHAPE[2:])).astype(np.float32)
        return [{"x": np.maximum(np.einsum("cs,shw->chw", mixing, one), 0)[None]} for one in sources]

    constants = {f"w{i}": rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32) for i in range(3)}
    nodes = []
    for i in range(3):
        nodes.append(helper.make_node("Conv", [f"r{i}" if i else "x", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i + 1}" if i < 2 else "result"]))
    model = load(builders.model(nodes, {"x": np.zeros(SHAPE, np.float32)}, ["result"], constants))
    calib, unseen = correlated(24), correlated(8)
    found = {}
    for sequential in (False, True):
        options: dict[str, Any] = {"weight_method": "search", "float_share": 0.0, "force": True}
        result = mnnq.quantize(model, calib, sequential=sequential, **options)
        assert result.report.sequential is sequential
        found[sequential] = mnnq.compare(model, result.model, unseen).outputs[0].sqnr_db
    assert found[True] > found[False]


def test_the_sequential_stage_is_not_tried_where_it_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = load(network(*MIDDLES["sum"])), samples(30)
    assert not mnnq.quantize(model, data).report.notes
    monkeypatch.setattr("mnnq.quantization.offline.job.MOST_WORK", 1.0)
    result = mnnq.quantize(model, data)
    assert not result.report.sequential
    assert any("sequential=True asks for it" in note for note in result.report.notes)
    assert "sequential" not in result.report.seconds
    assert mnnq.quantize(model, data, sequential=True).report.sequential


def test_channel_means_come_from_the_first_samples() -> None:
    model, data = load(network(*MIDDLES["sum"])), samples(40)
    found = calibrate(model, data)
    name = next(op.inputs[0] for op in found.model.ops if op.outputs[0] == "p")
    means = found.statistics.channel_statistics(name)[0]
    wanted = np.concatenate([sample["x"] for sample in data[:24]]).mean(axis=(0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(means, wanted, atol=1e-6)


def test_the_sequential_stage_refuses_what_it_cannot_do() -> None:
    refused: list[dict[str, Any]] = [{"weight_clamp": 100}, {"compat": True, "feature_method": "kl"}]
    for options in refused:
        with pytest.raises(ConfigError, match="sequential"):
            OfflineConfig(sequential=True, **options)
