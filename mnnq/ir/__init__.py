"""The two representations a model passes through.

`graph` holds the source network with ONNX operator semantics; passes rewrite it.
`model` holds what a `.mnn` file holds: MNN operators and their parameter tables.
"""

from mnnq.ir.graph import Graph, Node, ValueInfo
from mnnq.ir.model import Model, Op, SubGraph

__all__ = ["Graph", "Model", "Node", "Op", "SubGraph", "ValueInfo"]
