"""Folders of images: what is read, how it is processed, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnnq.data import PRESETS, ImageFolder, ImageProcess, InputSpec, images, open_dataset
from mnnq.data.preprocess import ColorFormat, Resize, preset
from mnnq.errors import ConfigError, InputError
from tests.data.pictures import noise, save, smooth

NCHW = [InputSpec("x", "float32", (1, 3, 16, 16))]
NHWC = [InputSpec("x", "float32", (1, 16, 16, 3))]


def one(folder: Path, pixels: np.ndarray, name: str = "a.png", mode: str | None = None) -> Path:
    Image.fromarray(pixels, mode).save(folder / name)
    return folder


# -- what happens to a picture


def test_mean_scale_and_order_of_channels(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    one(tmp_path, pixels)
    data = ImageFolder(tmp_path, NCHW, format="BGR", mean=(1.0, 2.0, 3.0), normal=(0.5, 0.25, 2.0))
    want = (pixels[..., ::-1].astype(np.float32) - [1, 2, 3]) * [0.5, 0.25, 2]
    np.testing.assert_allclose(data[0]["x"], want.transpose(2, 0, 1)[None], rtol=1e-6)
    assert data[0]["x"].dtype == np.float32


def test_channels_last(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    data = ImageFolder(one(tmp_path, pixels), NHWC, "raw")
    np.testing.assert_array_equal(data[0]["x"], pixels[None])


def test_gray_input_takes_the_weighted_mean(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    data = ImageFolder(one(tmp_path, pixels), [InputSpec("x", "float32", (1, 1, 16, 16))], "raw")
    want = (pixels.astype(int) @ [19, 38, 7]) >> 6
    np.testing.assert_array_equal(data[0]["x"][0, 0], want)


def test_uint8_input_takes_pixels_without_a_preset(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    data = ImageFolder(one(tmp_path, pixels), [InputSpec("x", "uint8", (1, 16, 16, 3))])
    assert data[0]["x"].dtype == np.uint8
    np.testing.assert_array_equal(data[0]["x"], pixels[None])
    with pytest.raises(ConfigError, match="takes pixels as they are"):
        ImageFolder(tmp_path, [InputSpec("x", "uint8", (1, 16, 16, 3))], "imagenet")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_reads_each_kind_of_file(suffix: str, tmp_path: Path) -> None:
    pixels = smooth(16, 16)
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    value = ImageFolder(tmp_path, NHWC, "raw")[0]["x"][0]
    np.testing.assert_allclose(value, pixels, atol=6 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_reads_each_kind_of_pixel(mode: str, tmp_path: Path) -> None:
    gray = noise(16, 16, 1)[..., 0]
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16) * 256 + 77).save(tmp_path / "a.png")
    else:
        Image.fromarray(gray).convert(mode).save(tmp_path / "a.png")
    value = ImageFolder(tmp_path, NHWC, "raw")[0]["x"][0]
    want = np.asarray(Image.fromarray(gray).convert(mode).convert("L")) if mode == "1" else gray
    np.testing.assert_array_equal(value, np.repeat(want[..., None], 3, -1))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    pixels = noise(16, 16, 4)
    data = ImageFolder(one(tmp_path, pixels), NHWC, "raw")
    np.testing.assert_array_equal(data[0]["x"][0], pixels[..., :3])


def test_imagenet_is_what_torchvision_does(tmp_path: Path) -> None:
    pixels = smooth(300, 400)
    data = ImageFolder(one(tmp_path, pixels), [InputSpec("x", "float32", (1, 3, 224, 224))], "imagenet")
    grown = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR)
    cut = np.asarray(grown.crop((58, 16, 282, 240)), np.float64) / 255
    want = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(data[0]["x"][0], want.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("name", "low", "high"), [("mobilenet", -1, 1), ("unit", 0, 1), ("raw", 0, 255)])
def test_presets_have_the_range_they_promise(name: str, low: float, high: float, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    value = ImageFolder(one(tmp_path, pixels), NCHW, name)[0]["x"]
    assert value.min() == pytest.approx(low)
    assert value.max() == pytest.approx(high)


def test_a_preset_in_the_other_order_turns_its_numbers() -> None:
    turned = preset("imagenet", format="BGR")
    assert turned.mean == PRESETS["imagenet"].mean[::-1]
    assert turned.normal == PRESETS["imagenet"].normal[::-1]


def test_undo_gives_the_picture_back() -> None:
    pixels = noise(8, 8)
    for process in (*PRESETS.values(), preset("imagenet", format="BGR")):
        np.testing.assert_array_equal(process.undo(process.apply(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"format": "RBG"}, "format"),
        ({"mean": (1.0, 2.0)}, "mean"),
        ({"mean": "abc"}, "mean"),
        ({"mean": (float("nan"),)}, "mean"),
        ({"normal": (0.0,)}, "normal"),
        ({"size": (0, 5)}, "size"),
        ({"size": 5}, "size"),
        ({"resize": "bicubic"}, "resize"),
        ({"center_crop": (0.5, 0.5)}, "center_crop"),
        ({"center_crop": (0.0, 1.0), "resize": "mnn"}, "center_crop"),
        ({"margin": 0.5}, "margin"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(fields: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageProcess(**fields)
    assert caught.value.key == key


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="imagenet, mobilenet, unit, caffe, raw, mnn"):
        preset("image-net")


def test_float_input_needs_to_know_the_scale(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say how pixels become values") as caught:
        ImageFolder(save(tmp_path, ["a.png"]), NCHW)
    assert caught.value.key == "preset"


def test_resize_none_refuses_another_size(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["a.png"]), NCHW, "raw", resize="none")
    with pytest.raises(ConfigError, match=r"20x24, wanted 16x16") as caught:
        data[0]
    assert "a.png" in str(caught.value)


def test_mnn_preset_resizes_as_mnn(tmp_path: Path) -> None:
    process = preset("mnn")
    assert (process.format, process.resize) == (ColorFormat.BGR, Resize.MNN)


# -- which files


def test_files_come_in_order_of_their_names(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["c.png", "a.png", "b.jpg"]), NCHW, "raw")
    assert [data.source(i) for i in range(3)] == ["a.png", "b.jpg", "c.png"]
    assert data.description == f"3 images of {tmp_path}"
    assert data.warnings == ()


def test_unreadable_files_are_named_counted_and_not_used(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.jpg", "d.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:200])
    (tmp_path / ".hidden").write_text("ignored")
    data = ImageFolder(tmp_path, NCHW, "raw")
    assert [data.source(i) for i in range(len(data))] == ["a.png", "b.jpg", "d.png"]
    assert [entry.path.name for entry in data.unreadable] == ["c.jpg", "notes.txt"]
    (warning,) = data.warnings
    assert "2 files are no readable image and not used" in warning
    assert "c.jpg" in warning
    assert "notes.txt (it is no JPEG, PNG, BMP or WebP)" in warning


def test_samples_are_the_first_that_can_be_read(tmp_path: Path) -> None:
    save(tmp_path, ["b.png", "c.png", "d.png"])
    (tmp_path / "a.png").write_text("nothing")
    data = ImageFolder(tmp_path, NCHW, "raw", samples=2)
    assert [data.source(i) for i in range(2)] == ["b.png", "c.png"]


def test_samples_are_at_most(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["a.png"]), NCHW, "raw", samples=5)
    assert (len(data), data.warnings) == (1, ())


def test_a_seed_chooses_others_reproducibly(tmp_path: Path) -> None:
    save(tmp_path, [f"{i}.png" for i in range(8)])

    def chosen(seed: int) -> list[str]:
        data = ImageFolder(tmp_path, NCHW, "raw", samples=4, seed=seed)
        return [data.source(i) for i in range(len(data))]

    assert chosen(1) == chosen(1) == sorted(chosen(1))
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


def test_an_image_alone(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["a.png", "b.png"]) / "a.png", NCHW, "raw")
    assert len(data) == 1
    assert data.source(0) == "a.png"


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no images in it"):
        ImageFolder(tmp_path, NCHW, "raw")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no readable image in it; 1 file was tried, the first is a.txt"):
        ImageFolder(tmp_path, NCHW, "raw")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ImageFolder(tmp_path / "nothing", NCHW, "raw")


def test_the_first_images_are_decoded_once_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, ["0.png", "1.png", "2.png"])
    monkeypatch.setattr("mnnq.data.images._KEPT_BYTES", 2 * 4 * 3 * 16 * 16)
    folder = ImageFolder(tmp_path, NCHW, "unit")
    first = [sample["x"] for sample in folder]
    decoded: list[Path] = []
    plain = images._decode
    monkeypatch.setattr(images, "_decode", lambda file: decoded.append(file) or plain(file))
    again = [sample["x"] for sample in folder]
    assert [file.name for file in decoded] == ["2.png"]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        again[0][:] = 0
    copied = pickle.loads(pickle.dumps(folder))
    assert not copied._kept
    np.testing.assert_array_equal(copied[0]["x"], first[0])


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["a.png"]), NCHW, "raw")
    (tmp_path / "a.png").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"a.png: not a readable image"):
        data[0]


# -- labels


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["dog/a.png", "cat/b.png", "cat/a.png"]), NCHW, "raw")
    assert data.classes == ("cat", "dog")
    assert data.labels == (0, 0, 1)
    assert [data.source(i) for i in range(3)] == ["cat/a.png", "cat/b.png", "dog/a.png"]
    assert data.subset(2, seed=0).labels is not None


def test_samples_are_spread_over_the_classes(tmp_path: Path) -> None:
    save(tmp_path, [f"{name}/{i}.png" for name in ("a", "b", "c") for i in range(4)])
    data = ImageFolder(tmp_path, NCHW, "raw", samples=5)
    assert data.labels == (0, 0, 1, 1, 2)
    assert [data.source(i) for i in range(5)] == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png"]


def test_sub_folders_beside_images_are_not_used(tmp_path: Path) -> None:
    data = ImageFolder(save(tmp_path, ["a.png", "more/b.png"]), NCHW, "raw")
    assert len(data) == 1
    assert data.labels is None
    assert "more" in data.warnings[0]


def test_a_file_of_labels(tmp_path: Path) -> None:
    images = save(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "labels.txt").write_text(
        "# file\tclass\tname\nimages/a.png\t7\tseven\nimages/b.png\t2\ttwo\n"
    )
    data = ImageFolder(images, NCHW, "raw", labels=tmp_path / "labels.txt")
    assert data.labels == (7, 2)
    (tmp_path / "names.csv").write_text("name,label\na.png,dog\nb.png,cat\n")
    with pytest.raises(InputError, match="names no class"):
        ImageFolder(save(images, ["c.png"]), NCHW, "raw", labels=tmp_path / "labels.txt")


def test_named_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    images = save(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "names.csv").write_text("a.png,dog\nb.png, cat\n")
    data = ImageFolder(images, NCHW, "raw", labels=tmp_path / "names.csv")
    assert data.classes == ("cat", "dog")
    assert data.labels == (1, 0)


@pytest.mark.parametrize("text", ["a.png\n", "", "a.png 1\na.png 2\n"], ids=["no class", "empty", "twice"])
def test_damaged_files_of_labels(text: str, tmp_path: Path) -> None:
    images = save(tmp_path / "images", ["a.png"])
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        ImageFolder(images, NCHW, "raw", labels=tmp_path / "labels.txt")
    assert caught.value.key == "labels"


# -- models


def test_several_inputs_get_constants(tmp_path: Path) -> None:
    inputs = [*NCHW, InputSpec("size", "float32", (1, 2))]
    save(tmp_path, ["a.png"])
    data = ImageFolder(tmp_path, inputs, "raw", constants={"size": np.array([[16, 16]], np.float32)})
    np.testing.assert_array_equal(data[0]["size"], [[16, 16]])
    with pytest.raises(ConfigError, match="input 'size' has no value"):
        ImageFolder(tmp_path, inputs, "raw")


def test_several_images_need_a_name(tmp_path: Path) -> None:
    inputs = [*NCHW, InputSpec("y", "float32", (1, 3, 16, 16))]
    save(tmp_path, ["a.png"])
    with pytest.raises(ConfigError, match="several can be images"):
        ImageFolder(tmp_path, inputs, "raw")
    zeros = np.zeros((1, 3, 16, 16), np.float32)
    assert set(ImageFolder(tmp_path, inputs, "raw", input_name="y", constants={"x": zeros})[0]) == {"x", "y"}


@pytest.mark.parametrize("shape", [(1, 10), (1, 7, 16, 16), (1, 3, 16)], ids=str)
def test_inputs_that_are_no_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none can be an image"):
        ImageFolder(save(tmp_path, ["a.png"]), [InputSpec("x", "float32", shape)], "raw")


def test_a_batch_takes_several_images(tmp_path: Path) -> None:
    save(tmp_path, [f"{i}.png" for i in range(5)])
    data = ImageFolder(tmp_path, [InputSpec("x", "float32", (2, 3, 16, 16))], "raw")
    assert len(data) == 2
    assert data[0]["x"].shape == (2, 3, 16, 16)
    assert "last 1 images do not fill a batch of 2" in data.warnings[0]


def test_an_open_size_is_that_of_each_image(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"], 20, 24)
    save(tmp_path, ["b.png"], 33, 20)
    inputs = [InputSpec("x", "float32", (1, 3, None, None))]
    data = ImageFolder(tmp_path, inputs, "raw")
    assert [feeds["x"].shape for feeds in data] == [(1, 3, 20, 24), (1, 3, 33, 20)]
    assert ImageFolder(tmp_path, inputs, "raw", size=(8, 9))[1]["x"].shape == (1, 3, 8, 9)


def test_a_size_that_the_model_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(8, 8\), but input 'x'") as caught:
        ImageFolder(save(tmp_path, ["a.png"]), NCHW, "raw", size=(8, 8))
    assert caught.value.key == "size"


def test_channels_that_the_model_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RGBA has 4 channels"):
        ImageFolder(save(tmp_path, ["a.png"]), NCHW, "raw", format="RGBA")


def test_unknown_fields_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such option"):
        open_dataset(save(tmp_path, ["a.png"]), NCHW, preset="raw", norm=3)
