"""Two hosts with addresses of their own: what a cluster of the containers' entry points lets in, and computes."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
import torch
from host_cluster import GCS_PORT, LOOK, HostCluster, two_hosts
from safetensors.torch import load_file

import tpdist

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=hosts.missing() or ""),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    with two_hosts(others=("desk",)) as running:
        yield running


@pytest.mark.parametrize("host", ["head", "worker"])
@pytest.mark.parametrize("address", ["auto", f"head:{GCS_PORT}"])
def test_two_nodes_with_addresses_of_their_own_that_run_tasks(cluster: HostCluster, host: str, address: str) -> None:
    seen = cluster.look(host, address)
    addresses = [cluster.network[name].address for name in ("head", "worker")]
    assert sorted(node["address"] for node in seen["nodes"] if node["alive"]) == addresses
    assert seen["own"] == cluster.network[host].address
    assert seen["ran"] == [[addresses[0], "head"], [addresses[1], "worker"]]


def test_ray_status_counts_both(cluster: HostCluster) -> None:
    said = cluster.run("head", ["ray", "status"])
    assert "2.0 CPU" in said, said


def test_a_driver_without_the_token_does_not_get_in(cluster: HostCluster) -> None:
    with pytest.raises(RuntimeError, match=r"(?i)token"):
        cluster.run("worker", ["python", "-c", LOOK, f"head:{GCS_PORT}"], RAY_AUTH_MODE="disabled")
    with pytest.raises(RuntimeError, match=r"(?i)token"):
        cluster.run("worker", ["python", "-c", LOOK, f"head:{GCS_PORT}"], RAY_AUTH_TOKEN="wrong")


def test_the_dashboard_answers_on_the_heads_loopback_alone(cluster: HostCluster) -> None:
    ask = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"
    with pytest.raises(RuntimeError, match="401"):
        cluster.run("head", ["python", "-c", ask, "http://127.0.0.1:8265/api/version"])
    with pytest.raises(RuntimeError, match=r"refused"):
        cluster.run("worker", ["python", "-c", ask, "http://head:8265/api/version"])


def test_train_sh_joins_as_a_driver_passes_on_and_leaves(cluster: HostCluster, tmp_path: Path) -> None:
    """A stand-in for `tpdist` sees the cluster from a third node, without CPUs."""
    stand_in = tmp_path / "tpdist"
    stand_in.write_text(
        f"#!{sys.executable}\nimport sys, ray\nprint('ARGUMENTS', *sys.argv[1:])\n"
        "ray.init(sys.argv[-1], logging_level='ERROR', log_to_driver=False)\n"
        "print('CPUS', ray.cluster_resources()['CPU'], 'NODES', sum(n['Alive'] for n in ray.nodes()))\nsys.exit(7)\n"
    )
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{cluster.environment['PATH']}"
    with pytest.raises(RuntimeError, match="ended with 7") as caught:
        cluster.run("desk", ["docker/train.sh", "a.yaml", "--set", "x=1"], PATH=path)
    assert "ARGUMENTS train a.yaml --set x=1 --address head:6379" in str(caught.value)
    assert "CPUS 2.0 NODES 3" in str(caught.value)
    deadline = time.monotonic() + 60
    while sum(node["alive"] for node in cluster.look("head", "auto")["nodes"]) != 2:
        time.sleep(1)
        assert time.monotonic() < deadline


def test_scaling_sh_prints_a_table(cluster: HostCluster, tmp_path: Path) -> None:
    stand_in = tmp_path / "tpdist"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "run = pathlib.Path(sys.argv[sys.argv.index('--run-dir') + 1])\nrun.mkdir(parents=True)\n"
        "workers = int(sys.argv[-1].removeprefix('cluster.workers='))\n"
        "text = json.dumps({'tokens_per_second': 1000.5 * workers, 'seconds': 1}, indent=1)\n"
        "(run / 'result.json').write_text(text)\n"
    )
    stand_in.chmod(0o755)
    said = cluster.run(
        "desk", ["docker/scaling.sh", "a.yaml"], PATH=f"{tmp_path}:{cluster.environment['PATH']}",
        TPDIST_SCALING_DIR=str(tmp_path / "runs"),
    )  # fmt: skip
    rows = [line.split() for line in said.splitlines()]
    assert ["1", "1000", "1.00"] in rows
    assert ["2", "2001", "2.00"] in rows


TRAINED = """
data: {recipe: synthetic, store: STORE, synthetic: {types: 12, states: 4, branching: 2, tokens: 311}}
model: {hidden: 4, init: 0.5}
objective: {block: 5, weight: 0.3}
method: {name: admm, first: persistent}
batching: {streams: 2, blocks: 7}
optimizer: {name: adagrad, lr: 0.05, clip: 0.3}
run: {dtype: float64, epochs: 2, device: cpu}
"""


@pytest.fixture
def config() -> Iterator[Path]:
    """A small run's configuration, on a file system that all hosts see."""
    with hosts.scratch() as directory:
        file = directory / "small.yaml"
        file.write_text(TRAINED.replace("STORE", str(directory / "store")))
        yield file


def received(cluster: HostCluster, host: str) -> int:
    """Bytes that have come to a host over the network."""
    # not from /sys, which shows the network of whoever mounted it
    (link,) = json.loads(cluster.run(host, ["ip", "-json", "-statistics", "link", "show", "eth0"]))
    return link["stats64"]["rx"]["bytes"]


def test_a_worker_on_each_of_two_hosts_computes_what_one_worker_does(cluster: HostCluster, config: Path) -> None:
    one = tpdist.train(tpdist.load_config(config), config.parent / "one")
    before = {host: received(cluster, host) for host in ("head", "worker")}
    workers = ["--set", "cluster.workers=2", "cluster.mesh=[1,2]"]
    # each host offers one CPU, which a worker takes
    cluster.run("desk", ["docker/train.sh", str(config), "--run-dir", str(config.parent / "two"), *workers])
    two = json.loads((config.parent / "two" / "result.json").read_text())
    assert two["workers"] == 2
    assert two["boundary_bytes"] > 0
    for host, then in before.items():
        assert received(cluster, host) - then > two["gradient_bytes"] / 2
    assert two["valid_perplexity"] == pytest.approx(one.valid_perplexity, rel=1e-10)
    theta = [load_file(config.parent / run / "models" / "last.safetensors") for run in ("one", "two")]
    for name, value in theta[0].items():
        torch.testing.assert_close(theta[1][name], value, rtol=1e-10, atol=1e-10)
    logs = sorted((config.parent / "two" / "logs").iterdir())
    assert [log.name for log in logs] == ["worker-0.log", "worker-1.log"]
    assert all("2 workers: 1 along stream x 2 along time" in log.read_text() for log in logs)


def test_training_from_a_host_of_the_cluster(cluster: HostCluster, config: Path) -> None:
    run = config.parent / "run"
    said = cluster.tpdist("train", str(config), "--run-dir", str(run), "--set", "cluster.workers=2", host="worker")
    assert "2 workers: 2 along stream x 1 along time" in said
    assert "warning" not in said
    assert json.loads((run / "result.json").read_text())["steps"] == 10


def test_the_scaling_service_measures(cluster: HostCluster, config: Path) -> None:
    """What `docker compose run --rm scaling` starts, with the real `tpdist`."""
    said = cluster.run("desk", ["docker/scaling.sh", str(config)], TPDIST_SCALING_DIR=str(config.parent / "runs"))
    lines = said.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["workers", "tokens/s", "times", "the", "first"])
    rows = [line.split() for line in lines[head + 1 : head + 3]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][2] == "1.00"
    results = [json.loads(path.read_text()) for path in sorted((config.parent / "runs").glob("*/result.json"))]
    assert [result["workers"] for result in results] == [1, 2]
    assert [row[1] for row in rows] == [f"{result['tokens_per_second']:.0f}" for result in results]
