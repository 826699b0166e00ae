"""docs/operators.md is generated, and says what the converter does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mnnq.frontends.onnx import registry

ROOT = Path(__file__).parents[2]


def test_the_list_of_operators_is_up_to_date() -> None:
    script = ROOT / "tools" / "list_operators.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_names_every_operator_once() -> None:
    lines = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert rows == registry.supported()
    assert {"Conv", "Dropout", "LSTM", "Upsample"} < set(rows)


def test_what_the_converter_emits_and_refuses_is_listed() -> None:
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    row = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "Convolution" in row["Conv"]
    assert "While" in row["LSTM"]
    assert "a transposed convolution of … axes with a weight computed at run time" in row["ConvTranspose"]
