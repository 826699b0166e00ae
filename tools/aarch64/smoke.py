"""Does the installed wheel work: quantize the weights of a small network and run it in every mode."""

from __future__ import annotations

import platform

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.convert import convert_onnx
from mnnq.writer.to_mnn import to_bytes


def main() -> None:
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((64, 96)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "smoke",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 96])],
        [weights],
    )
    model = convert_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = rng.standard_normal((5, 64)).astype(np.float32)
    want = x @ numpy_helper.to_array(weights)
    coded = to_bytes(mnnq.quantize_weights(model, bits=8))
    cases = {"normal": (to_bytes(model), {}), "low precision": (to_bytes(model), {"precision": "low"})}
    for dynamic in ("always", "compat"):
        cases[f"int8, {dynamic}"] = (coded, {"memory": "low", "dynamic": dynamic})
    kernels = []
    for what, (source, options) in cases.items():
        session = mnnq.InferenceSession(source, {"threads": 1, **options})
        (got,) = session.run(None, {"x": x})
        error = np.abs(got - want).max() / np.abs(want).max()
        if not error < (1e-5 if what == "normal" else 3e-2):
            msg = f"{what}: relative error {error}"
            raise SystemExit(msg)
        kernels += [
            word for step in session.profile() for word in step.kernel.split() if word.startswith("gemm_")
        ]
    print(f"mnnq {mnnq.__version__} on {platform.machine()}: {', '.join(dict.fromkeys(kernels))}")


if __name__ == "__main__":
    main()
