"""MLflow and Weights & Biases get the numbers of metrics.jsonl; neither can end a run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import Listener, interrupted, rows, small, stop_at

import tpdist
from tpdist.config import Experiment
from tpdist.training import trackers, tracking
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trackers import _known, numbers


def expected(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(name, row["step"]): value for row in lines for name, value in numbers(row).items()}


def interrupted_and_resumed(config: Experiment, run: Path) -> None:
    interrupted(lambda: tpdist.train(config, run, stop_at(5)))
    tpdist.resume(run)


def test_mlflow(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow", reason="needs pip install 'tpdist[mlflow]'")
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    interrupted_and_resumed(small(small_corpus, run={"track": ["mlflow"]}), tmp_path / "run")
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("tpdist").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["method.name"] == "admm"
    assert found.data.params["model.hidden"] == "6"
    history = [point for name in found.data.metrics for point in client.get_metric_history(found.info.run_id, name)]
    assert {(point.key, point.step): point.value for point in history} == pytest.approx(expected(tmp_path / "run"))
    assert not (tmp_path / "run/tensorboard").exists()


def test_wandb_offline(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = pytest.importorskip("wandb.sdk.wandb_run", reason="needs pip install 'tpdist[wandb]'").Run
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict[tuple[str, int], float] = {}
    real = run.log
    monkeypatch.setattr(
        run,
        "log",
        lambda self, data, step: (seen.update({(k, step): v for k, v in data.items()}), real(self, data, step=step)),
    )
    interrupted_and_resumed(small(small_corpus, run={"track": ["tensorboard", "wandb"]}), tmp_path / "run")
    assert seen == pytest.approx(expected(tmp_path / "run"))
    written = list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2  # the run and its continuation, under one id
    assert {file.stem.removeprefix("run-") for file in written} == {
        json.loads((tmp_path / "run/tracking.json").read_text())["wandb"]
    }
    assert (tmp_path / "run/tensorboard").is_dir()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_says_what_to_install(
    name: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # an import then fails
    with pytest.raises(tpdist.ConfigError) as caught:
        tpdist.train(small(small_corpus, run={"track": [name]}), tmp_path / "run")
    assert str(caught.value) == f"run.track: {name} is not installed; pip install 'tpdist[{name}]'"
    assert not (tmp_path / "run").exists()


class Unreliable:
    """A server that fails at its third row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        if len(self.rows) == 2:
            raise OSError("connection lost")
        self.rows.append(row)

    def close(self) -> None:
        raise AssertionError("nobody talks to it any more")


def test_a_server_that_fails_does_not_end_the_run(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server, listener = Unreliable(), Listener()
    monkeypatch.setattr(tracking, "open_trackers", lambda *_: {"mlflow": server})
    tpdist.train(small(small_corpus), tmp_path / "run", listener)
    assert len(server.rows) == 2
    assert len(rows(tmp_path / "run")) == 11
    told = [line for line in listener.said if "mlflow" in line]
    assert told == ["mlflow takes no more rows (OSError: connection lost); metrics.jsonl does"]


def test_a_server_that_is_down_does_not_keep_a_run_from_going_on(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that mends itself, say, after the death of a worker."""

    def mlflow(config: Experiment, run: RunDirectory) -> Unreliable:
        if down:
            raise OSError("connection refused")
        trackers._remember(run, {"mlflow": "its id"})
        return Unreliable()

    down: list[bool] = []
    monkeypatch.setattr(trackers, "Mlflow", mlflow)
    config, listener = small(small_corpus, run={"track": ["mlflow"]}), Listener()
    interrupted(lambda: tpdist.train(config, tmp_path / "run", stop_at(5)))
    down.append(True)
    tpdist.resume(tmp_path / "run", reporter=listener)
    assert "mlflow takes no more rows (OSError: connection refused); metrics.jsonl does" in listener.said
    with pytest.raises(tpdist.ConfigError, match="mlflow cannot be used: connection refused"):
        tpdist.train(config, tmp_path / "new")


@pytest.mark.parametrize("text", ["{", '{"a": ' + "[" * 5000])
def test_a_damaged_file_of_trackers_is_said(text: str, tmp_path: Path):
    (tmp_path / "tracking.json").write_text(text)
    with pytest.raises(tpdist.RunError, match=r"tracking\.json: is damaged; delete it"):
        _known(RunDirectory(tmp_path))
