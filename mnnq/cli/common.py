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
    if sys.stdout.isatty():
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
    """One line on stderr that is rewritten while layers are quantized; silent when stderr is no terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._log = logging.getLogger("mnnq.progress")
        self._started = time.monotonic()

    def __call__(self, done: int, total: int, name: str) -> None:
        """Show that `done` of `total` layers are done and `name` is next."""
        self._log.info("layer %d of %d %s (%.1f s)", done, total, name, time.monotonic() - self._started)
        if not self._terminal:
            return
        now = time.monotonic()
        if done < total and now - self._last < 0.1:
            return
        self._last = now
        text = f"quantizing {done}/{total} {name}"[:78]
        sys.stderr.write(f"\r{text:<78}" if done < total else "\r" + " " * 78 + "\r")
        sys.stderr.flush()


def report_dict(
    source: Path, output: Path, written: int, report: QuantizationReport | None, seconds: float
) -> Mapping[str, Any]:
    """What ``--json`` prints after a file was written."""
    return {
        "input": str(source),
        "output": str(output),
        "bytes": written,
        "seconds": round(seconds, 3),
        **({} if report is None else report.to_dict()),
    }


def check_output(source: Path, output: Path) -> None:
    """Check that the result will not replace its source.

    Raises
    ------
    ConfigError
        It would.
    """
    from mnnq.errors import ConfigError

    if output.is_dir():
        msg = "the output is a directory; name a file"
        raise ConfigError(msg, file=str(output))
    if not output.parent.is_dir():
        msg = "the folder of the output does not exist"
        raise ConfigError(msg, file=str(output))
    if output.exists() and source.exists() and output.samefile(source):
        msg = "the output would replace the input; name another file with -o"
        raise ConfigError(msg, file=str(output))
