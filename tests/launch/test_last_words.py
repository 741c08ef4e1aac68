"""What the leader says is told, what it has said by a generation's end too, whoever leads the next; Ray is played."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import GetTimeoutError
from small_runs import Listener

from tpdist.config import Cluster
from tpdist.launch import controller as module
from tpdist.launch import crew, hosted
from tpdist.launch.actor import Recorder
from tpdist.launch.controller import Controller, State
from tpdist.launch.hosted import Hosted
from tpdist.launch.messages import Ended, Job, Process
from tpdist.launch.placement import Node
from tpdist.training.signals import StopSignal


class Call:
    """The reference of a call that is answered at once, and whose answer takes a moment to arrive."""

    def __init__(self, answer: Any):
        self.answer, self.asked = answer, 0


def get(call: Any, timeout: float) -> Any:
    if isinstance(call, list):
        return [one.answer for one in call]
    call.asked += 1
    if not timeout and call.asked == 1:
        raise GetTimeoutError
    return call.answer


class Actor:
    """A worker that says `words` and takes step 7 in `train`, which comes back as `ended` after a look."""

    def __init__(self, words: str, ended: Ended):
        self.recorder, self.words, self.ended = Recorder(), words, ended

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self, f"_{name}"))

    def _status(self) -> Call:
        return Call(self.recorder.take())

    def _went_on_from(self) -> Call:
        return Call(self.recorder.began)

    def _train(self, *_: object) -> Call:
        return Call(self.ended)

    def _stop(self, generation: int) -> None: ...


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Controller, list[Actor]]:
    """A run of two workers that begins again after a death."""
    actors: list[Actor] = []

    def wait(*_: object, **__: object) -> None:
        """By the second look the workers have done all of their work, so none before has seen any of it."""
        looks.append(1)
        if len(looks) == 2:
            for actor in actors:
                actor.recorder.say(actor.words)
                actor.recorder.began = 6

    looks: list[int] = []
    ray = SimpleNamespace(get=get, wait=wait, kill=lambda _: None)
    for place in (hosted, crew):
        monkeypatch.setattr(place, "ray", ray)
    monkeypatch.setattr(hosted, "remove_placement_group", lambda _: None)
    monkeypatch.setattr(module, "open_meeting", lambda _: SimpleNamespace(port=1))
    run = Controller(Job("run", "store", (), ".", False, 1), Cluster(workers=2), (2,), Listener(), StopSignal())
    run._at, run._meeting, run._grown = "10.0.0.1", SimpleNamespace(port=1), 0.0  # type: ignore[assignment]
    run.change = crew.Change(["worker 1 died"], 0.0)
    return run, actors


def start(made: tuple[Controller, list[Actor]], *ended: Ended) -> Controller:
    run, actors = made
    for number, end in enumerate(ended):
        node = Node(str(number), f"10.0.0.{number}", 0.0, 0.0)
        actors.append(Actor(f"epoch 1 of {number}", end))
        one = Hosted(actors[-1], None, node, None)  # type: ignore[arg-type]
        one.process = Process(node.address, number, None)
        run.crew.hosted.append(one)
    assert run._join() is State.TRAINING
    return run


def test_while_it_trains(made: tuple[Controller, list[Actor]]):
    """At the second look, when the answer to what the first one asked has come."""
    run = start(made, Ended(), Ended())
    assert isinstance(run.reporter, Listener)
    for actor in made[1]:
        actor.recorder.say(actor.words)
    run.crew.look()
    assert run.reporter.said == []
    run.crew.look()
    assert run.reporter.said == ["epoch 1 of 0"]


def test_before_the_run_grows(made: tuple[Controller, list[Actor]]):
    run = start(made, Ended(regroup=True), Ended(regroup=True))
    assert run._train() is State.PLACING
    assert isinstance(run.reporter, Listener)
    assert "worker 1 died: 2 new, 0 kept, 2 workers went on from step 6 after" in run.reporter.said[0]
    assert run.reporter.said[1:] == ["epoch 1 of 0"]
    assert run.change is not None
    assert run.change.lost == []


def test_before_a_lost_worker_is_replaced(made: tuple[Controller, list[Actor]]):
    run = start(made, Ended(lost="a connection was closed"), Ended(failed="OSError: a disk"))
    assert run._train() is State.RECOVERING
    assert run._recover() is State.PLACING
    assert isinstance(run.reporter, Listener)
    assert run.reporter.said == ["epoch 1 of 0"]


def test_a_node_from_which_the_run_cannot_be_seen_is_passed_over(made: tuple[Controller, list[Actor]]):
    run = start(made, Ended(lost="a connection was closed"), Ended(failed="RunError: the worker says", unfit=True))
    assert run._train() is State.RECOVERING
    assert run._recover() is State.PLACING
    assert run.unfit == {"1"}


def test_at_the_end_of_the_run(made: tuple[Controller, list[Actor]]):
    """Where the generation was over before an answer of its first updates could come."""
    run = start(made, Ended(result={}), Ended())
    assert run._train() is State.FINISHED
    assert isinstance(run.reporter, Listener)
    assert "went on from step 6 after" in run.reporter.said[0]
    assert run.reporter.said[1:] == ["epoch 1 of 0"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_whatever_ends_a_run_its_workers_give_their_room_back(
    error: type[BaseException] | None, made: tuple[Controller, list[Actor]], monkeypatch: pytest.MonkeyPatch
):
    killed: list[Actor] = []
    monkeypatch.setattr(hosted.ray, "kill", killed.append)
    run = start(made, Ended(result={}), Ended())
    run.state = State.TRAINING
    if error is None:
        assert run.run() == {}
    else:
        monkeypatch.setattr(run.crew, "look", Mock(side_effect=error))
        with pytest.raises(error):
            run.run()
    assert killed == made[1]
