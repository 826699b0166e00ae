"""Weights chosen on data: error compensation, the choice per layer, resuming, executors, refusals."""

from __future__ import annotations

import pickle
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq import _native
from mnnq.cli.main import run
from mnnq.data import RandomDataset, input_specs
from mnnq.errors import ConfigError, QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.quantization.calibrated import decode
from mnnq.quantization.stored import float_weights
from mnnq.writer.to_mnn import to_bytes

Samples = list[dict[str, np.ndarray]]

VWW = Path(__file__).parents[3] / "shared" / "data" / "models" / "vww_mobilenetv1_0.25_96.onnx"


def _net(seed: int = 3) -> onnx.ModelProto:
    """A small network with correlated inputs: convolutions, depthwise, a residual, a matrix product."""
    rng = np.random.default_rng(seed)

    def value(name: str, *shape: int) -> TensorProto:
        fan = int(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=32),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"]),
        helper.make_node("Add", ["c3", "r1"], ["s"]),
        helper.make_node("Relu", ["s"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w4"], ["y"]),
    ]
    values = [value("w1", 32, 3, 3, 3), value("b1", 32), value("w2", 32, 1, 3, 3)]
    values += [value("w3", 32, 32, 1, 1), value("w4", 32, 10)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def net(path: Path) -> Model:
    return mnnq.load(path)


def _samples(count: int, seed: int) -> Samples:
    """Smooth images, as real ones are."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 1, 3, 3, 3)).astype(np.float32)
    return [{"x": np.ascontiguousarray(image.repeat(4, 2).repeat(4, 3))} for image in coarse]


@pytest.fixture
def samples() -> Samples:
    return _samples(16, 8)


@pytest.mark.parametrize("method", ["gptq", "auto"])
@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"fp16_scales": True}])
def test_compensation_beats_the_search_on_other_data(
    net: Model, samples: Samples, method: str, block: int | None, options: dict[str, bool]
) -> None:
    fresh = _samples(16, 9)
    searched = mnnq.quantize_weights(net, bits=3, block=block, method="search", calib=samples, **options)
    fitted = mnnq.quantize_weights(net, bits=3, block=block, method=method, calib=samples, **options)
    assert output_sqnr(fitted, net, fresh) > output_sqnr(searched, net, fresh) + 1
    assert len(to_bytes(fitted)) == len(to_bytes(searched))
    assert fitted.report.samples == 16
    assert fitted.report.output_sqnr_db == pytest.approx(output_sqnr(fitted, net, samples))
    named = [layer for layer in fitted.report.layers if layer.method is not None and "gptq" in layer.method]
    assert named
    for layer in named:
        assert layer.output_error_before is not None
        assert layer.output_error_after is not None
        assert layer.bias_error_after is not None
        assert layer.bias_error_after < 1e-5


def test_the_report_holds_what_the_file_decodes_to(
    net: Model, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnnq.quantization.input_scaling.UNEVEN", np.inf)  # weights keep their units
    fitted = mnnq.quantize_weights(net, bits=4, block=16, method="auto", calib=samples)
    for layer in fitted.report.layers:
        op = next(op for op in fitted.ops if op.name == layer.name)
        exact = next(op for op in net.ops if op.name == layer.name)
        weight = np.asarray(exact.params["weight"], np.float64).reshape(-1)
        error = weight - _native.decode_weights(op.params)["weight"]
        assert layer.relative_rms == pytest.approx(np.sqrt((error**2).sum() / (weight**2).sum()), rel=1e-4)


@pytest.mark.parametrize("method", ["rtn", "search", "auto"])
def test_threads_and_executors_give_the_same_file(net: Model, samples: Samples, method: str) -> None:
    want = to_bytes(mnnq.quantize_weights(net, bits=3, method=method, calib=samples, threads=1))
    assert to_bytes(mnnq.quantize_weights(net, bits=3, method=method, calib=samples, threads=3)) == want
    with ThreadPoolExecutor(2) as pool:
        got = mnnq.quantize_weights(net, bits=3, method=method, calib=samples, executor=pool)
    assert to_bytes(got) == want


def test_a_pool_of_processes_gives_the_same_file(net: Model, samples: Samples) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for calib, method in ((None, "search"), (samples, "gptq")):
            want = mnnq.quantize_weights(net, bits=3, method=method, calib=calib)
            got = mnnq.quantize_weights(net, bits=3, method=method, calib=calib, executor=pool)
            assert to_bytes(got) == to_bytes(want)


def test_a_dask_cluster_gives_the_same_file(net: Model, samples: Samples) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        want = mnnq.quantize_weights(net, bits=3, method="gptq", calib=samples)
        got = mnnq.quantize_weights(net, bits=3, method="gptq", calib=samples, executor=client.get_executor())
    assert to_bytes(got) == to_bytes(want)


class _Interrupt(Exception):
    pass


def test_an_interrupted_run_continues(
    net: Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"bits": 3, "method": "auto", "calib": samples}
    want = to_bytes(mnnq.quantize_weights(net, **options))
    state = tmp_path / "state"

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise _Interrupt

    with pytest.raises(_Interrupt):
        mnnq.quantize_weights(net, state=state, progress=stop, **options)
    kept = sorted(state.iterdir())
    assert len(kept) == 2
    times = [file.stat().st_mtime_ns for file in kept]
    assert to_bytes(mnnq.quantize_weights(net, state=state, **options)) == want
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert len(list(state.iterdir())) == 4

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mnnq.quantization.calibrated_run.choose", never)
    assert to_bytes(mnnq.quantize_weights(net, state=state, **options)) == want
    with pytest.raises(AssertionError):
        mnnq.quantize_weights(net, state=state, **{**options, "bits": 4})
    with pytest.raises(AssertionError):
        mnnq.quantize_weights(net, state=state, **{**options, "calib": samples[1:]})


def test_damaged_state_is_made_again(net: Model, samples: Samples, tmp_path: Path) -> None:
    options = {"bits": 3, "method": "gptq", "calib": samples, "state": tmp_path / "state"}
    want = to_bytes(mnnq.quantize_weights(net, **options))
    for file in (tmp_path / "state").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert to_bytes(mnnq.quantize_weights(net, **options)) == want


def test_data_are_needed_and_real(net: Model, samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs calibration data"):
        mnnq.quantize_weights(net, bits=4, method="gptq")
    with pytest.raises(ConfigError, match="needs calibration data"):
        mnnq.quantize_weights(net, bits=4, overrides={"c1": {"method": "gptq"}})
    with pytest.raises(ConfigError, match="goes with calibration data"):
        mnnq.quantize_weights(net, bits=4, state=tmp_path)
    with pytest.raises(ConfigError, match="made up"):
        mnnq.quantize_weights(net, bits=4, method="auto", calib=RandomDataset(input_specs(net), 4))
    bad = [{"x": np.full((1, 3, 12, 12), np.nan, np.float32)}]
    with pytest.raises(QuantizationError, match="NaN"):
        mnnq.quantize_weights(net, bits=4, method="gptq", calib=bad)


def test_auto_without_data_is_the_search_with_gain_correction(net: Model) -> None:
    for bits, gain in ((4, True), (8, False)):
        auto = mnnq.quantize_weights(net, bits=bits, method="auto", generated_inputs=False)
        search = mnnq.quantize_weights(net, bits=bits, method="search", gain_correction=gain, sparse=True)
        layers = {layer.name: layer for layer in auto.report.layers}
        pairs = [
            (a, s, layers[a.name]) for a, s in zip(auto.ops, search.ops, strict=True) if a.name in layers
        ]
        assert {layer.method for _, _, layer in pairs} == {"search", "search, by kernel"}
        for a, s, layer in pairs:
            same = bool(np.array_equal(float_weights(a), float_weights(s)))
            assert same == (layer.method == "search") == (layer.kernel == (1, 1))


@pytest.mark.parametrize("with_data", [False, True], ids=["free", "data"])
def test_auto_leaves_dead_channels_out_of_the_file(with_data: bool) -> None:
    net = mnnq.load(_saved_dead())
    rng = np.random.default_rng(2)
    calib = [{"x": rng.random((1, 256)).astype(np.float32)} for _ in range(16)] if with_data else None
    dense = mnnq.quantize_weights(net, bits=8, method="search")
    auto = mnnq.quantize_weights(net, bits=8, method="auto", calib=calib)
    (layer,) = [layer for layer in auto.report.layers if layer.shape == (256, 256)]
    assert layer.bytes_after < 0.4 * dense.report.layer(layer.name).bytes_after
    op = next(op for op in auto.ops if op.name == layer.name)
    weight = _native.decode_weights(op.params)["weight"].reshape(256, 256)
    assert not weight[64:].any()
    x = {"x": np.random.default_rng(1).random((1, 256)).astype(np.float32)}
    outputs = [mnnq.InferenceSession(to_bytes(model)).run(None, x)[0] for model in (net, auto)]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.02 * np.abs(outputs[0]).max())


@pytest.mark.skipif(not VWW.exists(), reason="the trained model is not there")
def test_a_trained_model_with_dead_channels_shrinks() -> None:
    net = mnnq.load(VWW)
    rng = np.random.default_rng(0)
    calib = [{"input": rng.random((1, 3, 96, 96)).astype(np.float32)} for _ in range(4)]
    dense = len(to_bytes(mnnq.quantize_weights(net, bits=8, method="search")))
    for data in (None, calib):
        assert len(to_bytes(mnnq.quantize_weights(net, bits=8, method="auto", calib=data))) < 0.4 * dense


def _saved_dead() -> Path:
    """A matrix whose last three quarters of output channels have decayed."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 256)).astype(np.float32)
    weight[:, 64:] *= np.logspace(-5, -40, 192).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dead",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = Path(tempfile.mkdtemp()) / "dead.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def test_without_bias_correction_biases_stay(net: Model, samples: Samples) -> None:
    small = mnnq.quantize_weights(net, bits=4, calib=samples, bias_correction=False)
    assert to_bytes(small) == to_bytes(mnnq.quantize_weights(net, bits=4))


def test_overrides_hold_with_data(net: Model, samples: Samples) -> None:
    small = mnnq.quantize_weights(
        net,
        bits=3,
        method="gptq",
        calib=samples,
        overrides={"c1": {"bits": 0}, "c3": {"method": "rtn", "bits": 8}},
    )
    layers = {layer.name: layer for layer in small.report.layers}
    assert layers["c1"].bits == 32
    assert (layers["c3"].bits, layers["c3"].method) == (8, "rtn")
    assert (layers["c2"].method or "").startswith("gptq")


def test_one_command_does_it(
    path: Path, samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "calib"
    folder.mkdir()
    for index, sample in enumerate(samples):
        np.save(folder / f"{index:02}.npy", sample["x"])
    output = tmp_path / "m.mnn"
    arguments = [
        "quant",
        str(path),
        "-o",
        str(output),
        "--bits",
        "4",
        "--calib",
        str(folder),
        "--method",
        "auto",
    ]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "gptq" in printed
    assert "outputs on 16 samples" in printed
    want = mnnq.quantize_weights(mnnq.load(path), bits=4, method="auto", calib=samples)
    want.save(tmp_path / "want.mnn")
    assert output.read_bytes() == (tmp_path / "want.mnn").read_bytes()


@pytest.fixture
def statistics(samples: Samples) -> _native.InputStatistics:
    moments = _native.InputMoments(3, 1, kernel=(3, 3))
    for sample in samples:
        moments.add(sample["x"], None, (1, 1), (12, 12))
    return moments.finish()


def test_statistics_survive_pickling(statistics: _native.InputStatistics) -> None:
    copy = pickle.loads(pickle.dumps(statistics))
    np.testing.assert_array_equal(copy.covariance(), statistics.covariance())
    np.testing.assert_array_equal(copy.means()[0], statistics.means()[0])
    assert copy.count == statistics.count == 16 * 144


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "fill",
    [0.0, 1e-42, 0.25, -3e37],
    ids=["dead", "denormal", "constant", "huge"],
)
def test_any_weights_are_safe(statistics: _native.InputStatistics, fill: float, symmetric: bool) -> None:
    weight = np.random.default_rng(2).standard_normal((6, 27)).astype(np.float32)
    weight[1] = fill
    weight[2, ::2] = fill
    result = _native.compensate_weights(weight, statistics, bits=4, symmetric=symmetric)
    decoded = decode(result["codes"], result["scale"], result["min"], 4)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded[1] - weight[1]).max() <= max(0.1 * abs(fill), 1e-35)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_inputs_of_any_size_are_safe(scale: float) -> None:
    rng = np.random.default_rng(4)
    moments = _native.InputMoments(8, 1)
    x = rng.standard_normal((50, 8, 1, 1)).astype(np.float32) * np.float32(scale)
    x[:, 3] = 0
    moments.add(x, None, (0, 0), (1, 1))
    weight = rng.standard_normal((5, 8)).astype(np.float32)
    statistics = moments.finish()
    result = _native.compensate_weights(weight, statistics, bits=4, symmetric=False)
    decoded = decode(result["codes"], result["scale"], result["min"], 4)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded - weight).max() < 1.5


def test_inputs_that_never_vary_leave_the_search(statistics: _native.InputStatistics) -> None:
    moments = _native.InputMoments(4, 1)
    moments.add(np.ones((9, 4, 1, 1), np.float32), None, (0, 0), (1, 1))
    weight = np.random.default_rng(4).standard_normal((5, 4)).astype(np.float32)
    result = _native.compensate_weights(weight, moments.finish(), bits=3, symmetric=False, block=4)
    search = _native.quantize_codes(weight, bits=3, symmetric=False, block=4, method="search")
    assert result["stats"]["squared_error"] <= search["stats"]["squared_error"] * 1.001
