"""Under Ray the numbers are those of one worker, and what goes wrong is said."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from mesh_runs import experiment
from safetensors.torch import load_file

import tpdist
from tpdist.config import to_yaml
from tpdist.errors import ConfigError, TpdistError
from tpdist.launch.placement import Node, TooFewResourcesError, assign, choose_backend
from tpdist.training.progress import Silent, Status

RUNS = ("one", "many")


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.statuses: list[Status] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, status: Status) -> None:
        self.statuses.append(status)


@pytest.fixture(autouse=True)
def _quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_actors_compute_what_one_worker_does(corpus: Path, tmp_path: Path) -> None:
    parts = {
        "method": {"name": "admm", "first": "persistent", "starts": "tied", "h_optimizer": {"lr": 0.1}},
        "run": {"epochs": 2},
    }
    heard = Heard()
    one = tpdist.train(experiment(corpus, parts), tmp_path / "one")
    two = experiment(corpus, {**parts, "cluster": {"workers": 2, "mesh": [1, 2]}})
    many = tpdist.train(two, tmp_path / "many", heard)
    assert many.workers == 2
    assert many.steps == one.steps == 10
    assert many.valid_perplexity == pytest.approx(one.valid_perplexity, rel=1e-10)
    # 3d(n+1) for H-steps and duals, and one relaxation sweep; 10 updates, 2 streams, 1 edge, d=4 float64
    assert many.boundary_bytes == 10 * 2 * 1 * (3 * 2 + 1) * 4 * 8
    theta = [load_file(tmp_path / run / "models/last.safetensors") for run in RUNS]
    for name, value in theta[0].items():
        torch.testing.assert_close(theta[1][name], value, rtol=1e-10, atol=1e-10)
    assert "2 workers: 1 along stream x 2 along time" in heard.said
    assert json.loads((tmp_path / "many/result.json").read_text())["workers"] == 2
    workers = heard.statuses[-1].workers
    assert [work.rank for work in workers] == [0, 1]
    assert sum(work.sent for work in workers) == many.boundary_bytes + many.carried_bytes + many.gradient_bytes
    assert all(work.tokens_per_second > 0 and work.neighbours > 0 and work.reduction > 0 for work in workers)
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in RUNS]
    epochs = [[row for row in map(json.loads, every) if row["kind"] == "epoch"] for every in lines]
    for alone, shared in zip(*epochs, strict=True):
        assert alone["residuals"] == pytest.approx(shared["residuals"], rel=1e-10)
        assert "worker_waiting" not in alone
        assert all(share > 0 for share in shared["worker_waiting"])
        assert len(shared["worker_tokens_per_second"]) == 2
    assert sorted(path.name for path in (tmp_path / "many/logs").iterdir()) == ["worker-0.log", "worker-1.log"]


def test_a_workers_own_error_is_what_is_said(corpus: Path, tmp_path: Path) -> None:
    wrong = experiment(corpus, {"optimizer": {"options": {"no_such": 1.0}}, "cluster": {"workers": 2}})
    with pytest.raises(ConfigError, match="takes no 'no_such'"):
        tpdist.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_cluster_at_the_address(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TpdistError, match="no Ray cluster at --address auto"):
        tpdist.train(experiment(corpus, {}), tmp_path / "run", address="auto")
    assert not (tmp_path / "run").exists()


def test_what_auto_finds_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the embedded Ray of another run, too, which listens where we are not."""
    from tpdist.launch import cluster

    monkeypatch.setattr(cluster.services, "canonicalize_bootstrap_address", lambda _: "127.0.0.1:9")
    with pytest.raises(TpdistError, match=r"auto \(127.0.0.1:9\), which may be another run's own Ray: .*refused"):
        cluster._knock("auto")


def test_a_signal_to_the_group_is_the_runs_to_answer(corpus: Path, tmp_path: Path) -> None:
    """`timeout` and schedulers send SIGTERM to all processes of a command at once."""
    config, run = experiment(corpus, {"run": {"epochs": 100_000}, "cluster": {"workers": 2}}), tmp_path / "run"
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "tpdist", "train", str(tmp_path / "config.yaml"), "--run-dir", str(run)]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        while "epoch   1" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"saved. Continue with: tpdist train --resume {run}" in said


def test_another_version_on_the_cluster(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own check and message, for a cluster with another Python."""
    from ray._private import utils

    def init(*_: object, **__: object) -> None:
        utils.check_version_info({"ray_version": own_ray, "python_version": "3.8.1"}, "10.0.0.1")

    own_ray, own_python = utils.compute_version_info()
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("tpdist.launch.cluster._knock", lambda _: None)
    with pytest.raises(TpdistError) as caught:
        tpdist.train(experiment(corpus, {}), tmp_path / "run", address="10.0.0.1:6379")
    assert str(caught.value) == (
        f"the cluster at --address 10.0.0.1:6379 runs Ray {own_ray} and Python 3.8.1, and here is Ray {own_ray} and "
        f"Python {own_python}; install the same Ray and Python on every machine"
    )
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_nodes_are_filled_evenly_and_neighbours_stay_together() -> None:
    nodes = [Node("b", "10.0.0.2", 8, 0), Node("a", "10.0.0.1", 2, 0), Node("c", "10.0.0.3", 8, 0)]
    assert [node.id for node in assign(nodes, 8, 1, 0)] == ["a"] * 2 + ["b"] * 3 + ["c"] * 3
    assert [node.id for node in assign(nodes, 1, 1, 0)] == ["a"]


def test_four_workers_share_a_gpu() -> None:
    assert len(assign([Node("a", "10.0.0.1", 8, 1)], 4, 1, 0.25)) == 4


def test_too_few_resources() -> None:
    with pytest.raises(TooFewResourcesError) as caught:
        assign([Node("a", "10.0.0.1", 2, 0)], 3, 1, 1)
    assert str(caught.value) == (
        "3 workers of 1 CPUs and 1 GPUs each need 3 CPUs and 3 GPUs; the cluster has room for 0 (free: 10.0.0.1 2 CPUs "
        "0 GPUs); lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes"
    )


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [
        ([None, None], "gloo"),
        ([("a", 0), ("a", 1)], "nccl"),
        ([("a", 0), ("b", 0)], "nccl"),
        ([("a", 0), ("a", 0)], "gloo"),
        ([("a", 0), None], "gloo"),
        ([("a", 0)], "nccl"),
    ],
)
def test_nccl_only_where_every_worker_has_its_own_gpu(gpus: list, backend: str) -> None:
    assert choose_backend(gpus) == backend
