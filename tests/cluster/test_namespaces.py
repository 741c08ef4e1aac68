"""Two hosts with addresses of their own, out of namespaces: the containers' entry points make a cluster of them.

To train in such a cluster: `with two_hosts(workers=("one", "two")) as cluster: cluster.tpdist("train", CONFIG, ...)`.
"""

import contextlib
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hosts
import pytest
import torch
from safetensors.torch import load_file

import tpdist

ROOT = Path(__file__).parents[2]
GCS_PORT = 6379
JOIN_LIMIT_S = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=hosts.missing() or ""),
]

LOOK = """
import json, sys, ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
own = ray.util.get_node_ip_address()
nodes = [{"address": n["NodeManagerAddress"], "alive": n["Alive"], **n["Resources"]} for n in ray.nodes()]
@ray.remote(num_cpus=1)
def where():
    import socket
    return [ray.util.get_node_ip_address(), socket.gethostname()]
on = [n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU")]
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
ran = ray.get([where.options(scheduling_strategy=strategy(node, soft=False)).remote() for node in on])
print("LOOK " + json.dumps({"own": own, "nodes": nodes, "ran": sorted(ran)}))
"""


@dataclass
class HostCluster:
    """A Ray cluster whose head runs on the host `head`, and a worker node on each other host."""

    network: hosts.Network
    environment: dict[str, str]
    logs: dict[str, Path]
    address: str = f"head:{GCS_PORT}"
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, host: str, arguments: Sequence[str], timeout_s: float = 300, **environment: str) -> str:
        """Run a command on a host, in the project's directory; its output. Raises with it where the command fails."""
        done = self.network[host].run(arguments, {**self.environment, **environment}, timeout_s, ROOT)
        if done.returncode:
            raise RuntimeError(
                f"{host}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{self.told()}"
            )
        return done.stdout

    def tpdist(self, *arguments: str, host: str = "head", timeout_s: float = 300) -> str:
        """`tpdist ... --address head:6379` on a host."""
        return self.run(host, ["tpdist", *arguments, "--address", self.address], timeout_s)

    def look(self, host: str, address: str) -> dict:
        """What Ray says of its nodes, asked on a host."""
        said = self.run(host, ["python", "-c", LOOK, address])
        return json.loads(next(line for line in said.splitlines() if line.startswith("LOOK ")).removeprefix("LOOK "))

    def told(self) -> str:
        """What the entry points have said so far."""
        return "\n".join(f"-- {host}:\n{log.read_text(errors='replace')}" for host, log in self.logs.items())

    def start(self, host: str, script: str, **environment: str) -> None:
        """An entry point of docker/ on a host."""
        with self.logs[host].open("ab") as log:
            process = self.network[host].start([f"docker/{script}"], log, {**self.environment, **environment}, ROOT)
        self.processes.append(process)

    def wait_until_joined(self, host: str) -> None:
        """The raylet's port opens once the node has joined."""
        probe = f"true >/dev/tcp/{self.network[host].address}/6380"
        deadline = time.monotonic() + JOIN_LIMIT_S
        while self.network[host].run(["timeout", "2", "bash", "-c", probe]).returncode:
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"{host} did not join:{self.told()}")
            time.sleep(0.5)


@contextmanager
def two_hosts(
    workers: Sequence[str] = ("worker",), others: Sequence[str] = (), cpus: int = 1, head_cpus: int = 1
) -> Iterator[HostCluster]:
    """A cluster of the host `head` and the hosts `workers`, with a token; gone without a trace at the end.

    others: hosts on the same network that are not in the cluster. cpus, head_cpus: what a worker and the head offer.
    """
    with ExitStack() as stack:
        network = stack.enter_context(hosts.Network("head", *workers, *others))
        directory = stack.enter_context(hosts.scratch())
        token = hosts.write_token(directory, os.urandom(32).hex())
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TPDIST_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(network.disk),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "TPDIST_HEAD": "head",
            "TPDIST_SHARED": str(directory / "shared"),
        }
        logs = {name: directory / f"{name}.log" for name in ("head", *workers)}
        cluster = HostCluster(network, environment, logs)
        cluster.start("head", "head.sh", TPDIST_CPUS=str(head_cpus))
        for worker in workers:
            cluster.start(worker, "worker.sh", TPDIST_CPUS=str(cpus))
        for host in ("head", *workers):
            cluster.wait_until_joined(host)
        deadline = time.monotonic() + JOIN_LIMIT_S
        # the port opens a moment before the head counts the node
        while len(cluster.look("head", "auto")["nodes"]) <= len(workers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all nodes joined:{cluster.told()}")
        yield cluster


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


SRUN = """
import json, os, socket, sys
words = sys.argv[1:]
name = next(word.removeprefix("--nodelist=") for word in words if word.startswith("--nodelist="))
command = words[next(i for i, word in enumerate(words) if not word.startswith("--")):]
if "docker/" in " ".join(command):
    assert {"--cpus-per-task=1", "--cpu-bind=none"} < set(words), "Slurm would give all workers of a node one core"
with socket.socket(socket.AF_UNIX) as control:
    control.connect(os.environ["SLURM_STAND_IN"])
    stream = control.makefile("rwb")
    step = {"host": name, "command": command, "environment": dict(os.environ), "directory": os.getcwd()}
    stream.write(json.dumps(step).encode() + b"\\n")
    stream.flush()
    *output, code = iter(stream.readline, b"")
    sys.stdout.buffer.writelines(output)
sys.exit(int(code))
"""


@contextmanager
def slurm_stand_in(network: hosts.Network, path: Path) -> Iterator[list[tuple[str, str]]]:
    """Runs, on the hosts, the steps that SRUN sends from any of them to the socket `path`: (host, first word) each."""
    steps: list[tuple[str, str]] = []

    class Step(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            step = json.loads(self.rfile.readline())
            steps.append((step["host"], step["command"][0]))
            done = network[step["host"]].run(step["command"], step["environment"], 300, step["directory"])
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(f"{done.stdout}\n{done.returncode}\n".encode())

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Step) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield steps
        server.shutdown()


def test_slurm_sh_starts_a_head_workers_and_the_training(tmp_path: Path) -> None:
    """With stand-ins for `srun`, `scontrol` and `tpdist`: the batch script runs on the first of three hosts."""
    with hosts.Network("n1", "n2", "n3") as network, slurm_stand_in(network, tmp_path / "slurm") as steps:
        binaries = tmp_path / "env" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text("")
        python = f"#!{sys.executable}\n"
        scripts = {
            "srun": python + SRUN,
            "scontrol": "#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n",
            "tpdist": f"{python}import ray, sys, time\nray.init(sys.argv[-1], logging_level='ERROR')\n"
            "while sum(n['Alive'] for n in ray.nodes()) < 3: time.sleep(0.5)\n"
            "print('TRAINED', *sys.argv[1:], ray.cluster_resources()['CPU'], flush=True)\n"
            "import os\nprint('the token is', os.environ.get('RAY_AUTH_TOKEN', 'its own'), flush=True)\n",
        }
        for name, text in scripts.items():
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TPDIST_"))}
        environment |= {
            "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "RAY_TMPDIR": str(network.disk / "r"),
            "TPDIST_ENV": str(tmp_path / "env"), "SLURM_STAND_IN": str(tmp_path / "slurm"),
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "1", "RAY_AUTH_TOKEN": "the user's", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200",
        }  # fmt: skip
        done = network["n1"].run(["cluster/slurm.sh", "a.yaml", "--set", "cluster.workers=3"], environment, 300, ROOT)
        address = f"{network['n1'].address}:{GCS_PORT}"
    assert done.returncode == 0, done.stdout
    assert f"TRAINED train a.yaml --set cluster.workers=3 --address {address} 3.0" in done.stdout
    assert "the token is its own\n" in done.stdout
    assert not list(ROOT.glob(".tpdist-42-*"))
    assert [host for host, command in steps if command == "rm"] == ["n1", "n2", "n3"]  # what Ray left in /tmp
