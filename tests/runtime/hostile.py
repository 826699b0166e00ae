"""Damaged models, each loaded and run in a process of its own: ``python -m tests.runtime.hostile``.

Reads paths of `.mnn` files from the arguments, damages them by a seeded generator, and prints one JSON line per attempt:
file, what was done, how it ended (``ran``, ``refused``, ``wrong error``, ``signal``, ``hung``) and the message. The process
itself loads no model, so that it can fork a child per attempt cheaply and safely.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnnq.errors import MnnqError
from mnnq.runtime import InferenceSession, SessionOptions

#: Address space that a child may take beyond what it has when it starts.
MEMORY = 1 << 30
#: Seconds that an attempt may take.
TIMEOUT = 20.0
#: Elements of an input that are fed at most; larger ones get 1 for every axis.
MAX_INPUT = 1 << 18

KINDS = ("bits", "bytes", "words", "cut", "splice", "repeat", "header")


def damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """`data` with the damage `kind`."""
    out = bytearray(data)
    if kind == "bits":
        for at in rng.integers(0, len(out), int(rng.integers(1, 9))):
            out[at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        for at in rng.integers(0, len(out), int(rng.integers(1, 5))):
            out[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
    elif kind == "words":
        at = int(rng.integers(0, max(len(out) // 4, 1))) * 4
        value = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, int(rng.integers(2**32))]))
        out[at : at + 4] = value.to_bytes(4, "little")
    elif kind == "cut":
        del out[int(rng.integers(0, len(out))) :]
    elif kind == "splice":
        length = int(rng.integers(1, 65))
        source, target = (int(v) for v in rng.integers(0, len(out), 2))
        out[target : target + length] = data[source : source + length]
    elif kind == "repeat":
        start = int(rng.integers(0, len(out)))
        out[start:start] = data[start : start + int(rng.integers(1, 65))]
    elif kind == "header":
        # Small numbers in the tables and vectors at the front and back, where the graph is, not the weights.
        ends = [i for i in range(len(out)) if i < 2048 or i >= len(out) - 2048]
        for at in rng.choice(ends, int(rng.integers(1, 5))):
            out[at] = int(rng.integers(256))
    return bytes(out)


def feeds(session: InferenceSession, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Small arrays of the shapes and types that the inputs of a session state."""
    found = {}
    for port in session.get_inputs():
        shape = [n if isinstance(n, int) else 2 for n in port.shape]
        if np.prod(shape, dtype=float) > MAX_INPUT:
            shape = [1] * len(shape)
        kinds = {f"tensor({name})": np.float32 for name in ("float", "float16", "double")}
        kinds |= {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
        dtype = kinds.get(port.type, np.int32)
        array = rng.standard_normal(shape) if dtype == np.float32 else rng.integers(0, 3, shape)
        found[port.name] = array.astype(dtype)
    return found


def attempt(data: bytes, seed: int) -> tuple[str, str]:
    """Load and run `data` in this process: how it ended and the message."""
    rng = np.random.default_rng(seed)
    modes: list[dict[str, Any]] = [
        {},
        {"memory": "low"},
        {"memory": "low", "dynamic": "always"},
        {"precision": "low"},
        {"fuse": False},
    ]
    options = SessionOptions(
        **{"threads": 1 + seed % 2, "max_loop_iterations": 1 << 14, **modes[seed % len(modes)]}
    )
    try:
        session = InferenceSession(data, options)
        session.get_outputs()
        for _ in range(2):
            session.run(None, feeds(session, rng))
    except MnnqError as error:
        return ("refused", str(error)) if str(error).strip() else ("wrong error", "no message")
    except BaseException as error:
        return "wrong error", f"{type(error).__name__}: {error}"
    return "ran", ""


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def in_child(data: bytes, seed: int) -> tuple[str, str]:
    """`attempt` in a child with limits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(write, 2)  # what a panic or an abort prints is part of the answer
        result = attempt(data, seed)
        os.write(write, ("\0" + json.dumps(result)[:60000]).encode())
        os._exit(0)
    os.close(write)
    text, end = b"", time.monotonic() + TIMEOUT
    while True:
        ready, _, _ = select.select([read], [], [], max(end - time.monotonic(), 0))
        chunk = os.read(read, 65536) if ready else None
        if not chunk:
            break
        text += chunk
    os.close(read)
    if chunk is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hung", f"no answer within {TIMEOUT:g} s"
    _, status = os.waitpid(child, 0)
    printed, _, answer = text.decode(errors="replace").partition("\0")
    if os.WIFSIGNALED(status):
        return "signal", f"{signal.Signals(os.WTERMSIG(status)).name}: {printed.strip()[-500:]}"
    outcome, message = json.loads(answer)
    return outcome, message


def attempts(paths: list[Path], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Damage and run `count` models; the results in order."""
    for number in range(seed, seed + count):
        rng = np.random.default_rng(number)
        path = paths[int(rng.integers(len(paths)))]
        kind = KINDS[int(rng.integers(len(KINDS)))]
        data = damage(path.read_bytes(), kind, rng)
        started = time.monotonic()
        outcome, message = in_child(data, number)
        yield {"file": path.name, "number": number, "kind": kind, "outcome": outcome, "message": message,
               "seconds": round(time.monotonic() - started, 2)}  # fmt: skip


def main() -> None:
    """Print a JSON line per attempt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    for result in attempts(options.paths, options.count, options.seed):
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
