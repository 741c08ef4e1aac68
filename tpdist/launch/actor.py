"""The Ray actor that hosts one worker. It owns a span of blocks; the worker itself knows nothing of Ray."""

import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tpdist.config import load_config
from tpdist.data import Store
from tpdist.launch.placement import choose_backend
from tpdist.parallel import Workers
from tpdist.training.progress import Status
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.worker import run_worker


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told."""

    run: str
    store: str
    overrides: tuple[str, ...]
    resume: bool
    threads: int


@dataclass(frozen=True)
class Rendezvous:
    """Where the workers of one generation meet: a TCPStore that the controller keeps."""

    host: str
    port: int
    generation: int


@dataclass(frozen=True)
class Place:
    """Where an actor lives. gpu: (node, index on it), or None."""

    node: str
    host: str
    process: int
    gpu: tuple[str, int] | None


@ray.remote(max_restarts=0, concurrency_groups={"ctl": 4})  # pyright: ignore[reportCallIssue]
class SpanActor:
    """Hosts one worker: `train` runs it; the control methods answer while it runs."""

    def __init__(self, rank: int):
        self.rank = rank
        self.stop_signal = StopSignal()
        self.reporter = Recorder()

    @ray.method(concurrency_group="ctl")
    def place(self) -> Place:
        context = ray.get_runtime_context()
        gpus = ray.get_gpu_ids()
        gpu = (context.get_node_id(), int(gpus[0])) if gpus else None
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), gpu)

    @ray.method(concurrency_group="ctl")
    def status(self) -> tuple[Status | None, list[str]]:
        """The latest status, and what was said since the last call."""
        return self.reporter.take()

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        """End between two updates, with everything saved."""
        self.stop_signal.received = True

    def train(self, job: Job, rendezvous: Rendezvous, places: list[Place]) -> dict[str, Any] | None:
        """The whole run on this worker; the leader's `Result` as a dictionary."""
        torch.set_num_threads(job.threads)
        run = RunDirectory.open(job.run)
        _log_to(run.path / "logs" / f"worker-{self.rank}.log")
        backend = choose_backend([place.gpu for place in places])
        gpu = places[self.rank].gpu
        device = torch.device("cuda", gpu[1]) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)
        os.environ["GLOO_SOCKET_IFNAME"] = _interface_of(places[self.rank].host)
        store = TCPStore(rendezvous.host, rendezvous.port, is_master=False)
        dist.init_process_group(
            backend,
            store=PrefixStore(f"gen{rendezvous.generation}", store),
            rank=self.rank,
            world_size=len(places),
        )
        try:
            config = load_config(run.config_file, job.overrides)
            workers = Workers.join(config.mesh(), device, config.cluster.gradient_dtype)
            result = run_worker(
                config, Store.open(job.store), run, self.reporter, job.resume, workers, self.stop_signal, device
            )
            return None if result is None else result.to_json()
        finally:
            dist.destroy_process_group()


class Recorder:
    """Keeps what a worker reports until the controller asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._said: list[str] = []

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self._lock:
            self._said.append(text)

    def step(self, status: Status) -> None:
        self._status = status

    def close(self) -> None: ...

    def take(self) -> tuple[Status | None, list[str]]:
        with self._lock:
            said, self._said = self._said, []
        return self._status, said


def _log_to(file: Path) -> None:
    """This process's output, warnings of C++ libraries included, goes to the run directory."""
    file.parent.mkdir(exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _interface_of(address: str) -> str:
    """The network interface that has this address; Gloo would else ask the host name, which may lie."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in addresses):
            return name
    return "lo" if address.startswith("127.") else ""
