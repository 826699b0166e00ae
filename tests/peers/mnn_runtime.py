"""The real MNN runtime in a process of its own: it may die on a file, the tests must not.

`MnnRuntime.run` sends one model to a worker process and returns its outputs; a worker that dies is replaced
and the death reported as `MnnCrash`.
"""

from __future__ import annotations

import functools
import multiprocessing as mp
import os
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from mnnq import _engine_worker


class MnnError(RuntimeError):
    """The runtime refused the model or could not run it."""


class MnnCrash(MnnError):
    """The runtime's process died or hung."""


class MnnRuntime:
    """Runs `.mnn` files in the MNN wheel, CPU, one thread.

    Parameters
    ----------
    timeout
        Seconds after which a run counts as hung.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._process: mp.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(
        self,
        model: str | Path | bytes,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        *,
        memory_low: bool = False,
        precision: str = "normal",
    ) -> dict[str, np.ndarray]:
        """Outputs of a model by name, in NCHW order.

        Parameters
        ----------
        feeds
            Arrays by input name; 64-bit and boolean ones are passed as int32, other floats as float32.
        memory_low
            ``Memory_Low``: integer weights with activations quantized at run time.
        precision
            "normal", "high" or "low".
        """
        if isinstance(model, bytes):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.mnn"
                path.write_bytes(model)
                return self.run(path, feeds, outputs, memory_low=memory_low, precision=precision)
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._pipe.send((str(model), dict(feeds), list(outputs), memory_low, precision))
        try:
            if not self._pipe.poll(self.timeout):
                msg = f"no answer within {self.timeout} s"
                raise MnnCrash(msg)
            result = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)  # type: ignore[union-attr]
            code = self._process.exitcode if self._process else None
            self.close()
            msg = f"the process died, exit status {code}"
            raise MnnCrash(msg) from error
        except MnnCrash:
            self.close()
            raise
        if isinstance(result, str):
            raise MnnError(result)
        return result

    def close(self) -> None:
        """End the worker process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Connection) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_run(*request))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def _run(
    path: str, feeds: dict[str, np.ndarray], outputs: list[str], memory_low: bool, precision: str
) -> dict[str, np.ndarray]:
    written = Path(path).stat().st_mtime_ns
    module = _load(path, tuple(feeds), tuple(outputs), memory_low, precision, written)
    return dict(zip(outputs, _engine_worker.forward(module, feeds.values()), strict=True))


@functools.lru_cache(maxsize=1)
def _load(
    path: str, names: tuple[str, ...], outputs: tuple[str, ...], memory_low: bool, precision: str, _mtime: int
) -> Any:
    """The loaded module; the last one is kept, so that many inputs can be run on it."""
    return _engine_worker.load_module(path, names, outputs, memory_low=memory_low, precision=precision)
