"""The loop: numbers that are not finite, early stopping, decay of the learning rate, growth of λ."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Listener, interrupted, list_checkpoints, rows, small, stop_at

import tpdist
from tpdist import NonFiniteError
from tpdist.data import Store
from tpdist.models import LanguageModel
from tpdist.training import epoch_end
from tpdist.training import trainer as trainer_module
from tpdist.training.evaluation import Evaluation
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trainer import Trainer

HUGE = {"optimizer": {"name": "sgd", "lr": 1e20, "clip": None}}  # the first update overflows nothing


def test_a_huge_learning_rate(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError) as caught:
        tpdist.train(small(small_corpus, **HUGE), run)
    assert caught.value.exit_code == 3
    said = str(caught.value)
    assert said.startswith("step ")
    assert " (epoch 1, window " in said
    assert "; the last finite values: a mean loss of " in said
    assert "There is no checkpoint yet. Try a lower optimizer.lr (now 1e+20), an optimizer.clip, such as 1" in said
    assert "method.h_optimizer.lr (now 5)" in said
    assert "method.dual.lr (now 5)" in said
    assert run.is_dir()  # metrics tell how it came


def test_the_checkpoint_before_stays_and_a_lower_rate_goes_on(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"epochs": 1}), run)
    with pytest.raises(NonFiniteError, match=f"The checkpoint {run}/checkpoints/step-00000009-epoch stays as it is"):
        tpdist.resume(run, ["run.epochs=2", "optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=null"])
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000009-epoch"]
    result = tpdist.resume(run, ["optimizer.lr=0.01"])
    assert math.isfinite(result.valid_perplexity)
    assert [row["epoch"] for row in rows(run, "epoch")] == [1, 2]


def test_parameters_that_are_not_finite_are_never_saved(small_corpus: Path, tmp_path: Path, monkeypatch):
    step = trainer_module.Theta.step
    calls = iter(range(100))

    def poison(self: Any, tokens: int, states: dict[str, torch.Tensor] | None = None) -> None:
        step(self, tokens)
        if next(calls) == 4:  # the fifth update; its loss was still finite
            self.parameters[0].data.fill_(math.nan)

    monkeypatch.setattr(trainer_module.Theta, "step", poison)
    config = small(small_corpus, run={"checkpoint_every": 1, "keep_last": 9})
    with pytest.raises(NonFiniteError, match="after step 5: a parameter or a state is not finite"):
        tpdist.train(config, tmp_path / "run")
    assert len(list_checkpoints(tmp_path / "run/checkpoints")) == 4


@pytest.mark.parametrize(("loss", "said"), [(math.nan, "nan"), (4e8, r"4e\+08")])
def test_a_validation_loss_that_is_not_finite_makes_no_best_model(
    loss: float, said: str, small_corpus: Path, tmp_path: Path, monkeypatch
):
    """Nor one whose perplexity is none."""
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(loss, 20))
    with pytest.raises(
        NonFiniteError,
        match=rf"after step 9 \(epoch 1\): the valid loss is {said} nats a token; the last finite values",
    ):
        tpdist.train(small(small_corpus), tmp_path / "run")
    assert not list((tmp_path / "run/models").iterdir())


@pytest.mark.parametrize("which", ["boundaries.u", "model.bias"])
def test_what_no_step_can_use_is_not_saved(which: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, method={"first": "persistent"})
    run = RunDirectory.create(config, tmp_path / "run")
    trainer = Trainer(config, Store.open(small_corpus), run, Listener())
    trainer._begin_epoch()
    trainer.update(trainer.batches.batch(0))
    tensor = trainer.boundaries.u if which == "boundaries.u" else trainer.model.bias.data
    assert tensor is not None
    tensor.view(-1)[-1] = math.inf
    said = f"after step 1: a parameter or a state is not finite, {which} of worker 0"
    with pytest.raises(NonFiniteError, match=re.escape(said)):
        trainer.save_checkpoint()
    assert not list_checkpoints(run.checkpoints)


def test_a_gradient_that_is_not_finite_is_told_with_the_figures(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Where nobody watches: a GPU takes no step along it, so that the loss stays finite."""
    config = small(small_corpus)
    run = RunDirectory.create(config, tmp_path / "run")
    trainer = Trainer(config, Store.open(small_corpus), run, Listener())
    trainer.theta.watch = False
    trainer._begin_epoch()
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(math.inf))
    with pytest.raises(NonFiniteError, match=r"^step 1 \(epoch 1, window 1\): the norm of the gradient of θ is inf; "):
        trainer.update(trainer.batches.batch(0))


def test_the_seconds_of_a_run_are_those_of_all_its_processes(small_corpus: Path, tmp_path: Path):
    config = small(small_corpus)
    run = RunDirectory.create(config, tmp_path / "run")
    trainer = Trainer(config, Store.open(small_corpus), run, Listener())
    trainer._begin_epoch()
    trainer.state.seconds = trainer.state.sums.seconds = 1e6
    trainer.update(trainer.batches.batch(0))
    assert 0 < trainer.seconds < 1e6 < min(trainer.state.seconds, trainer.state.sums.seconds)


def test_the_parameters_of_the_workers_are_compared_as_often_as_asked(small_corpus: Path, tmp_path: Path, monkeypatch):
    """After every fourth update, and before a checkpoint is written: at the end of each epoch of nine."""
    compared: list[int] = []
    monkeypatch.setattr(trainer_module, "compare_workers", lambda workers, parameters, step: compared.append(step))
    tpdist.train(small(small_corpus, run={"check_every": 4}), tmp_path / "run")
    assert compared == [4, 8, 9, 12, 16, 18]


def with_losses(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Validation losses of the epochs to come; behind them the test split's."""
    left = iter(losses)
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(next(left, 0.0), 20))


def test_early_stopping(small_corpus: Path, tmp_path: Path, monkeypatch):
    with_losses(monkeypatch, 2.0, 1.0, 1.5, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9)
    listener = Listener()
    result = tpdist.train(small(small_corpus, run={"epochs": 20, "patience": 3}), tmp_path / "run", listener)
    assert (result.epochs, result.best_epoch, result.valid_perplexity) == (8, 5, math.exp(0.5))
    assert "no gain in 3 epochs: stopped" in listener.said
    best, last = (json.loads((tmp_path / f"run/models/{name}.json").read_text()) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"], best["step"]) == (5, 8, 45)


def test_the_model_that_is_tested_is_that_of_the_best_epoch(small_corpus: Path, tmp_path: Path, monkeypatch):
    evaluated: list[torch.Tensor] = []
    losses = iter([1.0, 2.0, 3.0])

    def evaluate(model: LanguageModel, *_: object, **__: object) -> Evaluation:
        evaluated.append(model.bias.detach().clone())
        return Evaluation(next(losses), 20)

    monkeypatch.setattr(epoch_end, "evaluate_tokens", evaluate)
    tpdist.train(small(small_corpus), tmp_path / "run")
    first, second, tested = evaluated
    assert torch.equal(tested, first)
    assert not torch.equal(tested, second)


def test_a_run_that_stopped_early_stays_so(small_corpus: Path, tmp_path: Path, monkeypatch):
    with_losses(monkeypatch, 1.0, 1.0)  # as good is no gain
    config = small(small_corpus, run={"epochs": 20, "patience": 1})
    assert tpdist.train(config, tmp_path / "run").epochs == 2
    assert tpdist.resume(tmp_path / "run").epochs == 2


@pytest.mark.parametrize(
    ("patience", "losses", "factors"),
    [
        (0, [1.0, 1.2, 1.1, 0.9, 1.3, 0.8], [1, 1, 1 / 4, 1 / 16, 1 / 16, 1 / 64]),
        # a gain, and a fall of the rate, begin the count anew
        (1, [1.0, 1.2, 0.9, 1.3, 1.4, 1.5, 1.6, 1.7], [1, 1, 1, 1, 1, 1 / 4, 1 / 4, 1 / 16]),
    ],
)
def test_decay_on_a_plateau(
    patience: int, losses: list[float], factors: list[float], small_corpus: Path, tmp_path: Path, monkeypatch
):
    """An epoch's row tells the learning rate that it was trained with."""
    with_losses(monkeypatch, *losses)
    decay, epochs = {"factor": 0.25, "patience": patience}, len(losses)
    config = small(small_corpus, optimizer={"lr": 0.02, "decay": decay}, run={"epochs": epochs})
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(config, run, stop_at(31)))
    tpdist.resume(run)
    assert [row["lr"] for row in rows(run, "epoch")] == pytest.approx([0.02 * factor for factor in factors])


def test_decay_from_an_epoch_on(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Epochs without gain (here the second) do not matter; a run that is interrupted goes on as it would have."""
    with_losses(monkeypatch, 1.0, 1.2, 0.9, 0.8)
    config = small(small_corpus, optimizer={"lr": 0.02, "decay": {"factor": 0.25, "start_epoch": 3}}, run={"epochs": 4})
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(config, run, stop_at(31)))
    tpdist.resume(run)
    assert [row["lr"] for row in rows(run, "epoch")] == pytest.approx([0.02, 0.02, 0.02 / 4, 0.02 / 16])


def test_duals_are_rescaled_when_lambda_grows(small_corpus: Path, tmp_path: Path, monkeypatch):
    """λ u, the multiplier, stays; what changes is what the next epoch's visits add."""
    seen: dict[int, tuple[float, torch.Tensor]] = {}
    begin = Trainer._begin_epoch

    def spy(self: Trainer) -> None:
        assert self.boundaries.u is not None
        before = self.boundaries.u.clone()
        begin(self)
        seen[self.state.epoch] = (float(before.norm()), self.boundaries.u / before.where(before != 0, 1.0))

    monkeypatch.setattr(Trainer, "_begin_epoch", spy)
    config = small(small_corpus, objective={"weight": 0.1, "weight_growth": 4.0}, run={"epochs": 3})
    tpdist.train(config, tmp_path / "run")
    assert [row["weight"] for row in rows(tmp_path / "run", "epoch")] == pytest.approx([0.1, 0.4, 1.6])
    for epoch in (2, 3):
        norm, ratio = seen[epoch]
        assert norm > 0
        assert ratio[ratio != 0].tolist() == pytest.approx([0.25] * int((ratio != 0).sum()))


def test_windows_of_a_random_order_are_all_visited(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Each once an epoch, in an order that follows from seed and epoch alone."""
    visits: list[int] = []
    visit = Trainer._visit

    def spy(self: Trainer, batch: Any) -> Any:
        visits.append(batch.begin)
        return visit(self, batch)

    monkeypatch.setattr(Trainer, "_visit", spy)
    parts = {"method": {"first": "persistent"}, "batching": {"order": "shuffled"}}
    tpdist.train(small(small_corpus, **parts), tmp_path / "one")
    first, second = visits[:9], visits[9:]
    assert sorted(first) == sorted(second) == list(range(0, 27, 3))
    assert first != second
    visits.clear()
    tpdist.train(small(small_corpus, **parts), tmp_path / "two")
    assert visits == first + second
