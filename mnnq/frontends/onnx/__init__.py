"""The ONNX frontend: ONNX file to graph, graph to MNN model."""
