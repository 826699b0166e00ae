"""Other programs that run models, each in a process of its own: they may die on a model, we must not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.errors import ConfigError, MnnqError, UnsupportedError

Arrays = dict[str, npt.NDArray[Any]]


class EngineError(MnnqError):
    """A program that runs models refused one, died, or took too long."""


def installed(engine: str) -> bool:
    """Whether an engine (``"mnn"``, ``"onnxruntime"`` or ``"mnnq"``, which always is) can be used here."""
    return (
        engine == "mnnq"
        or importlib.util.find_spec({"mnn": "MNN", "onnxruntime": "onnxruntime"}[engine]) is not None
    )


def require(engine: str) -> None:
    """Check that an engine is installed.

    Raises
    ------
    ConfigError
        It is not; the message says how to install it.
    """
    if not installed(engine):
        package = {"mnn": "MNN", "onnxruntime": "onnxruntime"}[engine]
        msg = f"{package} is not installed; `pip install mnnq[verify]` installs it"
        raise ConfigError(msg)


def _environment() -> dict[str, str]:
    """Variables of the worker: it finds this package where we found it, also when that is no folder of its own path."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_engine(
    engine: str,
    model: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    timeout: float = 600.0,
) -> Arrays:
    """Run a model once and return its outputs by name.

    Parameters
    ----------
    engine
        ``"onnxruntime"`` for an ONNX file; for a `.mnn` file ``"mnn"`` (the MNN wheel, CPU) or ``"mnnq"`` (our own).
    feeds
        Input arrays by name.
    options
        For `.mnn` files: ``memory_low`` (bool), ``precision`` (``"normal"``, ``"high"``, ``"low"``), ``threads``; for ``"mnnq"``
        also ``dynamic`` and ``int8`` as in `SessionOptions`, ``"auto"`` and ``"compat"`` by default.
    timeout
        Seconds after which the run counts as hung.

    Raises
    ------
    EngineError
        The engine refused the model, died or hung.
    UnsupportedError
        Our own runtime does not have an operator of the model.
    ConfigError
        The engine is not installed.
    """
    require(engine)
    with tempfile.TemporaryDirectory(prefix="mnnq-") as folder:
        base = Path(folder)
        keys = {f"a{i}": name for i, name in enumerate(feeds)}
        arrays: dict[str, Any] = {key: np.asarray(feeds[name]) for key, name in keys.items()}
        np.savez(base / "in.npz", **arrays)
        request = {
            "engine": engine,
            "model": str(model),
            "feeds": keys,
            "outputs": list(outputs),
            "options": dict(options or {}),
        }
        (base / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "mnnq._engine_worker", folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False, env=_environment()
            )
        except subprocess.TimeoutExpired:
            msg = f"{engine} gave no answer within {timeout:g} s"
            raise EngineError(msg, file=str(model)) from None
        answer = base / "answer.json"
        if not answer.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            how = f"died (exit status {done.returncode})" + (f": {last[0]}" if last else "")
            msg = f"{engine} {how}"
            raise EngineError(msg, file=str(model))
        reply = json.loads(answer.read_text())
        if "problems" in reply:
            raise UnsupportedError(reply["problems"], file=str(model))
        if "error" in reply:
            msg = f"{engine}: {reply['error']}"
            raise EngineError(msg, file=str(model))
        with np.load(base / "out.npz") as found:
            return {name: found[f"a{i}"] for i, name in enumerate(outputs)}
