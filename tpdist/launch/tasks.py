"""Independent runs of one worker each, as Ray tasks: as many at a time as the devices have room for."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import LocalRayletDiedError, RayError

from tpdist.config import Experiment
from tpdist.errors import Interrupted, TpdistError, first_line
from tpdist.launch.cluster import connected, gpu_index, ray, wait_for_room
from tpdist.launch.local import resume, train
from tpdist.launch.placement import own_cores
from tpdist.training.depots import forget, has_checkpoints
from tpdist.training.locks import PATIENCE_S
from tpdist.training.progress import Reporter
from tpdist.training.run_dir import RunDirectory, with_absolute_paths
from tpdist.training.signals import StopSignal

LOOK_EVERY_S = 2.0
ENDED = "Ray has ended; the same command goes on from what is saved"
GRAIN = 10_000  # Ray counts ten-thousandths of a GPU
RETRIES = 2  # of a task whose process or node was lost; it goes on from its checkpoint


@dataclass(frozen=True)
class Task:
    """A configuration and its run directory; one that holds a checkpoint is resumed."""

    config: Experiment
    run: Path


def run_tasks(
    next_tasks: Callable[[], Sequence[Task]],
    address: str | None,
    reporter: Reporter,
    ended: Callable[[Task, str | None], None],
    look: Callable[[], None],
    until: float = math.inf,
) -> None:
    """Run tasks on the cluster at `address`, or on an embedded one that has the cores of this process.

    next_tasks: what has not ended; asked again as tasks end, so that what follows from one keeps the devices busy while
    others go on. The end is when it gives none. ended: told of each task, with its error if it has failed; the others
    go on. look: called now and then. `cluster.cpus_per_worker` and `cluster.gpus_per_worker` are what a task takes:
    0.25 GPUs put four on one; where GPUs are left out, each task takes its share of those there are. until: by the
    monotonic clock, the time to end, whatever still runs.

    Raises Interrupted after a signal to end, TpdistError where Ray itself has ended; what runs then goes on from
    its newest checkpoint another time.
    """
    tasks = next_tasks()
    if not tasks:
        return  # nothing is started for nothing
    with connected(address, own_cores(), reporter), StopSignal() as stop:

        def leave_if_stopped() -> None:
            if stop.received:
                raise Interrupted("interrupted; the same command goes on")

        # each kind of task, for one that no node can hold would wait for ever
        wait_s = max(task.config.cluster.wait_s for task in tasks)
        for cpus, share in {(task.config.cluster.cpus_per_worker, share_of_gpus(task.config)): None for task in tasks}:
            wait_for_room([1], cpus, share, reporter, wait_s, leave_if_stopped)
        remote = ray.remote(_run)  # one for all: Ray takes the tasks of one function in turn, of several in any order
        waiting: dict[ray.ObjectRef, Task] = {}
        given: set[Path] = set()
        while tasks or waiting:
            waiting |= {_submit(remote, task): task for task in tasks}
            given |= {task.run for task in tasks}
            done, _ = ray.wait(list(waiting), timeout=LOOK_EVERY_S)
            for ref in done:
                ended(waiting.pop(ref), _error_of(ref))
            if not any(node["Alive"] for node in ray.nodes()):
                raise TpdistError(ENDED)
            look()
            if time.monotonic() > until:
                return
            leave_if_stopped()
            tasks = [task for task in next_tasks() if task.run not in given] if done else []


def share_of_gpus(config: Experiment) -> float:
    """What a task takes of one GPU: as `cluster.gpus_per_worker` says, else so that all cores have one to work with."""
    cluster, there = config.cluster, ray.cluster_resources()
    gpus = 0.0 if config.run.device == "cpu" else there.get("GPU", 0.0)
    if cluster.gpus_per_worker or not gpus:
        return cluster.gpus_per_worker
    side_by_side = math.ceil(there.get("CPU", 1.0) / cluster.cpus_per_worker / gpus)
    return GRAIN // min(side_by_side, GRAIN) / GRAIN


def _submit(remote: Any, task: Task) -> "ray.ObjectRef":
    cluster, share = task.config.cluster, share_of_gpus(task.config)
    options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": share, "max_retries": RETRIES}
    threads = max(1, int(cluster.cpus_per_worker))
    # the name shows in a list of processes
    config = with_absolute_paths(task.config, Path.cwd())  # Ray's processes begin elsewhere
    return remote.options(name="sweep", **options).remote(config, str(task.run.absolute()), threads)


def _error_of(ref: "ray.ObjectRef") -> str | None:
    try:
        return ray.get(ref)
    except LocalRayletDiedError as error:  # all that run are lost with it, and none is to blame
        raise TpdistError(ENDED) from error
    except RayError as error:  # its process is gone, or the program itself is wrong
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def place_of(config: Experiment) -> list[str]:
    """Overrides of where a run runs, which is for its task to say, and not for the machine that it was begun on."""
    graph = json.dumps(config.run.cuda_graph)
    return [
        f"run.device={config.run.device}",
        f"run.cuda_graph={graph}",
        f"cluster.gpus_per_worker={config.cluster.gpus_per_worker}",
    ]


def _run(config: Experiment, run: str, threads: int) -> str | None:
    """In the task's process: train, or go on. What the user can mend is returned, the rest is raised."""
    torch.set_num_threads(threads)
    if gpus := ray.get_gpu_ids():
        torch.cuda.set_device(gpu_index(gpus[0]))
    home, begun = RunDirectory(Path(run)), False
    try:
        if home.path.is_dir():
            # where Ray has lost sight of a task, its process may work on for a while beside this one, and save
            with home.held(PATIENCE_S):
                begun = has_checkpoints(config, home)
                if not begun:
                    forget(config, home)
        if begun:
            resume(run, place_of(config))
        else:
            train(config, run)
    except TpdistError as error:
        return first_line(error)
    return None
