"""What a model's inputs are, and whether a sample fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mnnq.errors import ConfigError, InputError
from mnnq.ir.model import Model

if TYPE_CHECKING:
    from mnnq.runtime.session import InferenceSession, NodeArg

#: Element types of the inputs of `.mnn` files; wider integers and booleans are stored as int32 there.
_MNN_TYPES = {"DT_FLOAT": "float32", "DT_UINT8": "uint8", "DT_INT8": "int8"}

#: Numbers of channels that an image can have.
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes
    ----------
    name
        Its name.
    dtype
        NumPy name of the element type, e.g. ``"float32"``.
    shape
        Lengths of the axes; None for those that vary. None as a whole when the rank is unknown.
    channels_last
        Whether the file says that the last of four axes holds the channels.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    channels_last: bool = False

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} {shape_text(self.shape)}"

    @property
    def image_axis(self) -> int | None:
        """Axis that holds the channels of an image (1 or 3); None when the input cannot be an image."""
        if self.shape is None or len(self.shape) != 4 or self.dtype not in ("float32", "uint8", "float16"):
            return None
        if self.channels_last:
            return 3
        last = self.shape[1] not in CHANNELS and self.shape[3] in CHANNELS
        axis = 3 if last else 1
        return axis if self.shape[axis] in (*CHANNELS, None) else None


#: What `input_specs` understands.
Inputs: TypeAlias = "Model | InferenceSession | Sequence[InputSpec | NodeArg]"


def shape_text(shape: Sequence[int | str | None]) -> str:
    """``1x3x?x?``; ``scalar`` without axes."""
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"


def input_specs(source: Inputs) -> tuple[InputSpec, ...]:
    """The inputs of a model, a session, or of a list that names them.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if isinstance(source, Model):
        return _of_model(source)
    get_inputs = getattr(source, "get_inputs", None)
    entries = get_inputs() if callable(get_inputs) else source
    if isinstance(entries, Sequence) and not isinstance(entries, (str, bytes)):
        return tuple(entry if isinstance(entry, InputSpec) else _of_port(entry) for entry in entries)
    msg = f"{type(source).__name__} is no model; give a Model, an InferenceSession or a list of inputs"
    raise ConfigError(msg, key="inputs")


def _of_port(port: NodeArg) -> InputSpec:
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64", "?": "float32"}.get(kind, kind)
    return InputSpec(port.name, dtype, tuple(n if isinstance(n, int) else None for n in port.shape))


def _of_model(model: Model) -> tuple[InputSpec, ...]:
    signature = {spec.name: spec for spec in model.signature.inputs} if model.signature is not None else {}
    specs = []
    for op in model.ops:
        if op.type != "Input":
            continue
        name = op.outputs[0]
        last = op.params.get("dformat") == "NHWC"
        known = signature.get(name)
        if known is not None and known.shape is not None and known.dtype is not None:
            shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in known.shape)
            specs.append(InputSpec(name, known.dtype, shape, last and len(shape) == 4))
            continue
        dims = tuple(int(d) if d >= 0 else None for d in op.params.get("dims", ()))
        dtype = _MNN_TYPES.get(str(op.params.get("dtype", "DT_FLOAT")), "int32")
        specs.append(InputSpec(name, dtype, dims, last and len(dims) == 4))
    return tuple(specs)


def check_feeds(
    feeds: Mapping[str, npt.ArrayLike], inputs: Sequence[InputSpec], sample: str
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one sample in the types of the model.

    Floats of any width become the model's, integers too where their values fit; nothing else is converted.

    Parameters
    ----------
    sample
        What errors call the sample, e.g. ``"sample 3 (cats/7.npz)"``.

    Raises
    ------
    InputError
        A name, type or shape does not fit, or a value is NaN or infinite; sample and input are named.
    """
    known = {spec.name: spec for spec in inputs}
    for name in feeds:
        if name not in known:
            msg = f"{sample}: the model has no input {name!r}; it has {', '.join(known) or 'none'}"
            raise InputError(msg, key=str(name))
    for name, spec in known.items():
        if name not in feeds:
            msg = f"{sample}: input {name!r} ({spec}) is missing"
            raise InputError(msg, key=name)
    return {name: _checked(np.asarray(feeds[name]), spec, sample) for name, spec in known.items()}


def _checked(array: npt.NDArray[Any], spec: InputSpec, sample: str) -> npt.NDArray[Any]:
    def refuse(problem: str) -> InputError:
        return InputError(f"{sample}: input {spec.name!r} {problem}", key=spec.name)

    if spec.shape is not None and not _fits(array.shape, spec.shape):
        msg = f"has shape {shape_text(array.shape)}, wanted {shape_text(spec.shape)}"
        raise refuse(msg)
    wanted = np.dtype(spec.dtype)
    if array.dtype != wanted:
        if array.dtype.kind == "f" and wanted.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(wanted)
        elif array.dtype.kind in "biu" and wanted.kind in "iu":
            info = np.iinfo(wanted)
            if array.size and (int(array.max()) > info.max or int(array.min()) < info.min):
                msg = f"has values from {array.min()} to {array.max()}, which {wanted.name} cannot hold"
                raise refuse(msg)
            array = array.astype(wanted)
        else:
            msg = f"is {array.dtype.name}, wanted {wanted.name}"
            raise refuse(msg)
    if wanted.kind == "f" and not np.isfinite(array).all():
        msg = "has values that are NaN or infinite"
        raise refuse(msg)
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))
