"""`--help`: light to load, and every command ends with examples that parse."""

import argparse
import shlex
import subprocess
import sys

import pytest

from tpdist.cli import build_parser, main
from tpdist.cli.examples import EXAMPLES


def commands(parser: argparse.ArgumentParser) -> list[str]:
    """`tpdist`, `tpdist train`, `tpdist data`, `tpdist data prepare`, …"""
    found = [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [name for command in action.choices.values() for name in commands(command)]
    return found


@pytest.mark.parametrize("command", commands(build_parser()))
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]):
    assert 1 <= len(EXAMPLES[command]) <= 2, f"give {command!r} an example in tpdist/cli/examples.py"
    with pytest.raises(SystemExit):
        main([*command.split()[1:], "--help"])
    assert capsys.readouterr().out.endswith("".join(f"  {line}\n" for line in EXAMPLES[command]))


def test_there_are_no_others():
    assert set(EXAMPLES) == set(commands(build_parser()))


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
