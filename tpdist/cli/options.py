"""Options that many commands take, and what lies above what."""

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from typing import Any

from tpdist.errors import VARIABLE, OutputError, Setting, TpdistError, key_of, of_variable
from tpdist.experiments.modules import json_file


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE …`: what lies above the file."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override settings, see config show"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """`CONFIG`, which may be left out."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")


def add_run(parser: argparse.ArgumentParser) -> None:
    """`RUN`."""
    parser.add_argument("run", metavar="RUN", help="the run's directory")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model best` or `last`."""
    parser.add_argument(
        "--model",
        choices=("best", "last"),
        default="best",
        help="of the best epoch on validation, or the last; default best",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """`--address` of a Ray cluster, to run on."""
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster: auto, or host:port; default an embedded one"
    )


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    """`--address` of a cluster's dashboard, which takes jobs."""
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard; default http://127.0.0.1:8265")


def add_json_file(parser: argparse.ArgumentParser, what: str) -> None:
    """`--json FILE`, beside the text that is printed. what: what it holds."""
    parser.add_argument("--json", type=json_file, metavar="FILE", help=f"write {what} here")


def name(text: str) -> str:
    """The type of an argument that names a file or a directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def number(text: str) -> float:
    """The type of an argument that is a number; infinity and not-a-number are none."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def add_quiet(parser: argparse.ArgumentParser, json: str) -> None:
    """`--quiet` and `--json`. json: what it prints."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help=f"print {json} as JSON, and nothing else")


def add_dry_run(parser: argparse.ArgumentParser, what: str) -> None:
    """`--dry-run`. what: what it says."""
    parser.add_argument("--dry-run", action="store_true", help=f"check everything, print {what}, and do nothing")


def say(text: str, end: str = "\n", flush: bool = False) -> None:
    """Print a command's answer. Raises OutputError where the system refuses, BrokenPipeError where nobody reads."""
    try:
        print(text, end=end, flush=flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError.of(error) from error


def print_lines(lines: list[str], options: argparse.Namespace) -> None:
    """What `--dry-run` says; one list where JSON is asked for, and nothing where quiet is."""
    if options.json:
        print_json({"dry_run": lines})
    elif not options.quiet:
        say("\n".join(lines))


def settings(flags: list[str]) -> list[str]:
    """Those of `TPDIST_SET`, words as a shell reads them, below those of `--set`."""
    try:
        words = shlex.split(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise TpdistError(
            f"{VARIABLE}: {error}; write key=value, such as {VARIABLE}='run.epochs=2 run.seed=1'"
        ) from None
    return above([Setting(word, VARIABLE) for word in words], flags)


def above(lower: Sequence[str], upper: Sequence[str]) -> list[str]:
    """Both, without what the variable says of keys that `upper` sets."""
    keys = {key_of(text) for text in upper}
    kept = [one for one in lower if not (of_variable(one) and key_of(one) in keys)]
    return [*kept, *upper]


def print_json(value: Any) -> None:
    from tpdist.training.files import json_text

    say(json_text(value), end="")
