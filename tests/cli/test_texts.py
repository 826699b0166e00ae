"""What people read: help texts, tables, reports (snapshots)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import mnnq
from mnnq.cli.common import ProgressLine, warn_all
from mnnq.cli.info import weights_table
from mnnq.cli.main import COMMANDS, run
from mnnq.cli.verify import verify_table
from mnnq.inspection import inspect_model
from mnnq.report.quantization import LayerReport, QuantizationReport
from mnnq.report.tables import quantization_table, size
from mnnq.verify import OutputError, VerifyResult
from tests import mnn_models

REPORT = QuantizationReport(
    (
        LayerReport("stem", "Convolution", (32, 27), 8, "asymmetric", None, None, "rtn", 3456, 1392, 47.25, 0.00434),
        LayerReport("block/fc", "Convolution", (1024, 512), 4, "symmetric", 64, 64, "search", 2097152, 294912, 22.1, 0.078),
        LayerReport("mid", "ConvolutionDepthwise", (32, 9), 32, None, 64, None, None, 1152, 1152, reason="its weights are computed at run time"),
        LayerReport("tied", "Convolution", (8, 8), 16, None, None, None, "fp16", 256, 128, float("inf"), 0.0),
        LayerReport("word", "Embedding", (30522, 384), 8, "asymmetric", None, None, "rtn", 46881792, 11964624, 44.0, 0.0063),
        LayerReport("mask", "Const", (1, 1, 256, 256), 32, None, None, None, None, 262144, 262144, reason="a constant read by BinaryOp 'add'"),
    ),
    ("2 layers were quantized before",),
)  # fmt: skip


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(
    command: str | None,
    capsys: pytest.CaptureFixture[str],
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run([*([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:\n    mnnq" in text
    assert text == snapshot


def test_quantization_table(snapshot: SnapshotAssertion) -> None:
    assert quantization_table(REPORT).text() == snapshot


def test_quantization_report(snapshot: SnapshotAssertion) -> None:
    assert REPORT.to_dict() == snapshot
    assert REPORT.warnings() == snapshot


def test_weights_table(snapshot: SnapshotAssertion) -> None:
    model = mnnq.quantize_weights(mnn_models.chain(), bits=4, block=16, overrides={"mid": 0, "head": 16})
    assert weights_table(inspect_model(model)).text() == snapshot


def test_verify_table(snapshot: SnapshotAssertion) -> None:
    outputs = (
        OutputError("logits", (2, 1000), 0.01, 0.002, 0.99999, 48.5),
        OutputError("scalar", (), 0.0, 0.0, 1.0, float("inf")),
        OutputError("boxes", (1, 4), float("inf"), float("inf"), 0.0, float("-inf"), "NaN or infinity"),
        OutputError("late", (3,), 1.0, 0.5, 0.9, 6.0),
    )
    assert verify_table(VerifyResult("a.onnx", "a.mnn", "MNN", 2, 0.01, outputs)).text() == snapshot


def test_totals_count_what_is_quantized() -> None:
    assert (len(REPORT.quantized), len(REPORT.left_float)) == (3, 3)
    assert REPORT.bytes_before - REPORT.bytes_after == sum(
        x.bytes_before - x.bytes_after for x in REPORT.layers
    )
    with pytest.raises(KeyError):
        REPORT.layer("nope")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (999_949, "999.9 KB"), (999_950, "1.0 MB"), (2_500_000_000, "2.5 GB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_tables_on_a_terminal_show_the_same_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    quantization_table(REPORT).print_rich()
    text = capsys.readouterr().out
    for cell in ("block/fc", "3 of 6 quantized", "47.2", "exact", "fp16"):
        assert cell in text


def test_public_names_exist() -> None:
    for name in mnnq.__all__:
        assert getattr(mnnq, name) is not None
    assert Path(mnnq.__file__ or "").name == "__init__.py"
    with pytest.raises(AttributeError, match="nope"):
        _ = mnnq.nope


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_that_vanishes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    progress = ProgressLine()
    progress(0, 2, "stem")
    progress(2, 2, "")
    text = screen.getvalue()
    assert "quantizing 0/2 stem" in text
    assert text.endswith("\r")
    assert text.rstrip("\r").rpartition("\r")[2].strip() == ""


def test_progress_is_silent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    ProgressLine()(0, 2, "stem")
    assert pipe.getvalue() == ""


def test_many_warnings_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    warn_all(f"layer {i}" for i in range(50))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "warning: ... and 30 more (--json lists all)"
