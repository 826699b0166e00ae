"""Files that name the class of each image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mnnq.errors import InputError


@dataclass(frozen=True)
class Labels:
    """Class index by file name.

    Attributes
    ----------
    path
        The file they come from, for messages.
    by_name
        Class index by file name as written, with ``/`` between folders.
    classes
        Names of the classes when the file has names instead of numbers.
    """

    path: Path
    by_name: Mapping[str, int]
    classes: tuple[str, ...] | None = None

    def of(self, name: str) -> int:
        """Class of an image, by its path in the folder or else by its bare name.

        Raises
        ------
        InputError
            The file does not name it.
        """
        if name in self.by_name:
            return self.by_name[name]
        bare = PurePosixPath(name).name
        found = {label for key, label in self.by_name.items() if PurePosixPath(key).name == bare}
        if len(found) == 1:
            return found.pop()
        if found:
            msg = f"it names several classes for files called {bare!r} in different folders"
            raise InputError(msg, file=str(self.path), key="labels")
        msg = f"it names no class for {name!r}"
        raise InputError(msg, file=str(self.path), key="labels")


def read_labels(path: Path) -> Labels:
    """Read lines of file name and class, separated by a tab, a comma or blanks; further columns are ignored.

    The class is an index from 0, or a name; names are numbered in sorted order. Empty lines, lines that begin with
    ``#``, and a first line of column names (whose second column is no number while all others are) are skipped.

    Raises
    ------
    InputError
        A line has no class, or names a file again with another class; its number is named.
    OSError
        The file cannot be read.
    """
    rows: list[tuple[int, str, str]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"not a text file: {error.reason}"
        raise InputError(msg, file=str(path), key="labels") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split("\t") if "\t" in line else re.split(r"\s*,\s*|\s+", line.strip())
        if len(columns) < 2 or not columns[0].strip() or not columns[1].strip():
            msg = f"line {number}: wanted a file name and a class, got {line.strip()!r}"
            raise InputError(msg, file=str(path), key="labels")
        rows.append((number, columns[0].strip(), columns[1].strip()))
    if len(rows) > 1 and not rows[0][2].isdigit() and all(row[2].isdigit() for row in rows[1:]):
        rows = rows[1:]
    if not rows:
        msg = "there are no labels in it"
        raise InputError(msg, file=str(path), key="labels")
    numeric = all(row[2].isdigit() for row in rows)
    classes = None if numeric else tuple(sorted({row[2] for row in rows}))
    index = {} if classes is None else {name: i for i, name in enumerate(classes)}
    by_name: dict[str, int] = {}
    for number, name, text in rows:
        label = int(text) if numeric else index[text]
        if by_name.setdefault(name.replace("\\", "/"), label) != label:
            msg = f"line {number}: {name!r} is there twice with different classes"
            raise InputError(msg, file=str(path), key="labels")
    return Labels(path, by_name, classes)
