"""`--help`: it names every argument, ends with examples that parse, and is light to load."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

import pytest

from tpdist.cli import build_parser, main
from tpdist.cli.examples import EXAMPLES
from tpdist.config import Data

COMMANDS = [
    ([], ["train", "evaluate", "sample", "data", "config"]),
    (["train"], ["CONFIG", "--resume RUN", "--run-dir DIR", "--set KEY=VALUE"]),
    (
        ["evaluate"],
        [
            "RUN",
            "--split",
            "--h-steps N",
            "--h-lr LR",
            "--theta-steps N",
            "--theta-lr LR",
            "--by-position",
            "--model",
            "--set",
        ],
    ),
    (["sample"], ["RUN", "--prompt", "--tokens N", "--temperature", "--top-k K", "--seed", "--model", "--set"]),
    (["bench"], ["step", "arms", "head", "batch", "overlap", "checkpoint", "evaluation", "scaling", "timeparallel"]),
    (["bench", "step"], ["--device", "--json FILE"]),
    (["data"], ["prepare", "verify"]),
    (["data", "prepare"], ["--out DIR", "--source PATH", "--train FILE", "--level", "--max-types N", "--min-count N"]),
    (["data", "verify"], ["DIR"]),
    (["config"], ["show", "schema"]),
    (["config", "show"], ["CONFIG", "--set"]),
    (["config", "schema"], ["-h"]),
]


@pytest.mark.parametrize(("command", "names"), COMMANDS)
def test_help(command: list[str], names: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['tpdist', *command])} ")
    for name in names:
        assert name in text


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Of `tpdist`, `tpdist train`, `tpdist data`, `tpdist data prepare`, …"""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


PARSERS = list(parsers(build_parser()))


def test_every_argument_has_a_help_text():
    arguments = [(parser.prog, action) for parser in PARSERS for action in parser._actions]
    commands = argparse._SubParsersAction
    assert [(prog, a.dest) for prog, a in arguments if not a.help and not isinstance(a, commands)] == []


def test_the_choices_of_data_prepare_are_those_of_the_settings():
    """Copies of them: to read them off the models would load pydantic."""
    (prepare,) = (parser for parser in PARSERS if parser.prog == "tpdist data prepare")
    choices = {action.dest: tuple(action.choices) for action in prepare._actions if action.choices}
    assert choices == {name: get_args(Data.model_fields[name].annotation) for name in ("recipe", "level")}


def test_an_option_of_several_values_may_be_given_again():
    lists = [
        action for parser in PARSERS for action in parser._actions if action.nargs == "+" and action.option_strings
    ]
    assert {action.option_strings[0] for action in lists} == {"--set", "--cells"}
    for action in lists:
        assert isinstance(action, argparse._ExtendAction), action.option_strings  # else the last one alone counts


@pytest.mark.parametrize("command", [parser.prog for parser in PARSERS])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]):
    assert 1 <= len(EXAMPLES[command]) <= 2, f"give {command!r} an example in tpdist/cli/examples.py"
    with pytest.raises(SystemExit):
        main([*command.split()[1:], "--help"])
    assert capsys.readouterr().out.endswith("".join(f"  {line}\n" for line in EXAMPLES[command]))


def test_there_are_no_others():
    assert set(EXAMPLES) == {parser.prog for parser in PARSERS}


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_examples_parse_and_are_of_their_command(command: str, line: str):
    words = shlex.split(line.partition(" > ")[0])
    assert words[: len(command.split())] == command.split()
    build_parser().parse_args(words[1:])


COUNT = """
import sys
from tpdist.cli import main
try:
    main({0!r})
except SystemExit:
    pass
print(sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["no-such-command"]])
def test_nothing_heavy_is_loaded_for_help(arguments: list[str]):
    done = subprocess.run([sys.executable, "-c", COUNT.format(arguments)], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert "argparse" in loaded
    assert not loaded & {"torch", "ray", "pydantic", "yaml", "numpy", "pyarrow", "rich", "safetensors", "tensorboard"}


def test_import_tpdist_is_light():
    code = "import sys, tpdist; print(bool({'torch', 'ray', 'pydantic', 'yaml'} & set(sys.modules)), dir(tpdist) != [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
