"""Lowerings of ONNX operators, a module per family; `mnnq.frontends.onnx.registry` imports them all."""
