"""Running models: `InferenceSession` and its options, `benchmark`."""

from mnnq.runtime.benchmark import BenchmarkResult as BenchmarkResult
from mnnq.runtime.benchmark import OperatorTime as OperatorTime
from mnnq.runtime.benchmark import benchmark as benchmark
from mnnq.runtime.session import Dynamic as Dynamic
from mnnq.runtime.session import InferenceSession as InferenceSession
from mnnq.runtime.session import Int8 as Int8
from mnnq.runtime.session import Memory as Memory
from mnnq.runtime.session import ModelMetadata as ModelMetadata
from mnnq.runtime.session import NodeArg as NodeArg
from mnnq.runtime.session import Precision as Precision
from mnnq.runtime.session import SessionOptions as SessionOptions
from mnnq.runtime.session import StepProfile as StepProfile

__all__ = [
    "BenchmarkResult",
    "Dynamic",
    "InferenceSession",
    "Int8",
    "Memory",
    "ModelMetadata",
    "NodeArg",
    "OperatorTime",
    "Precision",
    "SessionOptions",
    "StepProfile",
    "benchmark",
]
