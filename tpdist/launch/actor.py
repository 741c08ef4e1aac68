"""The Ray actor that hosts one worker. It owns a span of blocks; the worker itself knows nothing of Ray."""

import gc
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import ray
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tpdist.data import Store
from tpdist.errors import DataError, RunError, first_line
from tpdist.launch.cluster import gpu_index
from tpdist.launch.faults import lost_neighbour, of_the_machine
from tpdist.launch.messages import Ended, Job, Process, Rendezvous
from tpdist.launch.metrics import Metrics
from tpdist.launch.placement import choose_backend
from tpdist.parallel import Workers
from tpdist.training.depots import has_checkpoints
from tpdist.training.progress import Status
from tpdist.training.run_dir import RunDirectory, with_absolute_paths
from tpdist.training.signals import Regroup, StopSignal
from tpdist.training.worker import run_worker

LOOK_EVERY_S = 1.0
MEETING_LIMIT_S = 5.0
LEASE_ENDED = 75  # the exit code of a worker that nobody asks any more


@ray.remote(max_restarts=0, concurrency_groups={"ctl": 4})  # pyright: ignore[reportCallIssue]
class SpanActor:
    """Hosts one worker: `train` runs it, once a generation; the control methods answer while it runs.

    lease_s: a worker that has not been asked for its status for so long is cut off from the controller, which has
    replaced it or will. It ends itself, so that nobody but the new workers writes into the run's directory.
    """

    def __init__(self, lease_s: float):
        self.generation = 0
        self.stop_signal = StopSignal()
        self.reporter = Recorder()
        self._lease_s = lease_s
        self._asked = time.monotonic()
        threading.Thread(target=self._end_with_the_lease, daemon=True).start()

    @ray.method(concurrency_group="ctl")
    def process(self) -> Process:
        gpus = ray.get_gpu_ids()
        gpu = (ray.get_runtime_context().get_node_id(), str(gpus[0])) if gpus else None
        return Process(ray.util.get_node_ip_address(), os.getpid(), gpu)

    @ray.method(concurrency_group="ctl")
    def status(self) -> tuple[Status | None, list[str]]:
        """The latest status, and what was said since the last call. That it answers is the worker's heartbeat."""
        self._asked = time.monotonic()
        return self.reporter.take()

    @ray.method(concurrency_group="ctl")
    def went_on_from(self) -> int | None:
        """The step before this generation's first update; None until then."""
        return self.reporter.began

    @ray.method(concurrency_group="ctl")
    def stop(self, generation: int) -> None:
        """End between two updates, with everything saved; no more than a hint where a neighbour is lost."""
        if generation == self.generation:
            self.stop_signal.received = True

    @ray.method(concurrency_group="ctl")
    def regroup(self, generation: int) -> None:
        """Come back from `train` at the end of the epoch."""
        if generation == self.generation:
            self.stop_signal.at_epoch_end = True

    def train(self, job: Job, rank: int, rendezvous: Rendezvous) -> Ended:
        """The run on this worker, from its newest checkpoint on, until it ends or a neighbour is lost."""
        self.stop_signal, self.reporter = StopSignal(), Recorder(Metrics(job.run, rank))
        self.generation = rendezvous.generation
        try:
            return self._train(job, rank, rendezvous)
        except Regroup:
            return Ended(regroup=True)
        except Exception as error:
            if lost_neighbour(error):
                return Ended(lost=_line(error))
            if fault := of_the_machine(error):  # what the worker made of it says how to go on, which others do
                return Ended(failed=_line(fault))
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            gc.collect()  # a group's connections end with its last reference; the others wait for that

    def _train(self, job: Job, rank: int, rendezvous: Rendezvous) -> Ended:
        torch.set_num_threads(job.threads)
        try:
            run, store = _seen_from_here(job)
            _log_to(run.path / "logs" / f"worker-{rank}.log")
        except RunError as error:
            here = RunError(f"the worker on {socket.gethostname()} says: {error}")
            if rendezvous.generation == 1:
                raise here from error
            return Ended(failed=_line(here), unfit=True)  # others have seen both
        config = with_absolute_paths(run.load_config(job.overrides), Path(job.directory))
        processes = rendezvous.processes
        gpu = processes[rank].gpu
        device = torch.device("cuda", gpu_index(gpu[1])) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_of(processes[rank].host))
        limit = timedelta(seconds=config.cluster.exchange_s)
        # where the meeting is closed already, another worker was lost meanwhile
        patience = timedelta(seconds=MEETING_LIMIT_S)
        meeting = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=patience)
        meeting.set_timeout(limit)
        dist.init_process_group(
            choose_backend([process.gpu for process in processes]),
            timeout=limit,
            store=PrefixStore(f"gen{rendezvous.generation}", meeting),
            rank=rank,
            world_size=len(processes),
        )
        workers = Workers.join(config.mesh(len(processes)), device, config.cluster.gradient_dtype)
        again = rendezvous.generation > 1
        # one worker looks: others may see a shared directory later
        resume = workers.from_leader(float(job.resume or (again and has_checkpoints(config, run)))) > 0
        result = run_worker(
            config,
            store,
            run,
            self.reporter,
            resume,
            workers,
            self.stop_signal,
            device,
            recoveries=job.recoveries,
            announce=not again,
        )
        return Ended(result=None if result is None else result.to_json())

    def _end_with_the_lease(self) -> None:
        while time.monotonic() - self._asked < self._lease_s:
            time.sleep(LOOK_EVERY_S)
        said = f"nobody has asked for {self._lease_s:g} s: cut off, so this worker ends"
        # the log may lie behind the same cut, where a word would wait until it is over, or on a full disk
        words = threading.Thread(target=print, args=(said,), kwargs={"flush": True}, daemon=True)
        words.start()
        words.join(LOOK_EVERY_S)
        os._exit(LEASE_ENDED)


class Recorder:
    """Keeps what a worker reports until the controller asks; its figures go to Ray, too."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self.began: int | None = None
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._said: list[str] = []

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self._lock:
            self._said.append(text)

    def step(self, status: Status) -> None:
        if self.began is None:
            self.began = status.step - 1
        self._status = status
        if self._metrics is not None:
            self._metrics.tell(status)

    def close(self) -> None: ...

    def take(self) -> tuple[Status | None, list[str]]:
        with self._lock:
            said, self._said = self._said, []
        return self._status, said


def _seen_from_here(job: Job) -> tuple[RunDirectory, Store]:
    """The driver has seen both: where this machine does not, they are not shared."""
    try:
        return RunDirectory.open(job.run, job.address), Store.open(job.store)
    except (RunError, DataError) as error:
        raise RunError(
            f"{error}; on several machines the run directory and data.store must lie where all of them see them, under "
            "one path"
        ) from error


def _line(error: BaseException) -> str:
    """An error without its traceback, whose frames would keep the process group."""
    return first_line(f"{type(error).__name__}: {error}")


def _log_to(file: Path) -> None:
    """This process's output, warnings of C++ libraries included, goes to the run directory. Or raises RunError."""
    try:
        file.parent.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror}") from error
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
