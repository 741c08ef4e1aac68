"""Numbers that go wrong: which block, which worker, which step; what `skip` leaves as it was."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Listener, Parts, assert_same_runs, rows, small

import tpdist
from tpdist import NonFiniteError
from tpdist.data import Store
from tpdist.tprop import BlowUpError
from tpdist.tprop.in_place import works_in_place
from tpdist.training import epoch_end
from tpdist.training.diagnosis import fingerprint
from tpdist.training.evaluation import Evaluation
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trainer import Trainer
from tpdist.training.undo import Undo

TIED = {"first": "persistent", "relaxation": 0, "starts": "tied", "h_optimizer": {"name": "adam", "lr": 0.05}}


def begun(store: Path, where: Path, updates: int, said: Listener | None = None, **parts: Parts) -> Trainer:
    (where / "checkpoints").mkdir(parents=True)
    trainer = Trainer(small(store, **parts), Store.open(store), RunDirectory(where), said or Listener())
    trainer._begin_epoch()
    for batch in list(trainer.batches.epoch(1))[:updates]:
        trainer.update(batch)
    return trainer


def next_update(trainer: Trainer) -> None:
    trainer.update(next(trainer.batches.epoch(1, skip=trainer.state.position)))


HELD = {"first": "persistent", "relaxation": 1}
LOST: dict[str, tuple[Parts, str, int, str]] = {
    "a start": (TIED, "h", 10, "block 10 of stream 1: the first value at its start"),
    "a dual, with an H-step": (HELD, "u", 11, "block 10 of stream 1: the dual at its end"),
    "a dual": ({**HELD, "h_steps": 0}, "u", 11, "block 10 of stream 1: the dual at its end"),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_state_of_one_block(lost: str, small_corpus: Path, tmp_path: Path):
    method, which, block, what = LOST[lost]
    trainer = begun(small_corpus, tmp_path / "run", 3, method=method)
    before = copy.deepcopy(dict(trainer.model.named_parameters()))
    getattr(trainer.boundaries, which)[1, block, 2] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        next_update(trainer)
    assert str(caught.value).startswith("step 4 (epoch 1, window 4): the gradient of θ has a norm of nan; worker 0 ")
    assert f"worker 0 (stream 0, time 0), {what} is not finite; the last finite values: a mean loss of" in str(
        caught.value
    )
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]), "θ did not step"


@pytest.mark.parametrize("starts", ["tied", "held"])
def test_a_state_of_one_block_of_a_visit_in_place(starts: str, small_corpus: Path, tmp_path: Path):
    method, batching = {**TIED, "starts": starts, "relaxation": 1}, {"mode": "batch", "chunk_tokens": 40}
    trainer = begun(small_corpus, tmp_path / "run", 0, method=method, batching=batching)
    (batch,) = trainer.batches.epoch(1)
    assert batch.window is not None
    assert works_in_place(trainer.plan, batch.window, trainer.boundaries)
    assert trainer.boundaries.u is not None
    trainer.boundaries.u[1, 11, 2] = math.inf
    with pytest.raises(NonFiniteError, match="block 10 of stream 1: the dual at its end is not finite"):
        trainer.update(batch)


def test_the_loss_of_one_block(small_corpus: Path, tmp_path: Path):
    """A token whose embedding is enormous, in a linear network: the first block that reads it is named."""
    model = {"cell": "elman", "activation": "identity"}
    trainer = begun(small_corpus, tmp_path / "run", 0, model=model, method={"name": "bptt"}, batching={"blocks": 25})
    batch = trainer.batches.batch(0)
    assert batch.window is not None
    inputs = batch.window.inputs  # [B, S, k]
    token = int(inputs[:, 1, 20][0])
    stream, block = next((s, k) for s in range(2) for k in range(25) if (inputs[:, s, k] == token).any())
    embedding = next(p for name, p in trainer.model.named_parameters() if "embedding" in name)
    embedding.data[token] = 3e38
    trainer.carried.zero_()
    with pytest.raises(NonFiniteError) as caught:
        trainer.update(batch)
    assert f"block {block} of stream {stream}: " in str(caught.value)


def everything(trainer: Trainer) -> dict[str, Any]:
    optimizer = trainer.theta.optimizer.state_dict()["state"]
    return copy.deepcopy(
        {f"theta.{name}": p.detach() for name, p in trainer.model.named_parameters()}
        | {f"{i}.{name}": value for i, state in optimizer.items() for name, value in state.items()}
        | trainer.boundaries.tensors()
        | {"carried": trainer.carried, "counts": trainer.boundaries.h_counts}
        | {"sums": trainer.state.sums, "tokens": trainer.state.tokens}
    )


METHODS: dict[str, dict[str, Parts]] = {
    "admm": {"method": TIED},
    "alm": {"method": {**TIED, "name": "alm", "theta_steps": 2}, "batching": {"order": "shuffled"}},
    "costate": {
        "method": {"name": "costate", "keep_costates": True, "first": "persistent"}, "optimizer": {"name": "adagrad"},
    },
    "als": {
        "method": {"name": "als"}, "model": {"cell": "elman", "activation": "identity"},
        "objective": {"block": 1, "loss_on": "target"}, "batching": {"blocks": 12},
    },
}  # fmt: skip


@pytest.mark.parametrize("done", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_skip_leaves_all_as_it_was(name: str, done: int, small_corpus: Path, tmp_path: Path, monkeypatch):
    """Seen at the very end of an update, when it has changed everything that it changes; and before θ moved."""
    said = Listener()
    trainer = begun(small_corpus, tmp_path / "run", done, said, run={"on_non_finite": "skip"}, **METHODS[name])
    before = everything(trainer)
    visit = Trainer._visit
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_visit", lambda self, batch: replace(visit(self, batch), loss=torch.tensor(math.nan)))
        next_update(trainer)
    if name != "als":
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(math.inf))
            next_update(trainer)
    skipped = 1 if name == "als" else 2
    after = everything(trainer)
    assert before.keys() == after.keys()
    for what, value in before.items():
        same = torch.equal(value, after[what]) if isinstance(value, torch.Tensor) else value == after[what]
        assert same, what
    assert (trainer.state.step, trainer.state.position, trainer.state.skipped) == (*[done + skipped] * 2, skipped)
    assert said.said[0] == (
        f"step {done + 1} (epoch 1, window {done + 1}): the loss is nan; this update is skipped, 1 so far"
    )
    next_update(trainer)
    assert trainer.state.skipped_in_row == 0


@pytest.mark.parametrize(("starts", "recompute"), [("tied", False), ("held", False), ("held", True)])
def test_skip_puts_back_what_was_changed_in_place(
    starts: str, recompute: bool, small_corpus: Path, tmp_path: Path, monkeypatch
):
    method = {**TIED, "starts": starts, "relaxation": 1, "h_steps": 1}
    batching = {"mode": "batch", "chunk_tokens": 40, "recompute": recompute}
    run = {"on_non_finite": "skip"}
    trainer = begun(small_corpus, tmp_path / "run", 1, method=method, batching=batching, run=run)
    (batch,) = trainer.batches.epoch(1)
    assert batch.window is not None
    assert works_in_place(trainer.plan, batch.window, trainer.boundaries)
    before = everything(trainer)
    visit = Trainer._visit
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_visit", lambda self, batch: replace(visit(self, batch), loss=torch.tensor(math.nan)))
        trainer.update(batch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(math.inf))
        trainer.update(batch)
    assert trainer.state.skipped == 2
    after = everything(trainer)
    assert before.keys() == after.keys()
    for what, value in before.items():
        same = torch.equal(value, after[what]) if isinstance(value, torch.Tensor) else value == after[what]
        assert same, what


def test_a_checkpoint_that_was_due_before_a_skipped_update_is_written_once(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, saved, save = list[int](), list[int](), Trainer.save_checkpoint
    norm, factors = torch.nn.utils.get_total_norm, iter([1, 1, 1, math.nan, *9 * [1]])

    def due(trainer: Trainer) -> bool:
        asked.append(trainer.state.step + 1)
        return asked[-1] == 3

    monkeypatch.setattr(Trainer, "checkpoint_due", due)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: (saved.append(self.state.step), save(self)))
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: norm(gradients) * next(factors))
    tpdist.train(small(small_corpus, run={"on_non_finite": "skip", "epochs": 1}), tmp_path / "run")
    assert asked == [1, 2, 3, 5, 6, 7, 8, 9]
    assert saved == [3, 9]


def test_an_epoch_of_which_all_is_skipped_has_no_training_loss(small_corpus: Path, tmp_path: Path, monkeypatch):
    norms = iter([math.nan, math.nan, 1.0])
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(next(norms)))
    losses, said = iter([2.0, 3.0, 3.0, 2.0]), Listener()
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(next(losses), 20))
    config = small(small_corpus, run={"on_non_finite": "skip", "epochs": 3}, batching={"mode": "batch"})
    assert tpdist.train(config, tmp_path / "run", said).train_perplexity is None
    assert "epoch   1  train ppl      nan  valid ppl     7.39" in said.text
    assert [row["loss"] is None for row in rows(tmp_path / "run", "epoch")] == [True, True, False]


def test_skipping_ends(small_corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(math.nan))
    said = Listener()
    config = small(small_corpus, run={"on_non_finite": "skip", "skip_in_row": 3})
    with pytest.raises(NonFiniteError, match=r"step 4 .* has a norm of nan; the 3 updates before it were skipped; the"):
        tpdist.train(config, tmp_path / "run", said)
    last = "step 3 (epoch 1, window 3): the gradient of θ has a norm of nan; this update is skipped, 3 so far"
    assert last in said.said


@pytest.mark.parametrize("name", METHODS)
def test_watching_changes_no_bit(name: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    """Neither does skip, where there is nothing to skip."""
    tpdist.train(small(small_corpus, run={"on_non_finite": "skip"}, **METHODS[name]), tmp_path / "skip")
    init = Trainer.__init__

    def unwatched(self: Trainer, *arguments: Any) -> None:
        init(self, *arguments)
        self.theta.watch = False

    monkeypatch.setattr(Trainer, "__init__", unwatched)
    tpdist.train(small(small_corpus, **METHODS[name]), tmp_path / "stop")
    assert_same_runs(tmp_path / "skip", tmp_path / "stop")


def test_an_undo_of_nothing(small_corpus: Path, tmp_path: Path):
    trainer = begun(small_corpus, tmp_path / "run", 2, **METHODS["admm"])
    before = everything(trainer)
    Undo(trainer, trainer.batches.batch(2)).restore()
    assert all(str(before[name]) == str(value) for name, value in everything(trainer).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_fingerprint_sees_every_bit(dtype: torch.dtype):
    tensors = [torch.randn(4, 3).to(dtype), torch.randn(5).to(dtype)]
    was = fingerprint(tensors)
    assert was == fingerprint([t.clone() for t in tensors])
    assert was != fingerprint(tensors[::-1])
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensors[1].element_size()]
    for bit in range(8 * tensors[1].element_size() - 1):
        other = tensors[1].clone()
        other.view(whole)[3] ^= 1 << bit
        assert fingerprint([tensors[0], other]) != was, bit


def test_blow_up_is_an_error_of_arithmetic():
    assert BlowUpError("x").states is None
