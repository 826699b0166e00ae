"""What the commands share: options, progress, printing."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mnnq.ir.model import Model
    from mnnq.quantization.offline.report import OfflineReport
    from mnnq.report.quantization import QuantizationReport
    from mnnq.report.tables import Table

_F = TypeVar("_F", bound=Callable[..., Any])

#: Layers named one by one in warnings; the rest are counted.
MAX_WARNINGS = 20


if TYPE_CHECKING:
    ParamBase = click.ParamType[Any]
else:  # not generic before click 8.3
    ParamBase = click.ParamType


def example(line: str) -> str:
    """Epilog of a command's help: one example, not wrapped."""
    return f"\b\nExample:\n  {line}"


class ShapeOption(ParamBase):
    """``name=1x3x224x224`` (``,`` works as well as ``x``)."""

    name = "name=shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        name, equals, shape = str(value).rpartition("=")
        if not equals or not re.fullmatch(r"(\d+([x,]\d+)*)?", shape):
            self.fail(f"{value!r} is not of the form name=1x3x224x224", param, ctx)
        return name, tuple(int(d) for d in re.split("[x,]", shape) if d)


def input_shapes(function: _F) -> _F:
    """Add ``--input-shape``."""
    return click.option(
        "--input-shape",
        "shapes",
        type=ShapeOption(),
        multiple=True,
        metavar="NAME=SHAPE",
        help="Fix the shape of an input with symbolic axes, e.g. input=1x3x224x224. Repeatable.",
    )(function)


def qdq_option(function: _F) -> _F:
    """Add ``--qdq``."""
    return click.option(
        "--qdq",
        type=click.Choice(["native", "float"]),
        default="native",
        show_default=True,
        help="Quantization that an ONNX file carries (Q/DQ pairs, QOperator): int8 layers with its scales, or float operators.",
    )(function)


def tell_imported(model: Model) -> None:
    """Say on stderr what became of the quantization of a source that had one."""
    if model.imported is not None:
        for line in model.imported.summary():
            note(line)


def imported_dict(model: Model) -> dict[str, Any]:
    """What ``--json`` prints of it."""
    return {} if model.imported is None else {"imported": model.imported.to_dict()}


def _set_logging(_ctx: click.Context, _param: click.Parameter, count: int) -> None:
    if count:
        level = logging.INFO if count == 1 else logging.DEBUG
        logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")


def print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Print the version and end."""
    if value and not ctx.resilient_parsing:
        import mnnq

        click.echo(f"mnnq {mnnq.__version__}")
        ctx.exit()


def verbosity(function: _F) -> _F:
    """Add ``-v`` and ``--debug``."""
    return _verbosity(function, "-v", "--verbose")


def verbosity_without_short_form(function: _F) -> _F:
    """Add ``--verbose`` and ``--debug``, where ``-v`` means something else."""
    return _verbosity(function, "--verbose")


def _verbosity(function: _F, *names: str) -> _F:
    function = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show a traceback when something fails."
    )(function)
    return click.option(
        *names, count=True, expose_value=False, callback=_set_logging, help="Log progress; twice logs more."
    )(function)


def json_option(function: _F) -> _F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of tables.")(
        function
    )


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(table: Table) -> None:
    """Print a table: rich on a terminal, plain text elsewhere."""
    if sys.stdout is not None and sys.stdout.isatty():
        table.print_rich()
    else:
        click.echo(table.text(), nl=False)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"warning: {message}", err=True)


def note(message: str) -> None:
    """Print a remark on stderr."""
    click.echo(f"note: {message}", err=True)


def warn_all(messages: Iterable[str]) -> None:
    """Print warnings on stderr, the first `MAX_WARNINGS` of them in full."""
    lines = list(messages)
    for line in lines[:MAX_WARNINGS]:
        warn(line)
    if len(lines) > MAX_WARNINGS:
        warn(f"... and {len(lines) - MAX_WARNINGS} more (--json lists all)")


class ProgressLine:
    """One line on stderr that is rewritten while something goes on; silent when stderr is no terminal.

    Parameters
    ----------
    unit, verb
        What is counted, and what is done with it.
    """

    def __init__(self, unit: str = "layer", verb: str = "quantizing") -> None:
        self._unit, self._verb = unit, verb
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._last = 0.0
        self._log = logging.getLogger("mnnq.progress")
        self._started = time.monotonic()

    def __call__(self, done: int, total: int, name: str) -> None:
        """Show that `done` of `total` units are done and `name` is next."""
        self._log.info(
            "%s %d of %d %s (%.1f s)", self._unit, done, total, name, time.monotonic() - self._started
        )
        if not self._terminal:
            return
        now = time.monotonic()
        if done < total and now - self._last < 0.1:
            return
        self._last = now
        elapsed = now - self._started
        left = f", {elapsed / done * (total - done):.0f} s left" if done and elapsed > 5 else ""
        text = f"{self._verb} {done}/{total}{left} {name}"[:78]
        sys.stderr.write(f"\r{text:<78}" if done < total else "\r" + " " * 78 + "\r")
        sys.stderr.flush()


def report_dict(
    source: Path,
    output: Path,
    written: int,
    report: QuantizationReport | OfflineReport | None,
    seconds: float,
) -> Mapping[str, Any]:
    """What ``--json`` prints after a file was written."""
    return {
        "input": str(source),
        "output": str(output),
        "bytes": written,
        "seconds": round(seconds, 3),
        **({} if report is None else report.to_dict()),
    }


def check_source(source: Path) -> None:
    """Check that there is a file to read.

    Raises
    ------
    ConfigError
        It is a folder.
    OSError
        It does not exist or cannot be read.
    """
    from mnnq.errors import ConfigError

    if source.is_dir():
        msg = "it is a folder; name a model file"
        raise ConfigError(msg, file=str(source))
    source.open("rb").close()


def check_output(output: Path, others: Mapping[str, Path | None], *, what: str = "the output") -> None:
    """Check that a file can be written, before any work is done.

    Parameters
    ----------
    others
        Files of the same command that it must not replace, by what they are called in the error.

    Raises
    ------
    ConfigError
        It is a folder or a device, its folder does not exist, or it is one of `others`.
    """
    from mnnq.errors import ConfigError

    problem = None
    hit = [name for name, other in others.items() if other is not None and _same_file(output, other)]
    if output.is_dir():
        problem = f"{what} is a folder; name a file"
    elif output.exists() and not output.is_file():
        problem = f"{what} is a device or a pipe; name a regular file"
    elif not output.parent.is_dir():
        problem = f"the folder of {what} does not exist"
    elif hit:
        problem = f"{what} would replace {hit[0]}; name another file"
    if problem is not None:
        raise ConfigError(problem, file=str(output))


def _same_file(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
