"""MNN's sequence folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq.data import InputSpec, SequenceFolder, open_dataset
from mnnq.errors import InputError

INPUTS = [InputSpec("x", "float32", (1, 2, 3)), InputSpec("ids:0", "int32", (1, None))]


def write(folder: Path, index: int, inputs: list[dict[str, Any]] | None = None, **texts: str) -> Path:
    """One sample as MNN writes it."""
    sample = folder / f"input_{index}"
    sample.mkdir(parents=True)
    record = (
        inputs
        if inputs is not None
        else [{"name": "x", "shape": [1, 2, 3]}, {"name": "ids:0", "shape": [1, 2]}]
    )
    (sample / "input.json").write_text(json.dumps({"inputs": record, "outputs": ["y"]}))
    files = {"x": f"{index} 1 2\n3.5 -4 5e-1\n", "ids_0": "7 8"} | texts
    for name, text in files.items():
        (sample / f"{name}.txt").write_text(text)
    return folder


def test_reads_the_samples_by_number(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        write(tmp_path, index)
    data = open_dataset(tmp_path, INPUTS)
    assert isinstance(data, SequenceFolder)
    assert [data.source(i) for i in range(3)] == ["input_1", "input_2", "input_10"]
    np.testing.assert_array_equal(data[2]["x"], [[[10, 1, 2], [3.5, -4, 0.5]]])
    np.testing.assert_array_equal(data[0]["ids:0"], [[7, 8]])
    assert data[0]["ids:0"].dtype == np.int32
    assert data.description == f"3 sequences of {tmp_path}"


def test_one_sample_alone(tmp_path: Path) -> None:
    assert len(SequenceFolder(write(tmp_path, 0) / "input_0", INPUTS)) == 1


def test_files_beside_the_samples_are_named(tmp_path: Path) -> None:
    write(tmp_path, 0)
    (tmp_path / "notes.txt").write_text("x")
    (warning,) = SequenceFolder(tmp_path, INPUTS).warnings
    assert "notes.txt" in warning


def test_files_instead_of_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "input_0.txt").write_text("1 2 3")
    with pytest.raises(InputError, match="it has no sub-folders; each sample is one"):
        SequenceFolder(tmp_path, INPUTS)
    with pytest.raises(InputError, match="it is a file"):
        SequenceFolder(tmp_path / "input_0.txt", INPUTS)


@pytest.mark.parametrize(
    ("inputs", "texts", "message"),
    [
        (None, {"x": "1 2 3"}, r"input 'x': 3 numbers, shape \[1, 2, 3\] wants 6"),
        (None, {"x": "1 2 three 4 5 6"}, "not a file of numbers"),
        (None, {"ids_0": "1 2.5"}, "is int32, but there are numbers that are not whole"),
        ([{"name": "x", "shape": [1, 2, 3]}], {}, "input 'ids:0' .* is missing"),
        ([{"name": "q", "shape": [1]}], {}, "has no input 'q'; it has x, ids:0"),
        ([{"name": "ids:0"}], {}, "its shape is not in input.json"),
        ([{"shape": [1]}], {}, "an input without a name"),
        ([{"name": "x", "shape": [1, "a"]}], {}, "no list of lengths"),
        ([{"name": "x"}, {"name": "x"}], {}, "is there twice"),
        ([], {}, "wanted"),
        ([{"name": "x", "shape": [1, 3, 2]}, {"name": "ids:0", "shape": [1, 2]}], {}, "has shape 1x3x2, wanted 1x2x3"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit(
    inputs: list[dict[str, Any]] | None, texts: dict[str, str], message: str, tmp_path: Path
) -> None:
    data = SequenceFolder(write(tmp_path, 0, inputs, **texts), INPUTS)
    with pytest.raises(InputError, match=message) as caught:
        list(data)
    assert "input_0" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    data = SequenceFolder(write(tmp_path, 0), INPUTS)
    (tmp_path / "input_0/x.txt").unlink()
    with pytest.raises(InputError, match=r"no x.txt for input 'x'"):
        data[0]
    (tmp_path / "input_0/input.json").write_text("{")
    with pytest.raises(InputError, match=r"input.json: not JSON"):
        data[0]
    (tmp_path / "input_0/input.json").unlink()
    with pytest.raises(InputError, match=r"the sample has no input.json"):
        data[0]


def test_the_shape_of_the_model_will_do(tmp_path: Path) -> None:
    inputs = [{"name": "x"}, {"name": "ids:0", "shape": [1, 2]}]
    assert SequenceFolder(write(tmp_path, 0, inputs), INPUTS)[0]["x"].shape == (1, 2, 3)
