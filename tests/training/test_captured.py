"""Updates replayed from a recorded visit are the updates themselves. What records here does so by hand, on a CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Listener, rows, small
from torch import Tensor

import tpdist
from tpdist.config import Experiment
from tpdist.tprop import Captured
from tpdist.tprop.captured import Work
from tpdist.training import trainer as trainer_module

SHUFFLED = {"order": "shuffled"}
CASES: dict[str, dict[str, Any]] = {
    "bptt": {"method": {"name": "bptt"}},
    "pm, tied, Adagrad": {
        "method": {"name": "pm", "starts": "tied", "h_steps": 2, "h_optimizer": {"name": "adagrad", "lr": 0.1}}
    },
    "admm, persistent": {"method": {"name": "admm", "first": "persistent", "relaxation": 1}},
    "admm, in parts": {
        "method": {"name": "admm", "first": "persistent", "relaxation": 1},
        "batching": {"chunk_tokens": 8},
    },
    "admm, no H-steps": {  # whose optimiser no visit makes
        "method": {"name": "admm", "first": "persistent", "h_steps": 0, "h_optimizer": {"name": "adagrad", "lr": 0.1}},
        "run": {"cuda_graph": True},
    },
    "alm, closing": {"method": {"name": "alm", "closing": True, "first": "persistent", "relaxation": 1}},
    "costate, kept": {"method": {"name": "costate", "first": "persistent", "relaxation": 1, "keep_costates": True}},
    "costate, shuffled": {"method": {"name": "costate", "first": "persistent", "relaxation": 2}, "batching": SHUFFLED},
    "costate, kept at the edge": {
        "method": {"name": "costate", "first": "persistent", "sweeps": 1, "edge_costate": "kept"},
        "batching": SHUFFLED,
    },
    "admm, shuffled": {"method": {"name": "admm", "first": "persistent", "relaxation": 4}, "batching": SHUFFLED},
    "lstm": {"method": {"name": "costate"}, "model": {"cell": "lstm", "layers": 2}},
    "growing weight": {"method": {"name": "admm"}, "objective": {"weight_growth": 1.5}},
    "decaying rate": {"method": {"name": "bptt"}, "optimizer": {"decay": {"start_epoch": 2}}},
}


class ByHand:
    """A recorded visit changes nothing; a replay does its work again, into the same results.

    As with a graph, the learning rate is that of the recording, and nothing but tensors changes.
    """

    def __init__(self, theta: Any):
        self._theta = theta
        self.recorded = self.replayed = 0

    aside = staticmethod(nullcontext)

    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        states = self._theta.optimizer.state.values()
        moved = [*self._theta.parameters, *(v for s in states for v in s.values() if isinstance(v, Tensor))]
        before = [t.detach().clone() for t in moved]
        results = work()
        for tensor, was in zip(moved, before, strict=True):
            tensor.data.copy_(was)
        self.recorded += 1
        theta, lr = self._theta, self._theta.lr

        def replay() -> None:
            self.replayed += 1
            theta.lr, now = lr, (theta.lr, theta.norm)
            for static, value in zip(_tensors(results), _tensors(work()), strict=True):
                static.copy_(value)
            theta.lr, theta.norm = now

        return replay, results


def _tensors(results: Any) -> list[Tensor]:
    outcome, norm = results
    return [outcome.loss, outcome.penalty, outcome.residuals, outcome.dual, outcome.carry, norm]


def train(config: Experiment, run: Path, monkeypatch: pytest.MonkeyPatch, graphs: type | None) -> tuple[Any, Any]:
    """A run's trainer, which has the norms of its gradients, and what recorded, None for none."""
    kept: list[Any] = []
    init = trainer_module.Trainer.__init__

    def with_graphs(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made = None if graphs is None else graphs(self.theta)
        if made is not None:
            self.one_visit = Captured(made, self.reporter.say)
        kept[:] = [self, made]
        one_visit, self.norms = self.one_visit, []

        def visited(*what: Any) -> Any:
            outcome = one_visit(*what)
            self.norms.append(float(self.theta.norm))
            return outcome

        self.one_visit = visited

    monkeypatch.setattr(trainer_module.Trainer, "__init__", with_graphs)
    tpdist.train(config, run, reporter=Listener())
    monkeypatch.undo()
    return kept[0], kept[1]


@pytest.mark.parametrize("case", CASES)
def test_replayed_updates_are_the_updates(case: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    config = small(small_corpus, **CASES[case])
    plain, _ = train(config, tmp_path / "plain", monkeypatch, None)
    captured, graphs = train(config, tmp_path / "captured", monkeypatch, ByHand)
    assert graphs.replayed > 3
    for name, p in plain.model.state_dict().items():
        assert torch.equal(p, captured.model.state_dict()[name]), name
    for name, tensor in plain.boundaries.tensors().items():
        assert torch.equal(tensor, captured.boundaries.tensors()[name]), name
    assert plain.norms == captured.norms
    assert [row["loss"] for row in rows(tmp_path / "plain")] == [row["loss"] for row in rows(tmp_path / "captured")]


def test_what_is_written_into_a_recording_is_recorded_anew(small_corpus: Path, tmp_path: Path, monkeypatch):
    config = small(small_corpus, **CASES["growing weight"])
    _, graphs = train(config, tmp_path / "grows", monkeypatch, ByHand)
    assert graphs.recorded == 2  # one an epoch, whose λ differ
    config = small(small_corpus, method={"name": "admm"})
    _, graphs = train(config, tmp_path / "stays", monkeypatch, ByHand)
    assert graphs.recorded == 1


class Refuses(ByHand):
    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_training_goes_on_where_nothing_can_be_recorded(small_corpus: Path, tmp_path: Path, monkeypatch):
    config = small(small_corpus, method={"name": "bptt"})
    plain, _ = train(config, tmp_path / "plain", monkeypatch, None)
    captured, _ = train(config, tmp_path / "captured", monkeypatch, Refuses)
    told = [line for line in captured.reporter.said if "run.cuda_graph" in line]
    assert told == [
        "run.cuda_graph: no update could be recorded, so they run kernel by kernel: "
        "operation not permitted when stream is capturing"
    ]
    for name, p in plain.model.state_dict().items():
        assert torch.equal(p, captured.model.state_dict()[name]), name
