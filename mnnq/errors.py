"""Exceptions of mnnq. Each carries the place it speaks of as attributes and in its text."""

from __future__ import annotations

from collections.abc import Sequence


class MnnqError(Exception):
    """Base class of all errors that mnnq raises on purpose.

    Parameters
    ----------
    message
        What is wrong, what was wanted.
    file
        File concerned, if any.
    node
        Operator or node concerned, if any.
    key
        Field, attribute or configuration key concerned, if any.
    """

    def __init__(
        self, message: str, *, file: str | None = None, node: str | None = None, key: str | None = None
    ) -> None:
        self.message = message
        self.file = file
        self.node = node
        self.key = key
        super().__init__(message)

    def __str__(self) -> str:
        """One line: file, node and key in front of the message."""
        node = f"node {self.node!r}" if self.node else None
        return ": ".join(part for part in (self.file, node, self.key, self.message) if part)


class ConfigError(MnnqError):
    """An option or a configuration file has a wrong name or value."""


class ModelError(MnnqError):
    """A source model cannot be read or breaks its own format's rules."""


class FormatError(ModelError):
    """A `.mnn` file breaks an invariant of the format, or a model cannot be stored in it."""


class UnsupportedError(MnnqError):
    """A model uses what mnnq cannot convert or run exactly.

    Parameters
    ----------
    problems
        One line per unsupported operator or attribute, with the node's name.
    """

    def __init__(self, problems: Sequence[str], *, file: str | None = None) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = "1 thing is not supported" if count == 1 else f"{count} things are not supported"
        super().__init__("\n  ".join([f"{head}:", *self.problems]), file=file)


class QuantizationError(MnnqError):
    """Weights or activations cannot be quantized as asked."""


class InputError(MnnqError, ValueError):
    """An input of a model is missing, unknown, or has the wrong type or shape; `key` names it."""

    def __str__(self) -> str:
        """As of other errors, without the key in front of a message that names it anyway."""
        if self.key is None or self.key not in self.message:
            return super().__str__()
        return ": ".join(part for part in (self.file, self.message) if part)


class ExecutionError(MnnqError, RuntimeError):
    """A model cannot be planned or run on the inputs it was given."""
