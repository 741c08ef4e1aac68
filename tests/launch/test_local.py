"""`tpdist.train`, `resume`, `evaluate`, `sample` mean the same as the commands."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Parts, assert_same_runs, interrupted, small, stop_at

import tpdist
from tpdist import ConfigError, DataError, RunError, TpdistError
from tpdist.cli import main
from tpdist.config import to_yaml
from tpdist.launch import trained


@pytest.fixture(scope="module")
def both(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one run made in Python and one made by the command, of the same configuration."""
    directory = tmp_path_factory.mktemp("both")
    (directory / "c.yaml").write_text(to_yaml(small(small_corpus)))
    overrides = ["run.epochs=1", "method.h_steps=2"]
    tpdist.train(tpdist.load_config(directory / "c.yaml", overrides), directory / "python")
    command = ["train", str(directory / "c.yaml"), "--set", *overrides, "--run-dir", str(directory / "command")]
    assert main(command) == 0
    return directory


def test_train(both: Path):
    assert_same_runs(both / "python", both / "command")
    assert (both / "python/config.yaml").read_text() == (both / "command/config.yaml").read_text()


def test_resume(both: Path, tmp_path: Path, small_corpus: Path):
    config = small(small_corpus)
    for name in ("python", "command"):
        interrupted(lambda name=name: tpdist.train(config, tmp_path / name, stop_at(3)))
    tpdist.resume(tmp_path / "python", ["run.epochs=3"])
    assert main(["train", "--resume", str(tmp_path / "command"), "--set", "run.epochs=3"]) == 0
    assert_same_runs(tmp_path / "python", tmp_path / "command")


def test_evaluate(both: Path, capsys):
    run = both / "python"
    plain, fitted = tpdist.evaluate(run, "test"), tpdist.evaluate(run, "test", h_steps=2, h_lr=0.3, by_position=True)
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert capsys.readouterr().out == f"test perplexity {plain.perplexity:.2f} over 19 tokens\n"
    command = ["evaluate", str(run), "--split", "test", "--h-steps", "2", "--h-lr", "0.3", "--by-position"]
    assert main(command) == 0
    assert fitted.by_position is not None
    lines = [f"  position {i:>3}  {value:.2f}" for i, value in enumerate(fitted.by_position)]
    assert len(lines) == 4
    first = f"test perplexity {fitted.perplexity:.2f} over 19 tokens"
    assert capsys.readouterr().out.splitlines() == [first, *lines]
    moved = tpdist.evaluate(run, "test", theta_steps=1, theta_lr=0.5)
    assert main(["evaluate", str(run), "--split", "test", "--theta-steps", "1", "--theta-lr", "0.5"]) == 0
    assert capsys.readouterr().out == f"test perplexity {moved.perplexity:.2f} over 19 tokens\n"
    assert moved.loss != plain.loss


def test_an_evaluation_shows_how_a_missing_store_is_made(both: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("tpdist.training.progress.PLAIN_EVERY_S", 0)
    for name, option in (("one", []), ("two", ["--json"])):
        assert main(["evaluate", str(both / "python"), *option, "--set", f"data.store={tmp_path / name}"]) == 0
        assert ("sample train: 200/240 tokens" in capsys.readouterr().out) == (not option)


def test_an_evaluation_that_blows_up_is_said(both: Path, capsys):
    assert main(["evaluate", str(both / "python"), "--h-steps", "2", "--h-lr", "1e30"]) == 3
    said = capsys.readouterr()
    assert said.err.startswith("tpdist: the valid perplexity is ")
    assert said.err.endswith("try smaller steps than 1e+30\n")
    assert not said.out


def test_sample(both: Path, capsys):
    run = both / "python"
    text = tpdist.sample(run, "w1 w2", tokens=5, temperature=0.7, top_k=3, seed=4, which="last")
    options = ["--tokens", "5", "--temperature", "0.7", "--top-k", "3", "--seed", "4", "--model", "last"]
    assert main(["sample", str(run), "--prompt", "w1 w2", *options]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_an_export_meets_no_kernels_but_the_users(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run's are for recurrences alone, and torch's export to ONNX refuses those."""
    rnn = torch.backends.cudnn.rnn
    monkeypatch.setattr(rnn, "fp32_precision", "tf32")
    seen: list[str] = []
    monkeypatch.setattr(trained, "export_model", lambda *_: seen.append(rnn.fp32_precision))
    tpdist.export(both / "python", tmp_path / "out", onnx=True)
    assert seen == ["tf32"]


def test_a_run_is_exported_to_onnx(both: Path, tmp_path: Path):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs pip install 'tpdist[onnx]'")
    assert (tpdist.export(both / "python", tmp_path / "out", onnx=True) / "step.onnx").is_file()


def test_the_store_may_have_moved(both: Path, small_corpus: Path, tmp_path: Path):
    """An override for this once; the run's configuration stays."""
    shutil.copytree(small_corpus, tmp_path / "moved")
    shutil.copytree(both / "python", tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(small_corpus), "/no/such/store"))
    before = config.read_text()
    override = [f"data.store={tmp_path / 'moved'}"]
    expected = tpdist.evaluate(both / "python", "test").perplexity
    assert tpdist.evaluate(tmp_path / "run", "test", overrides=override).perplexity == expected
    assert tpdist.sample(tmp_path / "run", tokens=2, overrides=override)
    assert config.read_text() == before


def test_the_model_knows_its_corpus(both: Path, tmp_path: Path):
    """A store of as many types that holds other text would give wrong numbers without a word."""
    other = ["data.synthetic.seed=9", f"data.store={tmp_path / 'other'}"]
    with pytest.raises(RunError, match="its model was trained on another corpus than the store that the configuration"):
        tpdist.evaluate(both / "python", overrides=other)


PYTHON_ONLY: list[tuple[dict, str]] = [
    ({"split": "validation"}, "split: must be one of train, valid, test; got 'validation'"),
    ({"which": "first"}, "which: must be one of best, last; got 'first'"),
    ({"h_steps": -1}, "h_steps: must be at least 0, got -1"),
    ({"h_steps": 1, "theta_steps": 2}, "theta_steps: must be 0 beside H-steps, got 2; give one of the two"),
    ({"h_steps": 1, "h_lr": 0.0}, "h_lr: must be a finite number above 0, got 0.0"),
    ({"theta_steps": 1, "theta_lr": float("inf")}, "theta_lr: must be a finite number above 0, got inf"),
    ({"h_steps": 1, "h_lr": float("nan")}, "h_lr: must be a finite number above 0, got nan"),
]


@pytest.mark.parametrize(("options", "said"), PYTHON_ONLY)
def test_bad_arguments(options: dict, said: str, both: Path):
    with pytest.raises(TpdistError) as caught:
        tpdist.evaluate(both / "python", **options)
    assert str(caught.value) == said


def test_one_text_is_one_override(both: Path, monkeypatch: pytest.MonkeyPatch):
    """In this process and for the workers that read the configuration again."""
    given: list[tuple[str, ...]] = []

    def listening(*arguments: Any) -> None:
        given.append(arguments[4])

    monkeypatch.setattr("tpdist.launch.many.run_on_workers", listening)
    tpdist.resume(both / "python", "cluster.workers=2")
    assert given == [("cluster.workers=2",)]


def test_a_file_in_place_of_its_configuration():
    with pytest.raises(TpdistError, match=r"config: must be an Experiment, got 'a\.yaml'; give tpdist\.load_config"):
        tpdist.train("a.yaml")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"overrides: must be texts such as 'run\.epochs=1', got \{'run\.epochs': 1\}"
    ):
        tpdist.load_config(None, {"run.epochs": 1})  # type: ignore[arg-type]


SOURCES: list[tuple[dict[str, Parts], type[Exception], str]] = [
    ({"data": {"synthetic": {"types": 3, "branching": 4}}}, ConfigError, "data.synthetic.branching: 4 different types"),
    ({"data": {"level": "char"}}, ConfigError, "data.level: recipe synthetic has words only"),
    ({"data": {"recipe": "text"}}, DataError, "no such store; run `tpdist data prepare text --source FILE"),
]


@pytest.mark.parametrize(("parts", "kind", "said"), SOURCES)
def test_a_source_that_cannot_be(parts, kind, said: str, tmp_path: Path):
    with pytest.raises(kind) as caught:
        tpdist.train(small(tmp_path / "new", **parts), tmp_path / "run")
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_errors_know_their_line(small_corpus: Path, tmp_path: Path):
    """Also those that show only when the corpus or the device is looked at."""
    (tmp_path / "c.yaml").write_text(to_yaml(small(small_corpus)))
    config = tpdist.load_config(tmp_path / "c.yaml", ["batching.blocks=99"])
    with pytest.raises(ConfigError, match=r"^--set: batching.blocks: a window of 99 blocks is longer than"):
        tpdist.train(config, tmp_path / "run")
    line = 1 + (tmp_path / "c.yaml").read_text().splitlines().index("  streams: 2")
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text().replace("streams: 2", "streams: 90"))
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/c.yaml:{line}: batching.streams: 90 streams of at least"):
        tpdist.train(tpdist.load_config(tmp_path / "c.yaml"), tmp_path / "run")


def test_workers_that_the_corpus_cannot_fill_are_not_started(small_corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tpdist.launch.many.connected", None)
    crew = {"objective": {"block": 100}, "batching": {"streams": 1}, "cluster": {"workers": 3, "mesh": [1, 3]}}
    with pytest.raises(ConfigError, match=r"^cluster.workers: 3 workers along time share streams of 2 blocks; use"):
        tpdist.train(small(small_corpus, **crew), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_control_c_during_the_preparation_leaves_nothing(tmp_path: Path):
    def control_c(at: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tpdist.train(small(tmp_path / "stores/new"), tmp_path / "runs/new", data_progress=control_c)
    assert not list(tmp_path.iterdir())


def test_a_missing_store_is_prepared(tmp_path: Path):
    result = tpdist.train(small(tmp_path / "stores/new", run={"epochs": 1}), tmp_path / "run")
    assert (tmp_path / "stores/new/manifest.json").is_file()
    shutil.rmtree(tmp_path / "stores")
    assert tpdist.evaluate(tmp_path / "run", "test").perplexity == result.test_perplexity
