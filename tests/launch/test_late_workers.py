"""What a worker raises that has joined others: its node's fault, where it is the first that anybody hears of it.

Ray is played here.
"""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from tpdist.errors import ConfigError, Interrupted
from tpdist.launch import hosted
from tpdist.launch.crew import Crew
from tpdist.launch.hosted import Hosted
from tpdist.launch.messages import Job, Rendezvous
from tpdist.launch.placement import Node
from tpdist.training.progress import Silent

JOB, THERE = Job("run", "store", (), ".", False, 1), Rendezvous("10.0.0.1", 1, 2, ())
LACKS = ConfigError("cannot load 'own:Cell'", "model.cell")


def heard(monkeypatch: pytest.MonkeyPatch, error: Exception, generations: tuple[int, ...]) -> list[Hosted]:
    """The workers, whose `train` has raised `error`; generations: in how many each has trained before."""

    def get(*_: object, **__: object) -> None:
        raise RayTaskError("train", "a traceback", error)

    monkeypatch.setattr(hosted, "ray", SimpleNamespace(get=get))
    actor: Any = SimpleNamespace(train=SimpleNamespace(remote=lambda *_: object()))
    crew = Crew(Silent(), 15.0)
    for number, before in enumerate(generations):
        one = Hosted(actor, None, Node(str(number), f"10.0.0.{number}", 0.0, 0.0), None)  # type: ignore[arg-type]
        one.generations = before
        crew.hosted.append(one)
    crew.train(JOB, THERE)
    for one in crew.hosted:
        one.settle()
    return crew.hosted


def test_a_worker_that_has_joined_others_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    old, late = heard(monkeypatch, LACKS, (1, 0))
    assert (late.fault, late.unfit, late.own) == ("failed: ConfigError: model.cell: cannot load 'own:Cell'", True, None)
    assert old.own is not None  # one that has trained before raises it too: it would come again


@pytest.mark.parametrize(("error", "generations"), [(LACKS, (0, 0)), (Interrupted("stopped"), (1, 0))], ids=str)
def test_other_errors_are_the_runs_own(
    error: Exception, generations: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(one.own and not one.fault for one in heard(monkeypatch, error, generations))
