"""A task in its process: a run that another process holds is waited for, one that was begun elsewhere goes on here."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from small_runs import small

import tpdist
from tpdist.config import Experiment
from tpdist.launch import tasks
from tpdist.training.run_dir import RunDirectory


@pytest.fixture
def config(small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Two epochs; Ray, which would start one of this process's, is asked for no GPU."""
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    return small(small_corpus, method={"name": "bptt"})


def test_a_point_waits_for_the_process_that_holds_its_run(
    config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where Ray has lost sight of a task, it runs it again beside the first, whose run must not be removed."""
    run = RunDirectory.create(config, tmp_path / "run")
    monkeypatch.setattr(tasks, "PATIENCE_S", 0.3)
    with run.held():
        assert "another process trains in it" in (tasks._run(config, str(run.path), 1) or "")
    assert run.config_file.is_file()
    assert tasks._run(config, str(run.path), 1) is None
    assert run.result_file.is_file()


def test_what_the_other_process_has_saved_meanwhile_stays(
    config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first process trains to its end while the second waits for the run."""
    run, held = RunDirectory(tmp_path / "run"), RunDirectory.held
    run.path.mkdir()
    waits = [True]

    @contextmanager
    def after_the_other(self: RunDirectory, patience_s: float = 0.0) -> Iterator[None]:
        if waits:
            waits.clear()
            self.path.rmdir()
            tpdist.train(config, self.path)
        with held(self, patience_s):
            yield

    monkeypatch.setattr(RunDirectory, "held", after_the_other)
    forgotten: list[RunDirectory] = []
    monkeypatch.setattr(tasks, "forget", lambda _, run: forgotten.append(run))
    assert tasks._run(config, str(run.path), 1) is None
    assert forgotten == []
    assert json.loads(run.result_file.read_text())["epochs"] == 2


def test_a_point_begun_on_a_gpu_goes_on_without(config: Experiment, tmp_path: Path):
    short = config.model_copy(update={"run": config.run.model_copy(update={"epochs": 1})})
    run = RunDirectory(tmp_path / "run")
    assert tasks._run(short, str(run.path), 1) is None
    run.result_file.unlink()
    begun = yaml.safe_load(run.config_file.read_text())
    begun["run"] |= {"epochs": 2, "device": "cuda", "cuda_graph": True}
    begun["cluster"] = {"gpus_per_worker": 0.25}
    run.config_file.write_text(yaml.safe_dump(begun))
    assert tasks._run(config, str(run.path), 1) is None
    result = json.loads(run.result_file.read_text())
    assert (result["epochs"], result["device"]) == (2, "cpu")
