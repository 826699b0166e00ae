"""The commands on real files: what they write, print and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import mnnq
from mnnq.cli.main import run
from mnnq.convert import convert_onnx
from mnnq.files import write_atomically
from mnnq.ir.model import Model
from mnnq.quantization.stored import Storage, describe
from mnnq.verify import FLOAT_THRESHOLD, WORST_THRESHOLD, default_threshold
from tests import builders, mnn_models
from tests.ops.harness import needs_mnn


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    return path


def onnx_linear(path: Path, *, bits_of: int = 0) -> Path:
    """x -> MatMul -> y, also with NaN weights if `bits_of` is 1."""
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    if bits_of:
        weight[3, 4] = np.nan
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def onnx_lookup(table: np.ndarray) -> Model:
    """Rows of a table, picked by an input."""
    index = np.zeros((1, 5), np.int64)
    return convert_onnx(
        builders.model([helper.make_node("Gather", ["e", "i"], ["y"])], {"i": index}, ["y"], {"e": table})
    )


def quiet_folder(folder: Path, *expected: str) -> None:
    """Fail if anything but the named files lies in the folder."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(expected)


def stored_bits(path: Path) -> list[int]:
    return [describe(op).bits for _, op in mnnq.load(path).weight_ops()]


# -- quant


def test_quant_defaults_to_8_bits_beside_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quant", str(model)]) == 0
    assert stored_bits(model.with_name("chain-w8.mnn")) == [8, 8, 8]
    captured = capsys.readouterr()
    assert "3 of 3 quantized" in captured.out
    assert captured.err == ""


def test_quant_reports_as_json_and_nothing_else(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.mnn")
    assert run(["quant", str(model), "-o", str(output), "--bits", "4", "--block", "64", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == output.stat().st_size
    assert [layer["bits"] for layer in report["layers"]] == [4, 4, 4]
    assert report["layers"][0]["block_used"] == 48
    assert report["totals"]["quantized"] == 3


def test_quant_warns_about_what_it_could_not_do(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quant", str(model), "--bits", "4", "--block", "64"]) == 0
    error = capsys.readouterr().err
    assert "warning: stem" in error
    assert "blocks of 48" in error


def test_quant_options_reach_their_layers(model: Path) -> None:
    output = model.with_name("out.mnn")
    options = [
        "--bits",
        "4",
        "--method",
        "search",
        "--gain-correction",
        "--layer",
        "head=bits:8,scheme:symmetric",
    ]
    assert run(["quant", str(model), "-o", str(output), *options, "--skip", "mid", "--fp16-scales"]) == 0
    stem, mid, head = (describe(op) for _, op in mnnq.load(output).weight_ops())
    assert (stem.bits, stem.fp16_scales, mid.storage) == (4, True, Storage.FLOAT)
    assert (head.bits, head.symmetric) == (8, True)


def test_fp16_alone_is_half_floats_and_with_bits_both(model: Path) -> None:
    assert run(["quant", str(model), "--fp16"]) == 0
    assert stored_bits(model.with_name("chain-fp16.mnn")) == [16, 16, 16]
    assert run(["quant", str(model), "--fp16", "--bits", "4"]) == 0
    assert stored_bits(model.with_name("chain-w4.mnn")) == [4, 4, 4]


def test_external_weights_go_beside(model: Path) -> None:
    output = model.with_name("out.mnn")
    assert run(["quant", str(model), "-o", str(output), "--external-weights"]) == 0
    assert output.with_name("out.mnn.weight").exists()
    assert stored_bits(output) == [8, 8, 8]


def test_a_strategy_can_be_saved_and_given_again(model: Path) -> None:
    strategy, first, second = (model.with_name(name) for name in ("s.json", "a.mnn", "b.mnn"))
    assert (
        run(
            [
                "quant",
                str(model),
                "-o",
                str(first),
                "-b",
                "4",
                "--skip",
                "mid",
                "--save-params",
                str(strategy),
            ]
        )
        == 0
    )
    assert run(["quant", str(model), "-o", str(second), "-b", "8", "--params", str(strategy)]) == 0
    assert stored_bits(second) == [4, 32, 4]


def test_quant_reads_onnx(tmp_path: Path) -> None:
    source = onnx_linear(tmp_path / "linear.onnx")
    assert run(["quant", str(source), "--bits", "4", "--block", "32"]) == 0
    assert stored_bits(tmp_path / "linear-w4.mnn") == [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "9"], "9 bits are not possible"),
        (["--bits", "1"], "1 bits are not possible"),
        (["--bits", "-3"], "-3 bits are not possible"),
        (["--bits", "abc"], "not a valid integer"),
        (["--block", "8"], "block of 8 input channels"),
        (["--block", "10"], "block of 10 input channels"),
        (["--block", "24"], "use 16 or 32"),
        (["--hqq", "--symmetric"], "symmetric weights do not have"),
        (["--hqq", "--method", "search"], "exclude each other"),
        (["--method", "best"], "is not one of"),
        (["--layer", "nope=4"], "no layer matches 'nope'"),
        (["--skip", "nope*"], "no layer matches 'nope*'"),
        (["--layer", "stem"], "not of the form"),
        (["--layer", "stem=bitz:4"], "unknown key 'bitz'"),
        (["--layer", "stem=bits:x"], "no whole number"),
        (["--layer", "stem=1"], "1 bits are not possible"),
        (["--params", "missing.json"], "missing.json: No such file"),
        (["--threads", "0"], "0 threads"),
        (["--bitts", "4"], "No such option"),
        (["-o", "no/such/folder/x.mnn"], "folder of the output does not exist"),
        (["--input-shape", "x=1x3"], "keeps its own input shapes"),
        (["--input-shape", "x"], "name=1x3x224x224"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_status_2(
    options: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quant", str(model), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("mnnq: error: ")
    assert captured.err.count("\n") == 1
    quiet_folder(model.parent, model.name)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.mnn"])
def test_a_missing_file_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quant", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == f"mnnq: error: {tmp_path / name}: No such file or directory\n"
    quiet_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".mnn", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"garbage that is no model at all", b"\xff" * 1000])
def test_a_file_that_is_no_model_is_an_error(
    suffix: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    for command in ("quant", "convert", "info"):
        assert run([command, str(path), *([] if command == "info" else ["-o", str(tmp_path / "o.mnn")])]) == 2
        error = capsys.readouterr().err
        assert str(path) in error
        assert "internal error" not in error
        assert error.count("\n") == 1
    quiet_folder(tmp_path, path.name)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model_is_an_error(
    part: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (model, onnx_linear(tmp_path / "linear.onnx")):
        data = source.read_bytes()
        cut = source.with_name(f"cut{source.suffix}")
        cut.write_bytes(data[: int(len(data) * part)])
        assert run(["quant", str(cut), "-o", str(tmp_path / "o.mnn")]) == 2
        error = capsys.readouterr().err
        assert str(cut) in error
        assert "internal error" not in error
    assert not (tmp_path / "o.mnn").exists()


def test_weights_that_are_not_finite_name_file_or_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = onnx_linear(tmp_path / "nan.onnx", bits_of=1)
    assert run(["quant", str(source)]) == 2
    error = capsys.readouterr().err
    assert "y__matmul_converted" in error
    assert "finite" in error
    quiet_folder(tmp_path, source.name)


def test_the_input_is_never_overwritten(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    assert run(["quant", str(model), "-o", str(model)]) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert model.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.skipif(os.name != "posix", reason="resource limits are POSIX")
def test_no_output_replaces_another_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.mnn")
    before = model.read_bytes()
    for arguments, message in (
        (["-o", str(output), "--save-params", str(model)], "--save-params would replace the input"),
        (["-o", str(output), "--save-params", str(output)], "--save-params would replace the output"),
        (["-o", str(output), "--save-params", str(model.parent / "no" / "s.json")], "does not exist"),
    ):
        assert run(["quant", str(model), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert model.read_bytes() == before
    quiet_folder(model.parent, "chain.mnn")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_device_or_pipe_is_never_replaced(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = model.with_name("pipe.mnn")
    os.mkfifo(pipe)
    assert run(["quant", str(model), "-o", str(pipe)]) == 2
    assert "device or a pipe" in capsys.readouterr().err
    with pytest.raises(OSError, match="no regular file"):
        mnnq.load(model).save(pipe)
    with pytest.raises(OSError, match="no regular file"):
        write_atomically(pipe, b"x")
    assert pipe.is_fifo()
    quiet_folder(model.parent, "chain.mnn", "pipe.mnn")


def test_a_file_of_the_other_kind_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_onnx, as_mnn = model.with_name("a.onnx"), model.with_name("b.MNN")
    as_onnx.write_bytes(model.read_bytes())
    onnx_linear(as_mnn)
    for path, message in ((as_onnx, "looks like a .mnn file"), (as_mnn, "looks like an ONNX model")):
        assert run(["quant", str(path)]) == 2
        assert message in capsys.readouterr().err
    assert run(["quant", str(model.parent)]) == 2
    assert "it is a folder" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnnq._native.quantize_weights", interrupt)
    assert run(["quant", str(model), "--save-params", str(model.with_name("s.json"))]) == 130
    assert capsys.readouterr().err.strip() == "mnnq: interrupted"
    quiet_folder(model.parent, "chain.mnn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "16", "--hqq"], "method: it does nothing here"),
        (["--fp16", "--block", "32"], "block: it does nothing here"),
        (["--bits", "0", "--symmetric"], "symmetric: it does nothing here"),
        (["--fp16", "--fp16-scales"], "fp16_scales: it does nothing here"),
        (["--layer", "stem=bits:16,block:32"], "it does nothing with 16 bits"),
    ],
)
def test_options_for_codes_need_codes(
    options: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quant", str(model), *options]) == 2
    assert message in capsys.readouterr().err
    quiet_folder(model.parent, "chain.mnn")


def test_options_for_codes_serve_single_layers(model: Path) -> None:
    assert run(["quant", str(model), "--fp16", "--hqq", "--layer", "stem=4"]) == 0
    assert stored_bits(model.with_name("chain-fp16.mnn")) == [4, 16, 16]


def test_a_full_disk_leaves_nothing_behind(model: Path) -> None:
    output = model.with_name("out.mnn")
    output.write_bytes(b"what was there before")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from mnnq.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "quant", str(model), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mnnq: error: ")
    assert str(output) in done.stderr
    assert done.stderr.count("\n") == 1
    assert output.read_bytes() == b"what was there before"
    quiet_folder(model.parent, model.name, output.name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder_is_an_error(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "closed"
    folder.mkdir(mode=0o500)
    assert run(["quant", str(model), "-o", str(folder / "o.mnn")]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(["quant", str(tmp_path / "missing.mnn"), "--debug"])


def test_the_command_starts_without_loading_what_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "from mnnq.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'numpy', 'onnx', 'rich', 'google.protobuf', 'mnnq._native', 'onnxruntime', 'MNN'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: mnnq" in capsys.readouterr().err


def test_python_m_mnnq_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnnq", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.startswith("mnnq ")) == (0, True)


# -- convert


def test_convert_writes_float_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = onnx_linear(tmp_path / "linear.onnx")
    assert run(["convert", str(source)]) == 0
    assert "linear.mnn" in capsys.readouterr().out
    assert stored_bits(tmp_path / "linear.mnn") == [32]
    assert run(["convert", str(source), "--fp16", "-o", str(tmp_path / "half.mnn"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["bits"] == 16


# -- info


def test_info_without_a_model_shows_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["levels"][0] == "baseline"
    assert found["level"] in found["levels"]
    assert {"gemm_f32", "gemm_i8", "gemm_w4", "depthwise_i8"} <= set(found["kernels"])
    assert run(["info"]) == 0
    text = capsys.readouterr().out
    assert f"in use    {found['level']}" in text
    for family, kernel in found["kernels"].items():
        assert kernel.startswith(family)
        assert kernel in text
    assert run(["info", "--input-shape", "x=1x2"]) == 2
    assert "--input-shape" in capsys.readouterr().err


def test_the_instruction_set_can_be_lowered() -> None:
    command = [sys.executable, "-m", "mnnq", "info", "--json"]
    for value, status in (("baseline", 0), ("Vectrex", 2)):
        done = subprocess.run(command, env={**os.environ, "MNNQ_ISA": value}, capture_output=True, text=True)
        assert done.returncode == status
        if status:
            assert "unknown ISA level" in done.stderr
            assert "internal error" not in done.stderr
        else:
            found = json.loads(done.stdout)
            assert (found["level"], found["requested"]) == ("baseline", "baseline")
            assert all("baseline" in kernel for kernel in found["kernels"].values())


def test_info_as_json_lists_bits_of_each_layer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.mnn")
    run(["quant", str(model), "-o", str(output), "--bits", "3", "--symmetric", "--block", "16"])
    capsys.readouterr()
    assert run(["info", str(output), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["file_size"] == output.stat().st_size
    assert info["inputs"] == [{"name": "x", "shape": [1, 96, 8, 8], "dtype": "float"}]
    assert [(w["bits"], w["scheme"], w["block"]) for w in info["weights"]] == [
        (3, "symmetric", 16), (3, "symmetric", None), (3, "symmetric", None),
    ]  # fmt: skip


# -- verify


def digits() -> Path:
    return Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("memory_low", [False, True])
def test_verify_passes_what_the_commands_write(memory_low: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    mode = ["--memory-low"] if memory_low else []
    for options in (["--bits", "0"], ["--fp16"], [], ["--bits", "4", "--block", "32", "--hqq"]):
        output = tmp_path / "out.mnn"
        assert run(["quant", str(digits()), "-o", str(output), *options]) == 0
        assert run(["verify", str(digits()), str(output), *mode]) == 0


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("bits", [0, 8, 4])
def test_verify_fails_a_broken_file(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = mnnq.quantize_weights(mnnq.load(digits()), bits=bits)
    _, head = list(model.weight_ops())[-2]
    bias = head.params["bias"]
    head.params["bias"] = bias + (0.05 if bits == 0 else 3.0) * np.abs(bias).max()
    model.save(tmp_path / "broken.mnn")
    assert run(["verify", str(digits()), str(tmp_path / "broken.mnn")]) == 1


def test_the_default_threshold_follows_the_storage() -> None:
    model = mnnq.load(digits())
    threshold = {
        bits: default_threshold(mnnq.quantize_weights(model, bits=bits)).value for bits in (0, 16, 8, 6, 4, 2)
    }
    assert threshold[0] == FLOAT_THRESHOLD
    assert list(threshold.values()) == sorted(threshold.values())
    assert threshold[8] < 0.05 < threshold[4] == threshold[2] == WORST_THRESHOLD
    assert default_threshold(mnnq.quantize_weights(model, bits=8), memory_low=True).value > threshold[8]


def test_the_default_threshold_counts_lookup_tables() -> None:
    table = np.ones((128, 64), np.float32)
    model = onnx_lookup(table)
    for bits in (3, 8):
        reason = default_threshold(mnnq.quantize_weights(model, bits=bits)).reason
        assert reason == f"for weights of 1 x {bits} bits"


@needs_mnn
@pytest.mark.peer
def test_verify_feeds_every_type_of_input(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for dtype, shape in ((np.int8, (2, 3)), (np.uint8, (2, 3)), (np.float64, ()), (np.bool_, (0, 3))):
        array = np.zeros(shape, dtype)
        proto = builders.single("Cast", {"x": array}, to=onnx.TensorProto.FLOAT)
        onnx.save(proto, tmp_path / "cast.onnx")
        assert run(["convert", str(tmp_path / "cast.onnx")]) == 0
        assert run(["verify", str(tmp_path / "cast.onnx"), str(tmp_path / "cast.mnn")]) == 0, dtype


@needs_mnn
@pytest.mark.peer
def test_verify_passes_and_fails_by_its_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = onnx_linear(tmp_path / "linear.onnx")
    for extra, name in ((["convert"], "float.mnn"), (["quant", "--bits", "2"], "w2.mnn")):
        assert run([extra[0], str(source), "-o", str(tmp_path / name), *extra[1:]]) == 0
    capsys.readouterr()
    assert run(["verify", str(source), str(tmp_path / "float.mnn"), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["passed"]
    assert [result["engine"] for result in outcome["results"]] == ["MNN", "mnnq"]
    assert all(result["outputs"][0]["relative"] < 1e-5 for result in outcome["results"])
    assert run(["verify", str(source), str(tmp_path / "w2.mnn"), "--threshold", "0.01"]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert captured.err == ""
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.zeros((2, 64), np.float32))
    assert run(["verify", str(source), str(tmp_path / "w2.mnn"), "--inputs", str(inputs)]) == 0


@needs_mnn
@pytest.mark.peer
def test_verify_refuses_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = onnx_linear(tmp_path / "linear.onnx")
    run(["convert", str(source)])
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, z=np.zeros(3))
    broken = tmp_path / "broken.mnn"
    broken.write_bytes(b"no model")
    not_onnx = tmp_path / "broken.onnx"
    not_onnx.write_bytes(b"no model")
    for arguments, message in (
        ([str(source), str(tmp_path / "linear.mnn"), "--inputs", str(inputs)], "missing ['x']"),
        ([str(source), str(tmp_path / "nope.mnn")], "nope.mnn: No such file"),
        ([str(source), str(broken)], "broken.mnn: "),
        ([str(source), str(source)], "linear.onnx: "),
        ([str(not_onnx), str(tmp_path / "linear.mnn")], "not an ONNX file"),
        ([str(broken), str(tmp_path / "linear.mnn")], "broken.mnn: "),
        ([str(source)], "only a .mnn file can stand alone"),
    ):
        capsys.readouterr()
        assert run(["verify", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_comparison_measures_all_samples() -> None:
    from mnnq.verify import compare

    ref: list[Any] = [np.float32([1, -2]), np.float32([0, 4])]
    same = compare("y", [(r, r) for r in ref])
    assert (same.max_abs, same.relative, same.cosine, same.sqnr_db) == (0, 0, pytest.approx(1), float("inf"))
    off = compare("y", [(ref[0], ref[0]), (ref[1], ref[1] + np.float32([0, 1]))])
    assert (off.max_abs, off.relative) == (1, 0.25)
    assert off.sqnr_db == pytest.approx(10 * np.log10(21))
    assert compare("y", [(ref[0], np.float32([np.nan, 0]))]).problem == "NaN or infinity"
    assert "shape [3]" in (compare("y", [(ref[0], np.zeros(3))]).problem or "")
    zero = compare("y", [(np.zeros(2), np.ones(2))])
    assert zero.relative == float("inf")


def test_names_that_are_no_text_are_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = onnx_linear(tmp_path / "linear.onnx")
    source.write_bytes(source.read_bytes().replace(b"MatMul", b"Mat\xff\xfel"))
    assert run(["quant", str(source)]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".mnn", ".onnx"])
def test_damaged_models_never_look_like_bugs_of_ours(
    suffix: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (model if suffix == ".mnn" else onnx_linear(tmp_path / "linear.onnx")).read_bytes()
    rng = np.random.default_rng(0)
    path, output = tmp_path / f"bad{suffix}", tmp_path / "out.mnn"
    for _ in range(120):
        bad = bytearray(data)
        # Structure lies at both ends, weights in between.
        for position in rng.choice([*range(400), *range(len(data) - 400, len(data))], 3):
            bad[position] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(bad)
        output.unlink(missing_ok=True)
        status = run(["quant", str(path), "-o", str(output), "--bits", "4", "--block", "16"])
        error = capsys.readouterr().err
        assert "internal error" not in error
        assert output.exists() == (status == 0)
        assert status in (0, 2)
