"""A node on which no worker can start is passed over, and one whose room is taken waited for no longer.

Ray is played here.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tpdist.config import Cluster
from tpdist.launch import controller as module
from tpdist.launch import crew
from tpdist.launch.controller import Controller
from tpdist.launch.crew import Change, WorkerFailedError
from tpdist.launch.messages import Job
from tpdist.launch.placement import Node
from tpdist.training.progress import Silent
from tpdist.training.signals import StopSignal


class Played:
    """A worker that runs; on a node called `bad` it does not start, on one called `taken` it does not get its room."""

    def __init__(self, node: Node):
        self.node, self.fault, self.unfit = node, None, False
        self.process: str | None = None if node.id in ("bad", "taken") else "running"
        self.placed = node.id != "taken"
        self.placing, self.running, self.working, self.status = None, None, False, None
        self.generations = 2

    def __str__(self) -> str:
        return self.node.address

    def release(self) -> None: ...

    def hear(self, passed_s: float, limit_s: float) -> None: ...

    def settle(self) -> None: ...

    def has_started(self, too_late: bool) -> None:
        if self.placed:
            self.fault, self.unfit = "did not start: No module named 'tpdist'", True  # type: ignore[assignment]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes on which workers were started."""
    found: list[str] = []

    def on(node: Node, cluster: Cluster) -> Any:
        found.append(node.id)
        return Played(node)

    monkeypatch.setattr(module, "Hosted", SimpleNamespace(on=on))
    monkeypatch.setattr(crew, "ray", SimpleNamespace(wait=lambda *_, **__: None))
    monkeypatch.setattr(module, "has_checkpoints", lambda *_: True)
    run = SimpleNamespace(load_config=lambda _: None, resume_command="tpdist train --resume run")
    monkeypatch.setattr(module, "RunDirectory", lambda *_: run)
    return found


def controller(patch: pytest.MonkeyPatch, nodes: list[Node], sizes: tuple[int, ...], **cluster: Any) -> Controller:
    """In the middle of a run: one worker is left of two, or one shall join it."""
    patch.setattr(module, "free_nodes", lambda answering=False: nodes)
    job = Job("run", "store", (), ".", False, 1)
    settings = Cluster.model_validate({"workers": {"min": sizes[0], "max": sizes[-1]}, **cluster})
    made = Controller(job, settings, sizes, Silent(), StopSignal(), generation=1, wanted=2)
    made.crew.add([Played(Node("good", "10.0.0.1", 0.0, 0.0))])  # type: ignore[list-item]
    made.change = Change([], 0.0)
    return made


def test_a_run_that_can_do_without_it_goes_on(monkeypatch: pytest.MonkeyPatch, tried: list[str]):
    made = controller(monkeypatch, [Node("bad", "10.0.0.2", 1.0, 0.0)], (1, 2))
    assert made._place() is module.State.JOINING
    assert (tried, len(made.crew), made.failures) == (["bad"], 1, [])
    made._grown = -1e9
    made._grow()  # and does not ask for a new group over it again
    assert tried == ["bad"]


def test_another_node_takes_its_place(monkeypatch: pytest.MonkeyPatch, tried: list[str]):
    nodes = [Node("bad", "10.0.0.2", 1.0, 0.0), Node("new", "10.0.0.3", 1.0, 0.0)]
    made = controller(monkeypatch, nodes, (2,))
    assert made._place() is module.State.JOINING
    assert tried[-1] == "new"
    assert tried.count("bad") <= 1


def test_a_run_that_cannot_ends_after_as_many_failures_as_are_mended(monkeypatch: pytest.MonkeyPatch, tried: list[str]):
    made = controller(monkeypatch, [Node("bad", "10.0.0.2", 1.0, 0.0)], (2,), max_restarts=2)
    with pytest.raises(WorkerFailedError, match=r"did not start.*3 failures within .* cluster\.max_restarts is 2"):
        made._place()
    assert len(tried) == 4  # the first time was none of the run's failures


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called: from now on a room that was seen is taken by another run before Ray has placed a worker there."""
    looks: list[int] = []

    def free_nodes(answering: bool = False) -> list[Node]:
        looks.append(1)
        return [Node("taken", "10.0.0.2", 1.0 if len(looks) == 1 else 0.0, 0.0)]

    def begin() -> None:
        for place in (module, crew):
            monkeypatch.setattr(place, "free_nodes", free_nodes)

    monkeypatch.setattr(crew, "SETTLE_S", 0.0)
    return begin


def test_a_room_that_is_taken_is_nobodys_failure(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], rival: Callable[[], None]
):
    made = controller(monkeypatch, [], (1, 2))
    rival()
    assert made._place() is module.State.JOINING
    assert (tried, len(made.crew), made.failures, made.unfit) == (["taken"], 1, [], set())
    assert made.change is not None
    assert made.change.text(made.crew, 3).startswith("the room for more was taken: 0 new, 1 kept, 1 worker went on")


def test_a_room_that_is_gone_before_any_worker_is_placed_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, tried: list[str]
):
    made = controller(monkeypatch, [], (2,))
    made.generation, made.change = 0, None
    made.crew.hosted.clear()
    assert made._place() is module.State.CONNECTED
    assert tried == []


def test_before_the_first_generation_all_is_given_back(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], rival: Callable[[], None]
):
    made = controller(monkeypatch, [], (2,))
    made.generation, made.change = 0, None
    rival()
    assert made._place() is module.State.CONNECTED
    assert (tried, len(made.crew)) == (["taken"], 0)
