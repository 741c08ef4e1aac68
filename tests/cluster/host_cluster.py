"""A Ray cluster of hosts with addresses of their own, out of namespaces: the containers' entry points make it.

To train in such a cluster: `with two_hosts(workers=("one", "two")) as cluster: cluster.tpdist("train", CONFIG, ...)`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hosts

ROOT = Path(__file__).parents[2]
GCS_PORT = 6379
JOIN_LIMIT_S = 120

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
