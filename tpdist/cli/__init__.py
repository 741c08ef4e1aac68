"""The front door: `tpdist COMMAND`. Reads the command line, calls the rooms below, prints. No logic.

Nothing heavy is imported before a command runs: `--help` takes no longer than Python does.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from tpdist import __version__
from tpdist.cli import experiments, inputs, machines, runs
from tpdist.cli.examples import examples_of
from tpdist.cli.options import say, settings
from tpdist.errors import ArgumentError, OutputError, TpdistError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 something to mend, 2 bad input, 3 a number that is not finite, 130 stopped by the user."""
    _ready_streams()
    parser = build_parser()
    try:
        if "_ARGCOMPLETE" in os.environ:
            from tpdist.cli.completion import complete

            complete(parser)
        options = parser.parse_args(arguments)
        _refuse_deleted_directory()
        if hasattr(options, "set"):
            options.set = settings(options.set)
        code = options.command(options)
        say("", end="", flush=True)
    except TpdistError as error:
        _complain(error.at_command_line if isinstance(error, ArgumentError) else str(error))
        if isinstance(error, OutputError):
            _silence(sys.stdout)
        return error.exit_code
    except BrokenPipeError:  # nobody reads any more (`| head`)
        _silence(sys.stdout)
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return code or 0


def _ready_streams() -> None:
    """A closed stream (`>&-`) goes nowhere; a character that an encoding lacks, as ASCII does θ, becomes an escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_deleted_directory() -> None:
    """Raise TpdistError where relative paths begin nowhere."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise TpdistError("this directory has been deleted; change into another") from None


def _complain(line: str) -> None:
    """An error, in one line. Where it cannot be printed, the exit code says it alone."""
    try:
        print(f"tpdist: {line}", file=sys.stderr)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """What else is printed there at the end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; help ends with examples."""

    def format_help(self) -> str:
        return super().format_help() + examples_of(self.prog)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        say("", end="", flush=True)  # help and version: what goes wrong with them is told as everywhere
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    parser = Parser(prog="tpdist", description="Train recurrent language models by target propagation.")
    parser.add_argument("--version", action="version", version=f"tpdist {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for family in (runs, machines, experiments, inputs):
        family.add(commands)
    return parser
