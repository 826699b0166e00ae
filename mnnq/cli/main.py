"""Entry point of ``mnnq``: finds the command, turns errors into one line and an exit status.

Exit status: 0 success, 1 a check failed, 2 wrong use or bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from mnnq.cli import common

#: Commands: name -> (module, one-line help). Modules are imported only when their command runs.
COMMANDS = {
    "quant": (
        "mnnq.cli.quant",
        "Quantize a model (ONNX or .mnn), its weights or all of it to int8; write a .mnn file.",
    ),
    "convert": ("mnnq.cli.convert", "Convert an ONNX model to .mnn without quantizing it."),
    "info": ("mnnq.cli.info", "Show inputs, operators and how each layer's weights are stored."),
    "run": ("mnnq.cli.run", "Run a model in mnnq's own runtime and show its outputs."),
    "bench": ("mnnq.cli.bench", "Time a model in mnnq's own runtime, as a whole and per operator."),
    "verify": ("mnnq.cli.verify", "Run a .mnn file against its ONNX model and compare the outputs."),
    "compare": ("mnnq.cli.compare", "Compare two versions of a model layer by layer on real data."),
    "mnnquant": (
        "mnnq.cli.mnnquant",
        "Accept the form of MNN's own quantization tool: static int8 by a quant.json.",
    ),
    "mnnconvert": ("mnnq.cli.mnn_flags", "Accept the options of MNN's own converter."),
}


class CheckFailed(Exception):
    """A comparison did not pass; the report is printed already."""


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=common.example("mnnq quant resnet50.onnx --bits 4 --block 64 -o resnet50-w4.mnn"),
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=common.print_version,
    help="Show the version.",
)
def cli() -> None:
    """Compress trained neural networks into MNN files and run them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(args))


def run(args: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        result = cli.main(list(args), prog_name="mnnq", standalone_mode=False)
        _flush()
    except CheckFailed:
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("mnnq: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        if "--debug" in args:
            raise
        text = _describe(error)
        if text:
            click.echo(text, err=True)
        return 2
    return result if isinstance(result, int) else 0


def _flush() -> None:
    sys.stdout.flush()


def _describe(error: Exception) -> str:
    """One line for an error: what, where, and nothing of how mnnq is made."""
    from mnnq.errors import MnnqError

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return f"mnnq: error: {error.format_message()}{hint}"
    if isinstance(error, MnnqError):
        return f"mnnq: error: {error}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"mnnq: error: {where}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "mnnq: error: not enough memory"
    return f"mnnq: internal error: {type(error).__name__}: {error} (--debug shows where; please report it)"
