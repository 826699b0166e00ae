"""Models as dictionaries: what is accepted, what is refused and how, threads, memory, files."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq import _native
from mnnq.errors import FormatError, UnsupportedError
from tests.format.samples import convolution, differences, model, reread

WEIGHT = np.arange(8, dtype=np.float32)


def small() -> dict[str, Any]:
    return model(convolution({"weight": WEIGHT}))


def test_reading_fills_defaults_and_leaves_out_what_is_absent() -> None:
    net = reread(small())
    assert net["usage"] == "INFERENCE"
    assert net["tensorNumber"] == 0
    assert "bizCode" not in net
    assert "subgraphs" not in net
    main = net["oplists"][1]["main"]
    assert main["common"]["kernelX"] == 1
    assert main["common"]["padMode"] == "CAFFE"
    assert "quanParameter" not in main
    assert "inputIndexes" not in net["oplists"][0]
    assert main["weight"].dtype == np.float32
    assert net["oplists"][0]["main"]["dims"].dtype == np.int32


@pytest.mark.parametrize(
    ("value", "read"),
    [("SAME", "SAME"), (2, "SAME"), (np.int8(1), "VALID"), (99, 99), (-3, -3)],
)
def test_enums_are_names_or_numbers(value: Any, read: str | int) -> None:
    net = small()
    net["oplists"][1]["main"]["common"]["padMode"] = value
    assert reread(net)["oplists"][1]["main"]["common"]["padMode"] == read


@pytest.mark.parametrize(
    "values",
    [
        WEIGHT,
        list(range(8)),
        WEIGHT.astype(np.float64),
        WEIGHT.astype(">f4"),
        np.arange(8),
        np.repeat(WEIGHT, 2)[::2],
        tuple(WEIGHT),
    ],
    ids=["same", "list", "float64", "big-endian", "int64", "strided", "tuple"],
)
def test_vectors_are_arrays_or_sequences(values: Any) -> None:
    net = reread(model(convolution({"weight": values})))
    np.testing.assert_array_equal(net["oplists"][1]["main"]["weight"], WEIGHT, strict=True)


def test_bytes_are_vectors_of_bytes() -> None:
    quan = {"type": 4, "buffer": b"\x01\xff", "alpha": [1.0], "quantScale": 1}
    net = reread(model(convolution({"quanParameter": quan})))
    read = net["oplists"][1]["main"]["quanParameter"]["buffer"]
    np.testing.assert_array_equal(read, np.array([1, -1], np.int8), strict=True)


def test_none_stands_for_absent() -> None:
    net = small()
    net["bizCode"] = None
    net["oplists"][0]["inputIndexes"] = None
    assert differences(reread(net), reread(small())) == []


def test_nan_and_infinity_survive() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    net = model(convolution({"weight": values, "external": None}))
    net["oplists"][1]["main"]["common"]["relu"] = True
    read = reread(net)["oplists"][1]["main"]
    assert read["weight"].tobytes() == values.tobytes()
    assert read["common"]["relu"] is True


def path_of(net: dict[str, Any], path: str) -> tuple[Any, Any]:
    """The container and last key of a dotted path."""
    place: Any = net
    *parts, last = path.replace("[", ".[").split(".")
    for part in parts:
        place = place[int(part[1:-1])] if part.startswith("[") else place[part]
    return place, last


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("biscode", 1, 'Net has no field "biscode"'),
        ("biscode", None, 'Net has no field "biscode"'),
        ("bizCode", 3, "wanted a string, got int"),
        ("tensorName", "xy", "wanted a vector of strings, got str"),
        ("oplists", {}, "wanted a vector of tables Op, got dict"),
        ("oplists[1].type", "Convolutoin", '"Convolutoin" is not a OpType'),
        ("oplists[1].type", 1.5, "wanted int32, got float"),
        ("oplists[1].main_type", "Net", "'Net' is not a member of the union"),
        ("oplists[1].main_type", 200, "200 is not a member of the union"),
        ("oplists[1].main_type", "Pool", None),
        ("oplists[1].main", [], "wanted a mapping with the fields of Convolution2D, got list"),
        ("oplists[1].main.common.padX", 2**31, "2147483648 does not fit int32"),
        ("oplists[1].main.common.padX", 1.0, "wanted int32, got float"),
        ("oplists[1].main.common.relu", 2, "2 does not fit bool"),
        ("oplists[1].main.common.padMode", 128, "128 does not fit int8"),
        ("oplists[1].main.weight", WEIGHT.reshape(2, 4), "shape (2, 4)"),
        ("oplists[1].main.weight", ["a"], "wanted a one-dimensional array of float32"),
        ("oplists[1].main.external", [0.5], "got an array of float64, shape (1,)"),
        ("oplists[1].main.common.pads", [2**40], "with values that do not fit"),
        ("oplists[1].inputIndexes", np.array([2**32 - 1], np.uint32), "with values that do not fit"),
    ],
)
def test_mistakes_name_their_key(path: str, value: Any, message: str | None) -> None:
    net = small()
    place, last = path_of(net, path)
    place[last] = value
    with pytest.raises(FormatError) as error:
        _native.model_to_bytes(net)
    if message is not None:
        assert error.value.key == path
        assert message in error.value.message


def test_a_union_needs_its_type_and_its_value() -> None:
    net = small()
    del net["oplists"][1]["main_type"]
    with pytest.raises(FormatError, match=r"oplists\[1\].main_type: missing"):
        _native.model_to_bytes(net)
    net["oplists"][1]["main_type"] = "Convolution2D"
    del net["oplists"][1]["main"]
    with pytest.raises(FormatError, match=r"oplists\[1\].main: missing"):
        _native.model_to_bytes(net)
    net["oplists"][1].update(main_type="NONE")
    assert "main" not in reread(net)["oplists"][1]


def test_floats_that_do_not_fit_are_refused() -> None:
    net = small()
    net["oplists"][1]["main"]["quanParameter"] = {"quantScale": 1e300}
    with pytest.raises(FormatError, match="does not fit float32"):
        _native.model_to_bytes(net)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mnn"):
        _native.read_model(tmp_path / "none.mnn")
    with pytest.raises(OSError, match="not a regular file"):
        _native.read_model(tmp_path)
    with pytest.raises(FileNotFoundError):
        _native.write_model(small(), tmp_path / "none" / "model.mnn")
    with pytest.raises(TypeError):
        _native.read_model(3)  # type: ignore[arg-type]


def test_damaged_files_name_file_and_field(tmp_path: Path) -> None:
    net = small()
    net["oplists"][1]["inputIndexes"] = [7]
    path = tmp_path / "model.mnn"
    _native.write_model(net, path)
    for read in (_native.read_model, _native.validate):
        with pytest.raises(FormatError) as error:
            read(path)
        assert error.value.file == str(path)
        assert error.value.key == "oplists[1].inputIndexes[0]"
        assert error.value.message == "tensor index 7 is not one of the 2 tensors"


def test_every_truncation_is_refused() -> None:
    content = _native.model_to_bytes(small())
    _native.validate(content)
    # Only padding at the end can be missing.
    for length in range(len(content) - 3):
        with pytest.raises(FormatError):
            _native.validate(content[:length])


def test_unknown_storage_is_unsupported() -> None:
    conv = convolution({"quanParameter": {"type": 9, "buffer": b"", "alpha": [1.0]}})
    with pytest.raises(UnsupportedError, match=r"quanParameter\.type: weight storage type 9"):
        _native.decode_weights(conv)


def test_missing_side_files_leave_external(tmp_path: Path) -> None:
    path = tmp_path / "model.mnn"
    _native.write_model(small(), path, external=True)
    side = tmp_path / "model.mnn.weight"
    assert side.read_bytes() == WEIGHT.tobytes() + np.zeros(2, np.float32).tobytes()
    assert differences(_native.read_model(path), reread(small())) == []
    assert differences(_native.read_model(path.read_bytes(), side), reread(small())) == []
    elsewhere = side.rename(tmp_path / "weights")
    assert differences(_native.read_model(str(path), str(elsewhere)), reread(small())) == []
    main = _native.read_model(path)["oplists"][1]["main"]
    np.testing.assert_array_equal(main["external"], [0, 32, 8])
    with pytest.raises(FormatError, match="external weight file that was not loaded"):
        _native.decode_weights(main)
    with pytest.raises(FileNotFoundError):
        _native.read_model(path, side)


def test_arrays_are_written_from_where_they_are(tmp_path: Path) -> None:
    """Writing 256 MB allocates next to nothing, in Python and outside."""
    resource = pytest.importorskip("resource")
    weight = np.ones(1 << 26, np.float32)
    net = model(convolution({"weight": weight}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    path = tmp_path / "large.mnn"
    size = _native.write_model(net, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert size > weight.nbytes
    assert peak < 1 << 20
    unit = 1 if sys.platform == "darwin" else 1024
    assert (after - before) * unit < 32 << 20
    _native.validate(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - after) * unit < 32 << 20


def test_the_interpreter_runs_while_files_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "model.mnn"
    net = model(convolution({"weight": np.ones(1 << 20, np.float32)}))
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = tmp_path / f"model{number}.mnn"
            for _ in range(5):
                _native.write_model(net, mine)
                assert len(_native.read_model(mine)["oplists"]) == 2
        except BaseException as error:
            errors.append(error)

    _native.write_model(net, path)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.mnn"
    _native.write_model(small(), path)
    net = _native.read_model(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert differences(net, reread(small())) == []
    net["oplists"][1]["main"]["weight"][0] = 5
