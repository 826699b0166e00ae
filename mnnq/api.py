"""The functions behind ``import mnnq``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Executor
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnq.errors import ConfigError, FormatError, ModelError
from mnnq.files import is_mnn, looks_like_mnn, looks_like_onnx
from mnnq.ir.model import Model
from mnnq.quantization.config import WeightConfig, WeightMethod, WeightOptions
from mnnq.quantization.params_file import ParamsFile, read_params
from mnnq.quantization.weight import Progress, QuantizedModel, quantize_model

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

    from mnnq.quantization.offline import Dataset, Feeds, OfflineConfig, OfflineResult


def load(
    path: str | Path, *, input_shapes: Mapping[str, Sequence[int]] | None = None, qdq: str = "native"
) -> Model:
    """Load a model: an ONNX file (it is converted) or a `.mnn` file (it is read).

    What a file is follows from its name: ``.mnn`` (in any case) is MNN, everything else ONNX.

    Parameters
    ----------
    path
        File to load. External weights are looked for beside it.
    input_shapes
        Fixes symbolic axes of an ONNX model's inputs, by input name.
    qdq
        What to do with quantization that an ONNX model carries: ``"native"`` makes the layers int8 with the scales of the
        file (`Model.imported` says which), ``"float"`` writes the rounding in float operators.

    Raises
    ------
    ModelError
        The file is damaged, or not of its kind.
    UnsupportedError
        The model uses operators that cannot be converted exactly; all are named.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import mnnq
    >>> model = mnnq.load("resnet50.onnx", input_shapes={"input": (1, 3, 224, 224)})  # doctest: +SKIP
    """
    path = Path(path)
    if not is_mnn(path):
        from mnnq.convert import ConvertOptions, convert_onnx

        if path.stat().st_size == 0:
            msg = "not an ONNX file: it is empty"
            raise ModelError(msg, file=str(path))
        try:
            return convert_onnx(path, ConvertOptions(input_shapes, qdq))
        except ModelError as error:
            if looks_like_mnn(path):
                error.message = "it looks like a .mnn file; let its name end in .mnn"
            raise
    if input_shapes:
        msg = "a .mnn file keeps its own input shapes; convert from ONNX to fix them"
        raise ConfigError(msg, file=str(path), key="input_shapes")
    return load_mnn(path)


def load_mnn(path: Path) -> Model:
    """Read a `.mnn` file.

    Raises
    ------
    FormatError
        The file is damaged, or something else; the message names it.
    OSError
        The file cannot be read.
    """
    from mnnq.writer.from_mnn import read_model

    try:
        return read_model(path)
    except FormatError as error:
        error.file = error.file or str(path)
        if looks_like_onnx(path):
            error.message = "it looks like an ONNX model, not like a .mnn file"
        raise


def quantize_weights(
    model: Model,
    config: WeightConfig | None = None,
    *,
    params_file: ParamsFile | str | Path | None = None,
    progress: Progress | None = None,
    calib: Iterable[Mapping[str, Any]] | None = None,
    state: str | Path | None = None,
    executor: Executor | None = None,
    generated_range: tuple[float, float] | None = None,
    generated_inputs: bool = True,
    **options: Unpack[WeightOptions],
) -> QuantizedModel:
    """Quantize the weights of a model and return the result; the model given is not changed.

    Parameters
    ----------
    model
        What `load` returned; its layers may be float, half float or quantized already.
    config
        What to do; by default 8 bits, asymmetric, one scale per output channel.
    params_file
        A compression parameter file (or its path); what it says of a layer wins.
    progress
        Called before each layer with (layers done, layers in all, name).
    calib
        Real inputs of the model, 8 to 128 samples: a `mnnq.data.Dataset` or any mappings from input name to array.
        Biases are corrected on them, and ``method="gptq"`` and ``"auto"`` fit the weights to them.
    state
        Folder that finished layers are kept in, so that an interrupted run with `calib` continues where it was.
    executor
        Where layers are worked on, anything with the interface of `concurrent.futures.Executor`. The result is the
        same.
    generated_range
        Without data: smallest and largest value of the model's input image. Biases are corrected on made-up images of
        that range, with ``method="auto"`` weights are fitted to them, if it helps; the report says so.
    generated_inputs
        Without data, ``method="auto"``: fit weights to inputs that are made up, random tokens for language models and
        noise for image models, where it can be told what they are like and it helps; the report says so.
    options
        Fields of `WeightConfig`, in place of those of `config`: ``bits=4``, ``block=64``, ``method="hqq"``,
        ``symmetric=True``, ``overrides={"head/*": {"bits": 8}}`` ...

    Returns
    -------
    QuantizedModel
        A `Model` with ``report``, the record of every layer.

    Raises
    ------
    ConfigError
        An option is wrong, or names no layer.
    QuantizationError
        Weights cannot be quantized, naming the layer.

    Examples
    --------
    >>> import mnnq
    >>> model = mnnq.load("model.onnx")  # doctest: +SKIP
    >>> small = mnnq.quantize_weights(model, bits=4, block=64, method="hqq")  # doctest: +SKIP
    >>> small.report.bytes_after, small.save("model.mnn")  # doctest: +SKIP
    """
    config = make_config(config, options)
    if params_file is not None and not isinstance(params_file, ParamsFile):
        params_file = read_params(params_file)
    copied = model.copy()
    result = QuantizedModel(**{entry.name: getattr(copied, entry.name) for entry in fields(Model)})
    result.report = quantize_model(
        result,
        config,
        params=params_file,
        progress=progress,
        calib=calib,
        state=None if state is None else Path(state),
        executor=executor,
        generated_range=generated_range,
        generated_inputs=generated_inputs,
    )
    return result


def quantize(
    model: Model,
    dataset: Dataset | Iterable[Feeds],
    config: OfflineConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> OfflineResult:
    """Quantize a model to static int8: weights and activations; the model given is not changed.

    Parameters
    ----------
    model
        What `load` returned.
    dataset
        Calibration samples, dictionaries of arrays by input name: 100 or so that look like what the model will see. Anything
        that can be gone through again and again; an iterator is read into memory.
    config
        What to do.
    executor
        Where to run shards of the calibration (a ``concurrent.futures.Executor``).
    progress
        Called with the stage, units done and units in all.
    options
        Fields of `OfflineConfig`, in place of those of `config`: ``feature_method="kl"``, ``skip=("head/*",)``,
        ``fix=True`` ...

    Returns
    -------
    OfflineResult
        ``model`` and ``report``.

    Raises
    ------
    ConfigError
        An option is wrong, or names no operator.
    InputError
        A sample does not fit the model; the message has its number.
    QuantizationError
        The quantized model is too far from the float model on the data; the message names the worst layers.

    Examples
    --------
    >>> import mnnq
    >>> samples = [{"input": image} for image in images]  # doctest: +SKIP
    >>> result = mnnq.quantize(mnnq.load("model.onnx"), samples)  # doctest: +SKIP
    >>> result.report.sqnr_db, result.model.save("model.mnn")  # doctest: +SKIP
    """
    from mnnq.quantization.offline import OfflineConfig, quantize_offline

    known = {entry.name for entry in fields(OfflineConfig)}
    for name in options:
        if name not in known:
            msg = f"unknown option; use {', '.join(sorted(known))}"
            raise ConfigError(msg, key=name)
    if not isinstance(dataset, Sized):
        dataset = list(dataset)
    chosen = replace(config or OfflineConfig(), **options)
    return quantize_offline(model, dataset, chosen, executor=executor, progress=progress)


def make_config(config: WeightConfig | None, options: Mapping[str, Any]) -> WeightConfig:
    """Return `config` (or the default) with some fields replaced.

    Raises
    ------
    ConfigError
        A field is unknown or its value is wrong.
    """
    known = {entry.name for entry in fields(WeightConfig)}
    for name in options:
        if name not in known:
            msg = f"unknown option; use {', '.join(sorted(known))}"
            raise ConfigError(msg, key=name)
    return replace(config or WeightConfig(), **options)


__all__ = [
    "QuantizedModel",
    "WeightConfig",
    "WeightMethod",
    "load",
    "make_config",
    "quantize",
    "quantize_weights",
]
