"""Running models: `InferenceSession` and its options."""

from mnnq.runtime.session import InferenceSession as InferenceSession
from mnnq.runtime.session import Memory as Memory
from mnnq.runtime.session import NodeArg as NodeArg
from mnnq.runtime.session import Precision as Precision
from mnnq.runtime.session import SessionOptions as SessionOptions
from mnnq.runtime.session import StepProfile as StepProfile

__all__ = ["InferenceSession", "Memory", "NodeArg", "Precision", "SessionOptions", "StepProfile"]
