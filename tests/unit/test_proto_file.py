"""The ONNX reader: big tensors stay in the file, damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnnq.errors import ConfigError, ModelError, UnsupportedError
from mnnq.frontends.onnx.importer import load_graph
from tests import builders

BIG = np.random.default_rng(0).standard_normal((256, 128), dtype=np.float32)


def gemm(dtype: np.dtype | type = np.float32) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = np.zeros((2, 256), dtype)
    return builders.model([node], {"x": x}, ["y"], {"w": BIG.astype(dtype)}, shapes={"x": ["n", 256]})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8])
def test_big_tensors_are_read_from_the_file(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "m.onnx"
    values = (BIG * 10).astype(dtype)
    tensor = numpy_helper.from_array(np.concatenate([values] * 3), "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, None)],
        [numpy_helper.from_array(np.arange(3), "small"), tensor],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    loaded = load_graph(path).constants["w"]
    np.testing.assert_array_equal(loaded, np.concatenate([values] * 3))
    assert loaded.base is not None, "expected a view of the mapped file"


def test_bfloat16_payload_is_decoded(tmp_path: Path) -> None:
    raw = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    finite = raw[np.isfinite(raw)]
    bits = (finite.view(np.uint32) >> 16).astype(np.uint16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [bits.size], bits.tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensor],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    np.testing.assert_array_equal(load_graph(path).constants["w"].astype(np.float32), finite)


def test_external_data_are_mapped_and_must_lie_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(gemm(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    np.testing.assert_array_equal(load_graph(path).constants["w"], BIG)
    proto = onnx.load(path, load_external_data=False)
    for location, message in (("../w.bin", "not beside the model"), ("missing.bin", "does not exist")):
        proto.graph.initializer[0].external_data[0].value = location
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=message):
            load_graph(path)


def test_external_data_too_short(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(gemm(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = tmp_path / "w.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"lie outside 'w\.bin'"):
        load_graph(path)


def test_declared_shape_must_fit_the_payload(tmp_path: Path) -> None:
    proto = gemm()
    proto.graph.initializer[0].dims[0] = 999
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"tensor 'w' of shape \[999, 128\]") as error:
        load_graph(path)
    assert error.value.file == str(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = gemm().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in [*range(0, 200), *range(200, len(whole), 997)]:
        path.write_bytes(whole[:size])
        with pytest.raises((ModelError, UnsupportedError)):
            load_graph(path)


def test_bit_flips_never_escape_as_other_errors(tmp_path: Path) -> None:
    whole = bytearray(gemm().SerializeToString())
    rng = np.random.default_rng(1)
    path = tmp_path / "m.onnx"
    edges = [*range(300), *range(len(whole) - 200, len(whole))]
    for position in edges:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_graph(path)
        except (ModelError, UnsupportedError, ConfigError):
            continue


def test_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        load_graph(tmp_path / "nothing.onnx")


def test_old_opset_is_refused(tmp_path: Path) -> None:
    proto = gemm()
    proto.opset_import[0].version = 6
    with pytest.raises(UnsupportedError, match="opset 6: the oldest understood is 7"):
        load_graph(proto)


def test_input_shapes_fix_symbols() -> None:
    graph = load_graph(gemm(), input_shapes={"x": [4, 256]})
    assert graph.values["x"].shape == (4, 256)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": [1]}, "no input of the model; inputs: x"),
        ({"x": [1]}, "1 dimensions given"),
        ({"x": [1, 255]}, "contradicts"),
        ({"x": [0, 256]}, "not positive"),
    ],
)
def test_wrong_input_shapes_are_refused(shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_graph(gemm(), input_shapes=shapes)


def test_functions_are_inlined() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["t"]), helper.make_node("Relu", ["t"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    x = np.ones((2, 3), np.float32)
    proto = builders.model(
        [node], {"x": x}, ["y"], functions=[function], domains=[("local", 1)], output_types={"y": 1}
    )
    assert [n.op_type for n in load_graph(proto).nodes] == ["Add", "Relu"]
