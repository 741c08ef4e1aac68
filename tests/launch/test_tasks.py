"""What a task of a sweep takes of a cluster's GPUs, and when tasks are given to it."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tpdist.config import Experiment
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

    def __init__(self, function: Callable) -> None:
        self.submitted: list[str] = []
        made.append(self)

    def options(self, **_: object) -> "Remote":
        return self

    def remote(self, config: Experiment, run: str, threads: int) -> str:
        assert Path(str(config.data.store)).is_absolute()  # Ray's processes begin elsewhere
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


def test_what_follows_from_a_task_begins_while_others_go_on(monkeypatch: pytest.MonkeyPatch):
    """Tasks end in the order `quick`, `after`, `slow`; each is submitted once, through one function."""
    config, over = Experiment(), []
    made.clear()
    monkeypatch.setattr(tasks, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(tasks, "wait_for_room", lambda *_: None)
    monkeypatch.setattr(tasks, "share_of_gpus", lambda _: 0.0)
    monkeypatch.setattr(tasks.ray, "remote", Remote)
    monkeypatch.setattr(tasks.ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(tasks.ray, "get", lambda ref: None)
    monkeypatch.setattr(tasks.ray, "wait", lambda refs, timeout: ([r for r in refs if r != "slow"] or refs, []))

    def next_tasks() -> list[Task]:
        names = ["slow", "quick", *(["after"] if "quick" in over else [])]
        return [Task(config, Path(name)) for name in names if name not in over]

    tasks.run_tasks(next_tasks, None, Silent(), lambda task, error: over.append(task.run.name), lambda: None)
    assert [remote.submitted for remote in made] == [["slow", "quick", "after"]]
    assert over == ["quick", "after", "slow"]
