"""What the README says works: its Python runs, its commands parse, the keys it sets exist."""

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from documents import ROOT, blocks, broken_links, commands, files
from problems import BLOCKS, STREAMS, Problem

from tpdist.cli import build_parser, main
from tpdist.cli.examples import EXAMPLES
from tpdist.config import BUILT_IN_CELLS, BUILT_IN_PENALTIES, Data, load_config
from tpdist.config.parts import Method
from tpdist.experiments.points import expand
from tpdist.tprop import Alone, Boundaries

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "RESULTS.md", "ARCHITECTURE.md")
# makes any configuration small enough for a test
SMALL = ["model.hidden=8", "run.epochs=1", "batching.streams=32"]


def python_block(with_text: str) -> str:
    (block,) = [block for block in blocks("README.md", "python") if with_text in block]
    return block


EVERY_COMMAND = [(document, words) for document in DOCUMENTS for words in commands(document)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `configs/`, as a clone has it, to run in."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("document", "words"), EVERY_COMMAND, ids=lambda value: str(value)[:60])
def test_commands_parse_and_their_settings_exist(document: str, words: list[str], tmp_path: Path):
    options = build_parser().parse_args(words)
    config = getattr(options, "config", None)
    file = None if config is None else ROOT / config
    if config in files(document):
        file = tmp_path / config
        file.write_text(files(document)[config], encoding="utf-8")
    assert file is None or file.is_file(), f"{document}: {config}"
    load_config(file, getattr(options, "set", []))


@pytest.mark.parametrize(
    "words", [words for _, words in EVERY_COMMAND if words[0] == "reproduce"], ids=lambda words: " ".join(words)[:80]
)
def test_what_is_to_be_reproduced_has_points(words: list[str]):
    """Every cell is there, and its configuration takes the settings that the command changes."""
    options = build_parser().parse_args(words)
    device = [f"run.device={options.device}"] if options.device else []
    assert expand(ROOT / "configs/paper" / f"{options.what}.yaml", [*options.set, *device], options.cells)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str):
    assert broken_links(document) == []


def test_the_readme_shows_every_command():
    def command(words: list[str]) -> tuple[str, ...]:
        return tuple(words[: 2 if words[0] in ("data", "config") else 1])

    wanted = {command(name.split()[1:]) for name in EXAMPLES if " " in name}
    assert wanted - {("data",), ("config",)} == {command(words) for words in commands("README.md")}
    recipes = {words[2] for words in commands("README.md") if words[:2] == ["data", "prepare"]}
    assert recipes == {*get_args(Data.model_fields["recipe"].annotation)}


def test_the_readme_names_what_is_built_in():
    methods = get_args(Method.model_fields["name"].annotation)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*BUILT_IN_CELLS, *BUILT_IN_PENALTIES, *methods) if f"`{name}`" not in text] == []


def test_the_python_example_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    # the example as it stands, on a smaller model and a shorter run
    import tpdist

    real = tpdist.load_config
    monkeypatch.setattr(tpdist, "load_config", lambda path, overrides=(): real(path, _replaced(overrides)))
    exec(compile(python_block("runs/first"), "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
    assert (elsewhere / "runs" / "first" / "result.json").is_file()


@pytest.mark.parametrize("module", sorted(name[:-3] for name in files("README.md") if name.endswith(".py")))
def test_own_code_trains(module: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    """The file as it stands, and the command below it on a smaller model."""
    code = files("README.md")[f"{module}.py"]
    assert len(code.splitlines()) < 30
    (elsewhere / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(elsewhere))
    (words,) = [words for words in commands("README.md") if any(module in word for word in words)]
    options = build_parser().parse_args(words)
    assert main(["train", options.config, "--run-dir", "runs/own", "--set", *_replaced(options.set)]) == 0
    assert (elsewhere / "runs" / "own" / "result.json").is_file()
    if module == "my_methods":  # which is the run's method
        assert '"method": "my_methods:damped"' in (elsewhere / "runs" / "own" / "result.json").read_text()
        assert main(["report", "runs/own", "--out", "own.html"]) == 0
        assert "<td>my_methods:damped</td>" in (elsewhere / "own.html").read_text()


def test_the_own_visit_steps_as_often_as_workers_without_a_block(monkeypatch: pytest.MonkeyPatch):
    """The sum of gradients waits for all of them."""
    code: dict[str, Any] = {}
    exec(compile(files("README.md")["my_methods.py"], "README.md", "exec"), code)
    method = {"name": "bptt", "first": "persistent", "relaxation": 1, "theta_steps": 3}
    problem, steps = Problem(method=method), []
    monkeypatch.setattr(problem.theta, "step", steps.append)
    boundaries = Boundaries.for_plan(problem.plan, STREAMS, BLOCKS, problem.model)
    code["damped"](
        problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone()
    )  # fmt: skip
    assert len(steps) == 3


def test_the_own_corpus_trains(elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import tpdist

    text = "".join(f"the {n} of {n * n % 7} and {n % 5}\n" for n in range(2000))
    (elsewhere / "my.txt").write_text(text, encoding="utf-8")
    code = python_block("my.txt")
    assert len(code.splitlines()) < 30
    real = tpdist.load_config
    monkeypatch.setattr(tpdist, "load_config", lambda path, overrides=(): real(path, _replaced(overrides)))
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert " against " in capsys.readouterr().out
    assert (elsewhere / "stores" / "my-types").is_dir()


def _replaced(overrides: list[str] | tuple[str, ...]) -> list[str]:
    """The overrides with those of `SMALL` in the place of their own."""
    small = {text.partition("=")[0] for text in SMALL}
    return [text for text in overrides if text.partition("=")[0] not in small] + SMALL
