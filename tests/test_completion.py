"""What the shell offers after Tab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpdist.config.keys import all_keys

pytest.importorskip("argcomplete", reason="needs pip install 'tpdist[completion]'")


def offered(line: str, directory: Path) -> list[str]:
    """As bash asks: the line so far in the environment, the answer on a file."""
    answer = directory / "answer"
    shell = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",  # bash's own: it completes what follows the last of them
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
        "COMP_TYPE": "9",
    }
    code = "import sys; sys.argv[0] = 'tpdist'; from tpdist.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **shell}, cwd=directory, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return [word.strip() for word in answer.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("tpdist tr", ["train"]),
        ("tpdist data pre", ["prepare"]),
        ("tpdist evaluate r --split t", ["train", "test"]),
        ("tpdist train mine", ["mine.yaml"]),
        ("tpdist train mine.yaml --set method.h_st", ["method.h_steps="]),
        ("tpdist train mine.yaml --set run.epochs=2 method.starts=", ["tied", "held"]),
        ("tpdist train mine.yaml --set method.name=co", ["costate"]),
        ("tpdist train mine.yaml --set preset=", ["paper", "released"]),  # or null
        ("tpdist train mine.yaml --set run.track=", []),  # takes a list
        ("tpdist train mine.yaml --set run.epochs=", []),
    ],
)
def test_tab(line: str, wanted: list[str], tmp_path: Path):
    (tmp_path / "mine.yaml").touch()
    assert offered(line, tmp_path) == wanted


def test_every_setting_is_offered():
    from tpdist.cli.completion import settings

    keys = settings("")
    assert {"model.hidden=", "method.dual.lr=", "run.seed=", "cluster.workers=", "cluster.workers.min="} <= set(keys)
    assert {key.rstrip("=") for key in keys} < set(all_keys())
    assert not {"model=", "method.dual="} & set(keys)
