"""Samples from arrays: files, folders, Python values; checks of names, types and shapes."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnq
from mnnq.data import ArrayDataset, InputSpec, RandomDataset, check_feeds, input_specs, open_dataset
from mnnq.data import arrays as arrays_module
from mnnq.errors import ConfigError, InputError
from tests import mnn_models

X = InputSpec("x", "float32", (1, 3, 4, 4))
IDS = InputSpec("ids", "int64", (1, None))


def sample(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 3, 4, 4), value, np.float32)}


# -- Python values


def test_a_list_of_mappings() -> None:
    data = ArrayDataset([sample(i) for i in range(3)], [X])
    assert isinstance(data, Collection)
    assert [feeds["x"][0, 0, 0, 0] for feeds in data] == [0, 1, 2]
    assert [feeds["x"][0, 0, 0, 0] for feeds in data] == [0, 1, 2]
    assert data.description == "3 samples of list"
    assert data[-1]["x"][0, 0, 0, 0] == 2
    with pytest.raises(IndexError, match="sample 3 of 3"):
        data[3]


def test_an_iterator_is_kept() -> None:
    data = ArrayDataset((sample(i) for i in range(3)), [X])
    assert len(data) == 3
    assert len(list(data)) == len(list(data)) == 3


def test_an_iterator_that_is_too_big_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "ITERATOR_LIMIT", 1000)
    with pytest.raises(InputError, match=r"\(5 samples so far\) cannot be kept; give a collection"):
        ArrayDataset((sample(i) for i in range(100)), [X])


def test_a_collection_that_can_only_be_iterated_stays_lazy() -> None:
    class Loader:
        made = 0

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for i in range(4):
                Loader.made += 1
                yield sample(i)

    data = ArrayDataset(Loader(), [X])
    assert Loader.made == 0
    assert [feeds["x"][0, 0, 0, 0] for feeds in data] == [0, 1, 2, 3]
    assert Loader.made == 4
    assert data[1]["x"][0, 0, 0, 0] == 1


def test_a_collection_that_ends_early_is_an_error() -> None:
    class Liar:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            yield sample()

    with pytest.raises(InputError, match="the dataset ended after 1"):
        list(ArrayDataset(Liar(), [X]))


def test_arrays_alone_and_in_order() -> None:
    assert len(ArrayDataset([np.zeros((1, 3, 4, 4))], [X])[0]) == 1
    two = ArrayDataset([(np.zeros((1, 3, 4, 4)), np.zeros((1, 5), np.int64))], [X, IDS])
    assert set(two[0]) == {"x", "ids"}
    stacked = ArrayDataset(np.zeros((7, 3, 4, 4), np.float32), [X])
    assert len(stacked) == 7


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x": np.zeros(3)}, "a mapping is one sample"),
        (3, "no collection of samples"),
        ([], "there are no samples"),
        (iter(()), "there are no samples"),
    ],
    ids=["mapping", "number", "empty list", "empty iterator"],
)
def test_what_is_no_dataset(source: Any, message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        ArrayDataset(source, [X])


def test_a_sample_of_a_wrong_kind_is_named() -> None:
    with pytest.raises(InputError, match=r"sample 1 is str, wanted a mapping with arrays for x"):
        list(ArrayDataset([sample(), "x"], [X]))


# -- checks per sample


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"input 'x' \(float32 1x3x4x4\) is missing"),
        ({"x": np.zeros((1, 3, 4, 4)), "y": np.zeros(1)}, "has no input 'y'; it has x"),
        ({"x": np.zeros((1, 3, 4, 5))}, "input 'x' has shape 1x3x4x5, wanted 1x3x4x4"),
        ({"x": np.zeros((3, 4, 4))}, "has shape 3x4x4, wanted 1x3x4x4"),
        ({"x": np.zeros((1, 3, 4, 4), np.int64)}, "is int64, wanted float32"),
        ({"x": np.full((1, 3, 4, 4), np.nan)}, "NaN or infinite"),
        ({"x": np.full((1, 3, 4, 4), 1e300)}, "NaN or infinite"),
        ({"x": np.full((1, 3, 4, 4), "a")}, "is str32, wanted float32"),
    ],
    ids=["missing", "unknown", "shape", "rank", "type", "nan", "overflow", "text"],
)
def test_samples_that_do_not_fit_name_sample_and_input(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        list(ArrayDataset([sample(), feeds], [X]))
    assert "sample 1" in str(caught.value)


def test_widths_are_converted_when_nothing_is_lost() -> None:
    got = check_feeds(
        {"x": np.zeros((1, 3, 4, 4), np.float64), "ids": np.zeros((1, 2), np.uint8)}, [X, IDS], "s"
    )
    assert got["x"].dtype == np.float32
    assert got["ids"].dtype == np.int64
    small = InputSpec("q", "int8", (2,))
    with pytest.raises(InputError, match="values from 0 to 200, which int8 cannot hold"):
        check_feeds({"q": np.array([0, 200])}, [small], "s")


def test_axes_that_vary_take_any_length() -> None:
    data = ArrayDataset([{"ids": np.zeros((1, n), np.int64)} for n in (3, 9)], [IDS])
    assert [feeds["ids"].shape for feeds in data] == [(1, 3), (1, 9)]


# -- parts


def test_subset_and_shards() -> None:
    data = ArrayDataset([sample(i) for i in range(7)], [X])

    def values(part: Any) -> list[float]:
        return [float(feeds["x"][0, 0, 0, 0]) for feeds in part]

    assert values(data.subset(3)) == [0, 1, 2]
    assert (
        values(data.subset(3, seed=5))
        == values(data.subset(3, seed=5))
        == sorted(values(data.subset(3, seed=5)))
    )
    assert data.subset(99) is data
    shards = [values(data.shard(i, 3)) for i in range(3)]
    assert shards == [[0, 3, 6], [1, 4], [2, 5]]
    assert "2 of 7 samples of list" in data.shard(1, 3).description
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigError) as caught:
            data.subset(wrong)  # type: ignore[arg-type]
        assert caught.value.key == "samples"
    with pytest.raises(ConfigError):
        data.shard(3, 3)


def test_datasets_can_go_to_other_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(2 * 48, dtype=np.float32).reshape(2, 3, 4, 4))
    for data in (ArrayDataset(tmp_path, [X]), ArrayDataset([sample(i) for i in range(3)], [X])):
        part = data.shard(1, 2)
        copied = pickle.loads(pickle.dumps(part))
        np.testing.assert_array_equal(copied[0]["x"], part[0]["x"])


# -- files


def test_a_file_is_cut_into_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.arange(5 * 48, dtype=np.float32).reshape(5, 3, 4, 4))
    data = ArrayDataset(tmp_path / "five.npy", [X])
    assert len(data) == 5
    assert data[3]["x"][0, 0, 0, 0] == 3 * 48
    assert data.source(3) == "five.npy[3]"


@pytest.mark.parametrize(
    ("shape", "count"), [((3, 4, 4), 1), ((1, 3, 4, 4), 1), ((6, 3, 4, 4), 6), ((6, 1, 3, 4, 4), 6)], ids=str
)
def test_batch_axis_may_be_missing_or_one_more(shape: tuple[int, ...], count: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    data = ArrayDataset(tmp_path / "a.npy", [X])
    assert len(data) == count
    assert data[0]["x"].shape == (1, 3, 4, 4)


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 2), np.float32))
    assert len(ArrayDataset(tmp_path / "a.npy", [InputSpec("x", "float32", (3, 2))])) == 2
    with pytest.raises(InputError, match="6 rows do not fill batches of 4"):
        ArrayDataset(tmp_path / "a.npy", [InputSpec("x", "float32", (4, 2))])


def test_npz_of_several_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3, 4, 4)), ids=np.zeros((4, 6), np.int64))
    data = ArrayDataset(tmp_path / "a.npz", [X, IDS])
    assert len(data) == 4
    assert data[0]["ids"].shape == (1, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 3, 4, 4))}, "no array for input 'ids'; it has x"),
        ({"x": np.zeros((1, 3, 4, 4)), "ids": np.zeros((1, 2)), "z": np.zeros(1)}, "no input 'z'"),
        (
            {"x": np.zeros((4, 3, 4, 4)), "ids": np.zeros((3, 6), np.int64)},
            "different numbers of samples: 4 for 'x', 3",
        ),
        ({"x": np.zeros(4), "ids": np.zeros((1, 2), np.int64)}, "input 'x' has shape 4, wanted 1x3x4x4"),
        ({"x": np.zeros((0, 3, 4, 4)), "ids": np.zeros((1, 2), np.int64)}, "there are no samples in it"),
    ],
    ids=["missing", "unknown", "counts", "rank", "empty"],
)
def test_npz_files_that_do_not_fit(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        ArrayDataset(tmp_path / "a.npz", [X, IDS])
    assert "a.npz" in str(caught.value)


def test_labels_of_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 3, 4, 4)), labels=np.array([4, 0, 1]))
    data = ArrayDataset(tmp_path / "a.npz", [X])
    assert data.labels == (4, 0, 1)
    assert data.shard(0, 2).labels == (4, 1)
    assert set(data[0]) == {"x"}
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 3, 4, 4)), label=np.array(2))
    assert ArrayDataset(tmp_path, [X]).labels == (4, 0, 1, 2)
    np.savez(tmp_path / "c.npz", x=np.zeros((2, 3, 4, 4)))
    with pytest.raises(InputError, match="some of its files have labels") as caught:
        ArrayDataset(tmp_path, [X])
    assert caught.value.key == "labels"
    taken = [InputSpec("x", "float32", (1, 3, 4, 4)), InputSpec("labels", "int64", (1,))]
    np.savez(tmp_path / "c.npz", x=np.zeros((1, 3, 4, 4)), labels=np.array([2]))
    assert ArrayDataset(tmp_path / "c.npz", taken).labels is None


@pytest.mark.parametrize("labels", [[1], [0.5, 1.5, 1.0], [-1, 0, 1]], ids=str)
def test_labels_that_do_not_fit(labels: list[float], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 3, 4, 4)), labels=np.array(labels))
    with pytest.raises(InputError, match="wanted 3 class indices from 0"):
        ArrayDataset(tmp_path / "a.npz", [X])


def test_a_folder_of_files_in_order(tmp_path: Path) -> None:
    for name, value in (("b.npy", 2), ("a.npy", 1), ("c.npz", 3)):
        array = np.full((1, 3, 4, 4), value, np.float32)
        np.savez(tmp_path / name, x=array) if name.endswith("z") else np.save(tmp_path / name, array)
    data = ArrayDataset(tmp_path, [X])
    assert [feeds["x"][0, 0, 0, 0] for feeds in data] == [1, 2, 3]
    assert [data.source(i) for i in range(3)] == ["a.npy", "b.npy", "c.npz"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"a.npz: not a file of arrays"):
        ArrayDataset(tmp_path, [X])
    (tmp_path / "a.npz").unlink()
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"o.npy: not a file of arrays"):
        ArrayDataset(tmp_path, [X])


def test_one_array_for_two_inputs_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 4, 4)))
    with pytest.raises(InputError, match=r"one array cannot feed 2 inputs; give an .npz file with x, ids"):
        ArrayDataset(tmp_path / "a.npy", [X, IDS])


# -- random values, inputs of models, choosing by content


def test_random_data_say_that_they_are() -> None:
    data = RandomDataset([X, IDS], 3, shapes={"ids": (1, 7)})
    assert data.is_generated
    assert data.subset(2).is_generated
    assert not ArrayDataset([sample()], [X]).is_generated
    np.testing.assert_array_equal(data[1]["x"], data[1]["x"])
    assert not np.array_equal(data[0]["x"], data[1]["x"])
    assert set(np.unique(data[0]["ids"])) <= {0, 1}
    with pytest.raises(ConfigError, match="no input is named 'z'"):
        RandomDataset([X], shapes={"z": (1,)})


def test_inputs_of_models_and_sessions(tmp_path: Path) -> None:
    model = mnn_models.chain()
    model.save(tmp_path / "m.mnn")
    want = (InputSpec("x", "float32", (1, 96, 8, 8)),)
    assert input_specs(model) == want
    assert input_specs(mnnq.InferenceSession(tmp_path / "m.mnn")) == want
    with pytest.raises(ConfigError, match="int is no model"):
        input_specs(3)  # type: ignore[arg-type]


def test_open_dataset_passes_python_data_on(tmp_path: Path) -> None:
    data = open_dataset([sample(i) for i in range(5)], [X], samples=2)
    assert len(data) == 2
    assert open_dataset(data, [X]) is data
    with pytest.raises(ConfigError, match="goes with images only") as caught:
        open_dataset([sample()], [X], preset="unit")
    assert caught.value.key == "preset"


def test_open_dataset_says_what_there_is_instead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder is empty"):
        open_dataset(tmp_path, [X])
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(InputError, match=r"it has readme.md"):
        open_dataset(tmp_path, [X])
    with pytest.raises(InputError, match="neither an image nor a file of arrays"):
        open_dataset(tmp_path / "readme.md", [X])
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "missing", [X])
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 4, 4), np.float32))
    assert len(open_dataset(tmp_path, [X])) == 1
    with pytest.raises(ConfigError, match="arrays are used as they are"):
        open_dataset(tmp_path, [X], mean=(1.0,))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="keep one kind"):
        open_dataset(tmp_path, [X])
