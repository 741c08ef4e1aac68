"""What a task of a sweep takes of a cluster's GPUs, and when tasks are given to it."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tpdist.config import Experiment
from tpdist.errors import TpdistError
from tpdist.launch import tasks
from tpdist.launch.placement import TooFewResourcesError
from tpdist.launch.tasks import Task
from tpdist.training.progress import Silent

SHARES = [  # CPUs, GPUs, settings, the share
    (16, 1, {}, 0.0625),
    (16, 4, {}, 0.25),
    (14, 2, {}, 0.1428),  # seven of them are no more than one
    (2, 4, {}, 1.0),
    (16, 1, {"cluster": {"cpus_per_worker": 4}}, 0.25),
    (16, 1, {"cluster": {"gpus_per_worker": 0.5}}, 0.5),
    (16, 1, {"run": {"device": "cpu"}}, 0.0),
    (16, 0, {}, 0.0),
]


@pytest.mark.parametrize(("cpus", "gpus", "parts", "share"), SHARES)
def test_share_of_gpus(cpus: int, gpus: int, parts: dict, share: float, monkeypatch: pytest.MonkeyPatch):
    there = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(tasks.ray, "cluster_resources", lambda: there)
    assert tasks.share_of_gpus(Experiment.model_validate(parts)) == pytest.approx(share)


class Remote:
    """Of the tasks' function: a reference is the name of its run."""

    threads = 0

    def __init__(self, function: Callable) -> None:
        self.submitted: list[str] = []
        made.append(self)

    def options(self, num_cpus: float, **_: object) -> "Remote":
        self.threads = int(num_cpus)
        return self

    def remote(self, config: Experiment, run: str, threads: int) -> str:
        assert Path(str(config.data.store)).is_absolute()  # Ray's processes begin elsewhere
        assert threads == self.threads
        self.submitted.append(Path(run).name)
        return self.submitted[-1]


made: list[Remote] = []


def test_every_kind_of_task_has_to_find_room(monkeypatch: pytest.MonkeyPatch):
    """One that no node can ever hold would wait for ever."""
    asked: list[float] = []

    def room(sizes: list[int], cpus: float, *_: object) -> None:
        asked.append(cpus)
        if cpus > 2:
            raise TooFewResourcesError("no node has 64 CPUs")

    monkeypatch.setattr(tasks, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(tasks, "wait_for_room", room)
    monkeypatch.setattr(tasks, "share_of_gpus", lambda _: 0.0)
    each = [Experiment.model_validate({"cluster": {"cpus_per_worker": cpus}}) for cpus in (1, 1, 64)]
    with pytest.raises(TooFewResourcesError, match="64 CPUs"):
        tasks.run_tasks(
            lambda: [Task(config, Path("run")) for config in each], None, Silent(), lambda *_: None, lambda: None
        )
    assert asked == [1, 64]


@pytest.fixture
def _played_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks end at once, but for `slow`, which ends when it is alone."""
    made.clear()
    monkeypatch.setattr(tasks, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(tasks, "wait_for_room", lambda *_: None)
    monkeypatch.setattr(tasks, "share_of_gpus", lambda _: 0.0)
    monkeypatch.setattr(tasks.ray, "remote", Remote)
    monkeypatch.setattr(tasks.ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(tasks.ray, "get", lambda ref: None)
    monkeypatch.setattr(tasks.ray, "wait", lambda refs, timeout: ([r for r in refs if r != "slow"] or refs, []))


@pytest.mark.usefixtures("_played_ray")
def test_when_time_is_up_or_ray_has_ended_nothing_more_is_given(monkeypatch: pytest.MonkeyPatch):
    over: list[str] = []

    def run(until: float = math.inf) -> None:
        waiting = [Task(Experiment(), Path(name)) for name in ("quick", "slow")]
        tasks.run_tasks(lambda: waiting, None, Silent(), lambda t, e: over.append(t.run.name), lambda: None, until)

    run(until=time.monotonic())
    assert over == ["quick"]
    monkeypatch.setattr(tasks.ray, "nodes", lambda: [{"Alive": False}])
    with pytest.raises(TpdistError, match="Ray has ended; the same command goes on"):
        run()
    assert over == ["quick"] * 2


@pytest.mark.usefixtures("_played_ray")
def test_what_follows_from_a_task_begins_while_others_go_on():
    """Tasks end in the order `quick`, `after`, `slow`; each is submitted once, through one function."""
    config, over = Experiment.model_validate({"cluster": {"cpus_per_worker": 2}}), []

    def next_tasks() -> list[Task]:
        names = ["slow", "quick", *(["after"] if "quick" in over else [])]
        return [Task(config, Path(name)) for name in names if name not in over]

    tasks.run_tasks(next_tasks, None, Silent(), lambda task, error: over.append(task.run.name), lambda: None)
    assert [remote.submitted for remote in made] == [["slow", "quick", "after"]]
    assert over == ["quick", "after", "slow"]
