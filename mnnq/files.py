"""Files: writing small ones so that a failure leaves nothing half-written, telling kinds apart."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and move it there when it is complete.

    Raises
    ------
    OSError
        The file cannot be written, or is a device or folder; a file that was there before is unchanged.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it exists and is no regular file", str(path))
    target = path.resolve()
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):  # the name of the temporary file says nothing to the user
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def is_mnn(path: Path) -> bool:
    """Whether a file is a `.mnn` file by its name."""
    return path.suffix.lower() == ".mnn"


def looks_like_mnn(path: Path) -> bool:
    """Whether a file starts as `.mnn` files do: with a small, aligned offset of the root table."""
    with path.open("rb") as file:
        start = file.read(4)
    offset = int.from_bytes(start, "little")
    return len(start) == 4 and 0 < offset < 256 and offset % 4 == 0


def looks_like_onnx(path: Path) -> bool:
    """Whether a file starts as ONNX files do: with a small IR version, the first field of the message."""
    with path.open("rb") as file:
        start = file.read(3)
    return len(start) == 3 and start[0] == 0x08 and 0 < start[1] < 0x40 and start[2] & 7 in (0, 2)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
