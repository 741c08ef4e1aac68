"""Training on two nodes of Ray on this machine: one worker on each, the numbers of one worker."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.cluster_utils
import torch
from safetensors.torch import load_file
from small_runs import Listener

import tpdist
from tpdist.config import Experiment
from tpdist.launch import auth, controller
from tpdist.launch.placement import Node, TooFewResourcesError, assign
from tpdist.training.progress import Silent

TOKEN = "c" * 64
pytestmark = pytest.mark.slow


def experiment(store: Path, **cluster: object) -> Experiment:
    """Two streams of 31 blocks; with two workers along time each owns half of every window."""
    return Experiment.model_validate(
        {
            "data": {
                "recipe": "synthetic",
                "store": str(store),
                "synthetic": {"types": 12, "states": 4, "branching": 2, "tokens": 311},
            },
            "model": {"hidden": 4, "init": 0.5},
            "objective": {"block": 5, "weight": 0.3},
            "method": {"name": "admm", "first": "persistent"},
            "batching": {"streams": 2, "blocks": 7},
            "optimizer": {"name": "adagrad", "lr": 0.05, "clip": 0.3},
            "run": {"dtype": "float64", "epochs": 2, "device": "cpu"},
            "cluster": cluster,
        }
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one CPU each, with a token."""
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        for name in (*auth.VARIABLES, "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in {"RAY_TMPDIR": directory, "HOME": directory, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        with auth.token_of_the_user("two nodes", print):
            cluster = ray.cluster_utils.Cluster()
            try:
                for _ in range(2):
                    cluster.add_node(num_cpus=1)
                yield cluster.address
            finally:
                cluster.shutdown()


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that the controller has chosen, in the order of the ranks."""
    nodes: list[Node] = []

    def spy(*arguments: Any) -> list[Node]:
        nodes.extend(assign(*arguments))
        return nodes

    monkeypatch.setattr(controller, "assign", spy)
    return nodes


def test_one_worker_on_each_node_computes_what_one_worker_does(
    address: str, chosen: list[Node], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    one = tpdist.train(experiment(store), tmp_path / "one")
    many = tpdist.train(experiment(store, workers=2, mesh=[1, 2]), tmp_path / "two", address=address)
    assert len({node.id for node in chosen}) == 2
    assert many.workers == 2
    assert many.boundary_bytes > 0
    assert many.valid_perplexity == pytest.approx(one.valid_perplexity, rel=1e-10)
    theta = [load_file(tmp_path / run / "models/last.safetensors") for run in ("one", "two")]
    assert theta[0].keys() == theta[1].keys()
    for name, value in theta[0].items():
        torch.testing.assert_close(theta[1][name], value, rtol=1e-10, atol=1e-10)
    for rank in range(2):
        assert "2 workers: 1 along stream x 2 along time" in (tmp_path / f"two/logs/worker-{rank}.log").read_text()


def test_a_run_that_was_stopped_goes_on_there(address: str, tmp_path: Path) -> None:
    stop = Listener(dict.fromkeys(range(3, 100_000), lambda: signal.raise_signal(signal.SIGTERM)))
    config = experiment(tmp_path / "store", workers=2)
    config = config.model_copy(update={"run": config.run.model_copy(update={"epochs": 100_000})})
    with pytest.raises(
        tpdist.Interrupted, match=f"saved. Continue with: tpdist train --resume .* --address {address}$"
    ):
        tpdist.train(config, tmp_path / "run", stop, address=address)


def test_too_few_cpus_are_said_after_a_limit(address: str, tmp_path: Path) -> None:
    class Heard(Silent):
        said = ""

        def say(self, text: str) -> None:
            self.said += text

    heard = Heard()
    with pytest.raises(TooFewResourcesError) as caught:
        tpdist.train(
            experiment(tmp_path / "store", workers=3, wait_s=2), tmp_path / "run", reporter=heard, address=address
        )
    said = str(caught.value)
    assert said.startswith(
        "after 2 s: 3 workers of 1 CPUs and 0 GPUs each need 3 CPUs and 0 GPUs; the cluster has room"
    )
    assert said.endswith("lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes")
    assert caught.value.exit_code == 2
    assert "waiting up to 2 s for the cluster to have room for 3 workers" in heard.said
    assert not (tmp_path / "run").exists()
    assert os.environ["RAY_AUTH_TOKEN"] == TOKEN
