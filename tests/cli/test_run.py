"""``mnnq run`` and ``mnnq bench``: inputs from files, what is printed and written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import mnnq
from mnnq import _native
from mnnq.cli.main import run
from mnnq.data.preprocess import ImageProcess, Resize
from mnnq.runtime import InferenceSession, benchmark
from tests import builders, mnn_models

RNG = np.random.default_rng(5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with the input x, 1x16x8x8."""
    path = tmp_path / "chain.mnn"
    mnn_models.chain(channels=16, hidden=8).save(path)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """y = a + b with a free batch axis, z = a - b."""
    a = np.zeros((2, 3), np.float32)
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Sub", ["a", "b"], ["out/z"])]
    shapes = {"a": ["n", 3], "b": ["n", 3]}
    path = tmp_path / "two.onnx"
    onnx.save(builders.model(nodes, {"a": a, "b": a}, ["y", "out/z"], shapes=shapes), path)
    return path


def image_model(path: Path, shape: list[Any], dtype: type = np.float32) -> Path:
    """y = x as float."""
    node = helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    x = np.zeros([n if isinstance(n, int) else 1 for n in shape], dtype)
    onnx.save(builders.model([node], {"x": x}, ["y"], shapes={"x": shape}), path)
    return path


def test_run_from_files_of_all_kinds_gives_the_session_s_outputs(model: Path, tmp_path: Path) -> None:
    x = RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "named.npz", x=x)
    np.savez(tmp_path / "other.npz", something=x)
    (want,) = InferenceSession(model).run(None, {"x": x})
    output = tmp_path / "out.npz"
    for given in ("x=x.npy", "x.npy", "x=named.npz", "named.npz", "x=other.npz", "other.npz"):
        name, equals, file = given.rpartition("=")
        assert run(["run", str(model), "-i", f"{name}{equals}{tmp_path / file}", "-o", str(output)]) == 0
        with np.load(output) as arrays:
            assert arrays.files == ["y"]
            np.testing.assert_array_equal(arrays["y"], want)


def test_run_of_an_onnx_model_with_two_inputs(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = RNG.standard_normal((2, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "ab.npz", a=a, b=b)
    output = tmp_path / "out.npz"
    assert run(["run", str(two), "--input", str(tmp_path / "ab.npz"), "-o", str(output), "--json"]) == 0
    with np.load(output) as arrays:
        np.testing.assert_array_equal(arrays["y"], a + b)
        np.testing.assert_array_equal(arrays["out/z"], a - b)
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(output)
    first, second = report["outputs"]
    assert (first["name"], first["dtype"], first["shape"], first["not_finite"]) == ("y", "float32", [5, 3], 0)
    assert second["min"] == pytest.approx((a - b).min())
    assert second["max"] == pytest.approx((a - b).max())
    assert second["mean"] == pytest.approx((a - b).mean(), abs=1e-6)


def test_random_inputs_follow_seed_and_shape(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        command = ["run", str(two), "--random", seed, "--shape", "a=4x3", "--shape", "b=4,3", "--json"]
        assert run(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert json.loads(texts[0])["outputs"][0]["shape"] == [4, 3]
    assert run(["run", str(two), "--random", "0"]) == 0
    assert "1x3" in capsys.readouterr().out


def test_random_fills_the_inputs_not_given(two: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((1, 3), 1e6, np.float32))
    output = tmp_path / "out.npz"
    assert run(["run", str(two), "-i", f"a={tmp_path / 'a.npy'}", "--random", "3", "-o", str(output)]) == 0
    with np.load(output) as arrays:
        assert np.all(np.abs(arrays["y"] - 1e6) < 100)


def test_top_lists_the_largest_values_of_each_row(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = np.float32([[1, 5, 3], [9, np.nan, 8]])
    np.savez(tmp_path / "in.npz", a=a, b=np.zeros_like(a))
    command = ["run", str(two), "-i", str(tmp_path / "in.npz"), "--top", "2"]
    assert run(command) == 2
    assert 'input "a" holds NaN, first at element 4' in capsys.readouterr().err
    command.append("--allow-nan")
    assert run([*command, "--json"]) == 0
    top = json.loads(capsys.readouterr().out)["outputs"][0]["top"]
    assert [[(e["index"], e["value"]) for e in row] for row in top] == [[(1, 5), (2, 3)], [(0, 9), (2, 8)]]
    assert run(command) == 0
    text = capsys.readouterr().out
    assert "y: largest values" in text
    assert "  1      0      9\n" in text
    assert text.split("\n")[2].split()[-1] == "1"  # one value is not finite


def test_images_become_inputs(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / "p.png")
    output = tmp_path / "out.npz"

    def outcome(shape: list[Any], *options: str, dtype: type = np.float32) -> np.ndarray:
        path = image_model(tmp_path / "image.onnx", shape, dtype)
        assert run(["run", str(path), "-i", str(tmp_path / "p.png"), "-o", str(output), *options]) == 0
        with np.load(output) as arrays:
            return np.asarray(arrays["y"])

    plain = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    np.testing.assert_array_equal(outcome([1, 3, 6, 4]), plain)
    np.testing.assert_array_equal(outcome([1, 3, "h", "w"], "--bgr"), plain[:, ::-1])
    np.testing.assert_array_equal(outcome([1, 6, 4, 3]), pixels[None].astype(np.float32))
    np.testing.assert_array_equal(outcome([1, 3, 6, 4], dtype=np.uint8), plain)
    mean = np.float32([1, 2, 3]).reshape(1, 3, 1, 1)
    scaled = outcome([1, 3, 6, 4], "--mean", "1,2,3", "--scale", "0.5")
    np.testing.assert_array_equal(scaled, (plain - mean) * np.float32(0.5))
    stretched = outcome([1, 3, 12, 8], "--preset", "unit", "--resize", "stretch")
    process = ImageProcess(normal=(1 / 255,), resize=Resize.STRETCH)
    wanted = process.apply(image.fromarray(pixels), (12, 8)).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(stretched, wanted)
    assert outcome([1, 3, 5, 5], "--preset", "imagenet").shape == (1, 3, 5, 5)
    assert outcome([1, 3, "h", "w"], "--size", "3x8").shape == (1, 3, 3, 8)
    assert outcome([1, 3, 5, 7]).shape == (1, 3, 5, 7)
    assert outcome([1, 1, 6, 4]).shape == (1, 1, 6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "input 'x' (float32 1x16x8x8) is not given; use --input x=FILE or --random 0"),
        (["-i", "x=missing.npy"], "missing.npy: No such file"),
        (["-i", "z={x}"], "no input is named 'z'; inputs: x"),
        (["-i", "x={x}", "-i", "x={x}"], "input 'x' is given twice"),
        (["-i", "x={bad}"], "not a file of arrays for input 'x'"),
        (["-i", "x={short}"], "[1, 16, 8, 8]"),
        (["-i", "x={double}"], "input 'x' is float64, wanted float32"),
        (["-i", "x={several}"], "no array for input 'x'; the file has p, q"),
        (["-i", "{several}"], "no input is named 'p'"),
        (["-i", "x={text}"], "no JPEG, PNG, BMP or WebP"),
        (["--shape", "x=1x16x8x8"], "--shape is for random inputs"),
        (["--random", "0", "--shape", "q=1"], "no input is named 'q'"),
        (["--random", "0", "--shape", "x=1x3x8x8"], "input"),
        (["--random", "0", "-o", "{model}"], "would replace the model"),
        (["--random", "0", "-o", "no/such/o.npz"], "does not exist"),
        (["--random", "0", "--size", "3"], "HEIGHTxWIDTH"),
        (["--random", "0", "--mean", "a"], "no number"),
        (["--random", "0", "--threads", "0"], "--threads"),
        (["--random", "0", "--top", "0"], "--top"),
    ],
)
def test_wrong_inputs_are_one_line_that_names_them(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.zeros((1, 16, 8, 8), np.float32)
    files = {name: tmp_path / f"{name}.npy" for name in ("x", "bad", "short", "double")}
    np.save(files["x"], x)
    files["bad"].write_bytes(b"nothing")
    np.save(files["short"], x[:, :3])
    np.save(files["double"], x.astype(np.float64))
    files |= {"several": tmp_path / "several.npz", "text": tmp_path / "text.txt", "model": model}
    np.savez(files["several"], p=x, q=x)
    files["text"].write_text("text")
    before = model.read_bytes()
    assert run(["run", str(model), *(option.format(**files) for option in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mnnq: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert model.read_bytes() == before


@pytest.mark.parametrize("command", ["run", "bench"])
@pytest.mark.parametrize("name", ["missing.mnn", "broken.mnn", "broken.onnx", "."])
def test_a_model_that_cannot_be_read_is_named(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for broken in ("broken.mnn", "broken.onnx"):
        (tmp_path / broken).write_bytes(b"\x20\0\0\0 no model")
    assert run([command, str(tmp_path / name), "--random", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mnnq: error: {tmp_path / name}: ")
    assert "internal error" not in error


def test_bench_measures_what_ran(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--time", "0.05", "--warmup", "1", "--threads", "1", "--precision", "low", "--memory", "low"]
    assert run(["bench", str(model), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["threads"], report["precision"], report["memory"]) == (1, "low", "low")
    assert report["inputs"] == {"x": [1, 16, 8, 8]}
    assert report["runs"] >= 1
    assert 0 < report["min_ms"] <= report["median_ms"] <= report["p90_ms"]
    assert report["load_ms"] > 0
    assert {"stem", "mid", "head__matmul_converted"} <= {step["node"] for step in report["steps"]}
    by_type = {entry["op_type"]: entry for entry in report["by_type"]}
    assert by_type["Convolution"]["steps"] == 2
    total = sum(entry["ms"] for entry in report["by_type"])
    assert total == pytest.approx(sum(step["ms"] for step in report["steps"]))
    assert run(["bench", str(model), *options, "--nodes", "1"]) == 0
    text = capsys.readouterr().out
    assert "latency  median" in text
    assert "1 threads, precision low, memory low" in text
    assert text.rstrip().count("\n") == text.count("\n") - 1


def test_modes_of_the_session_reach_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "w8.mnn"
    mnnq.quantize_weights(mnnq.load(model), bits=8).save(small)
    modes = ["--memory", "low", "--dynamic", "always", "--int8", "compat"]
    assert run(["bench", str(small), "--time", "0.01", *modes, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["memory"], report["dynamic"], report["int8"]) == ("low", "always", "compat")
    assert report["isa"] == _native.cpu_kernels()["level"]
    kernels = {step["node"]: step["kernel"] for step in report["steps"]}
    assert "int8" in kernels["mid"]
    for command in ("run", "bench"):
        assert run([command, str(small), "--random", "0", "--dynamic", "compat"]) == 2
        assert "--dynamic" in capsys.readouterr().err
        assert run([command, str(small), "--random", "0", "--int8", "fast"]) == 2
        assert "'fast'" in capsys.readouterr().err
    values = []
    for mode in ("always", "compat"):
        file = tmp_path / f"{mode}.npz"
        assert (
            run(["run", str(small), "--random", "0", "--memory", "low", "--dynamic", mode, "-o", str(file)])
            == 0
        )
        with np.load(file) as arrays:
            values.append(arrays[arrays.files[0]])
    assert not np.array_equal(*values)


def test_bench_takes_shapes_and_refuses_what_run_refuses(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = ["--shape", "a=7x3", "--shape", "b=7x3"]
    assert run(["bench", str(two), "--time", "0.01", *shapes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == {"a": [7, 3], "b": [7, 3]}
    assert run(["bench", str(two), "--shape", "a=7x4", "--time", "0.01"]) == 2
    assert "input" in capsys.readouterr().err


def test_benchmark_counts_only_its_own_runs(model: Path) -> None:
    session = InferenceSession(model, {"threads": 1})
    x = np.zeros((1, 16, 8, 8), np.float32)
    for _ in range(5):
        session.run(None, {"x": x})
    result = benchmark(session, {"x": x}, seconds=60, warmup=2, max_runs=4)
    assert result.runs == len(result.latencies) == 4
    assert {step.runs for step in result.steps} == {4}
    assert result.percentile(0) == min(result.latencies) <= result.median <= max(result.latencies)
