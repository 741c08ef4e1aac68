"""Perplexity with θ frozen, against a plain loop over tokens."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small

import tpdist
from tpdist.config import Data, Model, Run
from tpdist.data import ArrayTokens, Store, prepare
from tpdist.models import LanguageModel, build_model
from tpdist.training import evaluation
from tpdist.training.at_test_time import AtTestTime, HSteps, ThetaSteps
from tpdist.training.evaluation import Evaluation, evaluate_tokens, joined, perplexity, share_of_loss
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.worker import run_worker

TYPES = 7


def make_model(cell: str = "gru", **options) -> LanguageModel:
    return build_model(Model(cell=cell, hidden=5, init=0.9, **options), Run(dtype="float64"), TYPES)


def make_tokens(count: int, seed: int = 0) -> ArrayTokens:
    return ArrayTokens(np.random.default_rng(seed).integers(TYPES, size=count).astype(np.uint8))


def plain_losses(model: LanguageModel, tokens: ArrayTokens) -> list[float]:
    """-log p of every token but the first, one after the other."""
    state, losses = model.zero_state(1), []
    with torch.no_grad():
        for now, following in zip(tokens.ids[:-1].tolist(), tokens.ids[1:].tolist(), strict=True):
            h, state = model.unroll(torch.tensor([[now]]), state)
            losses.append(-float(model.logits(h[0, 0]).log_softmax(0)[following]))
    return losses


@pytest.mark.parametrize(("cell", "layers"), [("gru", 1), ("elman", 2), ("lstm", 2), ("mrnn", 1)])
@pytest.mark.parametrize(("count", "block", "piece"), [(2, 4, 8), (30, 4, 8), (33, 4, 1024), (25, 30, 8), (777, 4, 64)])
def test_it_equals_a_plain_loop(cell, layers, count, block, piece, monkeypatch):
    """In short pieces, whose states do not settle, and in long ones, which are rolled out side by side."""
    monkeypatch.setattr(evaluation, "STEPS", piece)
    model, tokens = make_model(cell, layers=layers), make_tokens(count)
    losses = plain_losses(model, tokens)
    got = evaluate_tokens(model, tokens, block, by_position=True)
    assert got.tokens == len(losses) == count - 1
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert got.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-12)
    by_position = [math.exp(np.mean(losses[p::block])) for p in range(block) if losses[p::block]]
    assert got.by_position == pytest.approx(by_position, rel=1e-12)
    assert evaluate_tokens(model, tokens, block).by_position is None


def unrolled(monkeypatch, tokens: ArrayTokens, piece: int, **options) -> list[tuple[int, int]]:
    """Steps and pieces of every roll-out of an evaluation."""
    monkeypatch.setattr(evaluation, "STEPS", piece)
    model, seen = make_model(**options), []
    unroll = model.unroll
    monkeypatch.setattr(
        model, "unroll", lambda inputs, state: seen.append(tuple(inputs.shape)) or unroll(inputs, state)
    )
    evaluate_tokens(model, tokens, 4)
    return seen


def test_pieces_are_rolled_out_side_by_side(monkeypatch):
    """776 tokens as 12 pieces of 64: sweeps until the states have settled, then what is left."""
    sweeps = unrolled(monkeypatch, make_tokens(777), 64)
    assert sweeps[-1] == (8, 1)
    assert set(sweeps[:-1]) == {(64, 12)}
    assert 2 <= len(sweeps[:-1]) <= evaluation.SWEEPS


def test_a_model_that_does_not_forget_is_rolled_out_piece_by_piece(monkeypatch):
    """In pieces of 8 steps states settle after about as many sweeps as there are pieces."""
    monkeypatch.setattr(evaluation, "SWEEPS", 3)
    sweeps = unrolled(monkeypatch, make_tokens(81), 8)
    assert sweeps == [(8, 10)] * evaluation.SWEEPS + [(8, 1)] * 10


def together(model: LanguageModel, text: ArrayTokens, block: int, count: int) -> tuple[list[float | None], bool]:
    """The losses of `count` shares, and whether each began as the one before it ended."""
    shares = [share_of_loss(model, text, block, rank, count) for rank in range(count)]
    joints = torch.stack([share.joints for share in shares]).sum(0)
    return [share.loss for share in shares], joined(joints, model.bias.dtype)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
@pytest.mark.parametrize("tokens", [2, 65, 777, 1400])
def test_workers_share_an_evaluation(tokens: int, count: int, monkeypatch):
    """What each finds without the others adds up to the whole, also where there are fewer pieces than workers."""
    monkeypatch.setattr(evaluation, "STEPS", 64)
    model, text = make_model(), make_tokens(tokens)
    losses, fit = together(model, text, 4, count)
    assert fit
    assert None not in losses
    wanted = evaluate_tokens(model, text, 4).loss * (tokens - 1)
    assert sum(loss or 0.0 for loss in losses) == pytest.approx(wanted, rel=1e-12)
    assert sum(loss == 0.0 for loss in losses) == max(0, count - -(-(tokens - 1) // 64))


def test_a_model_that_does_not_forget_is_not_shared(monkeypatch):
    monkeypatch.setattr(evaluation, "STEPS", 4)
    losses = [share_of_loss(make_model(), make_tokens(81), 4, rank, 2).loss for rank in range(2)]
    assert losses[0] is not None
    assert losses[1] is None


def linear(rates: list[float], dtype: str = "float64") -> LanguageModel:
    """A unit each, h ← rate · h + what token 1 of three adds; the head reads the first for token 1."""
    model = build_model(Model(cell="elman", activation="identity", hidden=len(rates)), Run(dtype=dtype), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = model.layers[0]
        model.embedding.weight[1] = layer.input.weight[0, 0] = 1.0
        layer.recurrent.weight.copy_(torch.diag(torch.tensor(rates)))
        model.weight[1, 0] = 2.0
    return model


def test_a_large_unit_does_not_hide_that_another_has_not_settled(monkeypatch):
    """The first unit forgets slowly, the other is constant, and a million times as large."""
    monkeypatch.setattr(evaluation, "STEPS", 64)
    model = linear([0.99, 0.0], "float32")
    with torch.no_grad():
        model.layers[0].input.weight[0, 0] = 0.02
        model.layers[0].input.bias[1] = 1e6
    text = ArrayTokens((np.arange(1000) < 500).astype(np.uint8))
    assert evaluate_tokens(model, text, 4).loss == pytest.approx(np.mean(plain_losses(model, text)), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_what_a_model_never_forgets_is_seen_where_workers_meet(count: int, monkeypatch):
    """Token 1 comes once, early: a worker that begins behind it settles at once, in a state without it."""
    monkeypatch.setattr(evaluation, "STEPS", 16)
    ids = np.zeros(1000, np.uint8)
    ids[3] = 1
    losses, fit = together(linear([1.0]), ArrayTokens(ids), 4, count)
    assert None not in losses
    assert not fit


def piecewise(model: LanguageModel, tokens: ArrayTokens, block: int, steps: AtTestTime) -> list[float]:
    """Summed loss after every block."""
    sums: list[float] = []
    whole = evaluate_tokens(model, tokens, block, test_time=steps)
    for end in [*range(block, len(tokens) - 1, block), len(tokens) - 1]:
        part = ArrayTokens(tokens.ids[: end + 1])
        sums.append(evaluate_tokens(model, part, block, test_time=steps).loss * end)
    assert sums[-1] == pytest.approx(whole.loss * whole.tokens)
    return sums


@pytest.mark.parametrize("steps", [HSteps(3, 0.5, 0.1), ThetaSteps(2, 0.5)])
def test_test_time_steps_use_past_tokens_only(steps: AtTestTime):
    """Other tokens from some place on change no loss before it."""
    model, block = make_model(), 4
    tokens = make_tokens(41)
    before = piecewise(model, tokens, block, steps)
    for cut in (4, 17, 30):
        other = ArrayTokens(tokens.ids.copy())
        other.ids[cut + 1 :] = make_tokens(40 - cut, seed=9).ids
        after = piecewise(model, other, block, steps)
        whole = cut // block
        assert after[:whole] == before[:whole]
        assert after[whole + 1 :] != before[whole + 1 :]


def test_test_time_steps_lower_the_loss_on_repeated_text():
    """The state can learn at test time what θ does not know: which of two words goes on for ever."""
    model = make_model()
    tokens = ArrayTokens(np.array([1, 2, 3, 4] * 40, dtype=np.uint8))
    rolled = evaluate_tokens(model, tokens, 4).loss
    assert evaluate_tokens(model, tokens, 4, test_time=HSteps(0, 0.5, 0.1)).loss == pytest.approx(rolled)
    improved = [evaluate_tokens(model, tokens, 4, test_time=HSteps(n, 0.5, 0.01)).loss for n in (1, 5)]
    assert improved[1] < improved[0] < rolled


def test_dynamic_evaluation_is_a_loop_of_blocks():
    """Predict a block, then step on θ along the gradient of its mean loss; the state goes on as it was predicted."""
    model, tokens, block, lr = make_model(), make_tokens(23), 4, 0.3
    found = evaluate_tokens(model, tokens, block, test_time=ThetaSteps(1, lr))
    ids, state, total = torch.from_numpy(tokens.ids.astype(np.int64)), model.zero_state(1), 0.0
    for begin in range(0, len(ids) - 1, block):
        inputs, labels = ids[begin : begin + block], ids[begin + 1 : begin + block + 1]
        inputs = inputs[: len(labels)]
        h, after = model.unroll(inputs[:, None], state)
        loss = torch.nn.functional.cross_entropy(model.logits(h[:, 0]), labels)
        total += loss.item() * len(labels)
        model.zero_grad()
        loss.backward()
        torch.optim.SGD(model.parameters(), lr).step()
        state = after.detach()
    assert found.loss * found.tokens == pytest.approx(total)


def test_h_steps_at_test_time_are_a_loop_of_blocks():
    """Predict a block, fit its start to it by gradient steps, and go on from where that start leads."""
    model, tokens, block, lr, weight = make_model(), make_tokens(23), 4, 0.3, 0.7
    found = evaluate_tokens(model, tokens, block, test_time=HSteps(2, lr, weight))
    ids, state, total = torch.from_numpy(tokens.ids.astype(np.int64)), model.zero_state(1), 0.0
    for begin in range(0, len(ids) - 1, block):
        labels = ids[begin + 1 : begin + block + 1]
        inputs = ids[begin : begin + len(labels), None]
        total -= plain_log_p(model, inputs, labels, state).item()
        start, anchor = state.clone().requires_grad_(), state
        for _ in range(2):
            cost = weight / 2 * ((start - anchor) ** 2).sum() - plain_log_p(model, inputs, labels, start)
            (gradient,) = torch.autograd.grad(cost, start)
            start = (start - lr * gradient).detach().requires_grad_()
        state = model.unroll(inputs, start)[1].detach()
    assert found.loss * found.tokens == pytest.approx(total)


def plain_log_p(model: LanguageModel, inputs: torch.Tensor, labels: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Of all labels [B] together, after inputs [B, 1] from a state."""
    h, _ = model.unroll(inputs, start)
    return model.logits(h[:, 0]).log_softmax(1).gather(1, labels[:, None]).sum()


def test_dynamic_evaluation_passes_over_a_parameter_that_is_not_used():
    """As an own cell may have one."""
    model, tokens, steps = make_model(), make_tokens(30), ThetaSteps(2, 0.5)
    wanted = evaluate_tokens(model, tokens, 4, test_time=steps).loss
    model.layers[0].register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    assert evaluate_tokens(model, tokens, 4, test_time=steps).loss == wanted


@pytest.mark.parametrize("steps", [HSteps(2, 0.5, 0.1), ThetaSteps(2, 0.5)])
def test_test_time_steps_leave_the_parameters_alone(steps: AtTestTime):
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    evaluate_tokens(model, make_tokens(20), 4, test_time=steps)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_unigram_perplexity_by_hand(tmp_path: Path):
    """Counts a 3, b 2, <eos> 1 of 6; the test split's predicted tokens are b and <eos>."""
    for split, text in {"train": "a a b a b\n", "valid": "a a b\n", "test": "a b\n"}.items():
        (tmp_path / split).write_text(text)
    files = {split: str(tmp_path / split) for split in ("train", "valid", "test")}
    manifest = prepare(Data(recipe="text", **files), tmp_path / "store").manifest
    assert manifest.unigram_perplexity["test"] == pytest.approx((6 / 2 * 6 / 1) ** (1 / 2))
    assert manifest.unigram_perplexity["valid"] == pytest.approx((6 / 3 * 6 / 2 * 6 / 1) ** (1 / 3))


def test_perplexity_does_not_overflow():
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf


def test_tick_is_called_after_every_piece_and_may_end_it(monkeypatch):
    monkeypatch.setattr(evaluation, "STEPS", 8)
    ticks: list[None] = []
    evaluate_tokens(make_model(), make_tokens(30), 4, tick=lambda: ticks.append(None))
    assert len(ticks) == 4

    def tick() -> None:
        ticks.append(None)
        if len(ticks) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tokens(make_model(), make_tokens(30), 4, tick=tick)
    assert len(ticks) == 6


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.03), ("float64", 1e-3)])
def test_dtypes_train_alike(dtype: str, near: float, small_corpus: Path, tmp_path: Path):
    """Against float32; bfloat16 rounds matrix products to three digits."""
    parts = {"run": {"epochs": 3, "dtype": dtype}}
    first = tpdist.train(small(small_corpus, run={"epochs": 3}), tmp_path / "float32")
    other = tpdist.train(small(small_corpus, **parts), tmp_path / dtype)
    assert other.valid_perplexity == pytest.approx(first.valid_perplexity, rel=near)
    assert other.valid_perplexity != first.valid_perplexity
    again = tpdist.evaluate(tmp_path / dtype).perplexity
    assert again == other.valid_perplexity


def test_deterministic_runs_repeat_and_leave_torch_as_it_was(small_corpus: Path, tmp_path: Path):
    seen = []
    for name in ("one", "two"):
        config = small(small_corpus, run={"deterministic": True})
        seen.append(tpdist.train(config, tmp_path / name).valid_perplexity)
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen[0] == seen[1]
    assert Store.open(small_corpus).manifest.unigram_perplexity["valid"] > seen[0]


def test_kernels_are_those_of_the_run_and_then_as_they_were(small_corpus: Path, tmp_path: Path, monkeypatch):
    was, during = precisions(), []

    def evaluated(*arguments: Any, **options: Any) -> Evaluation:
        during.append(precisions())
        return evaluate_tokens(*arguments, **options)

    monkeypatch.setattr("tpdist.launch.trained.evaluate_tokens", evaluated)
    monkeypatch.setattr("tpdist.training.epoch_end.evaluate_tokens", evaluated)
    tpdist.train(small(small_corpus, run={"epochs": 1}), tmp_path / "run")
    assert precisions() == was
    tpdist.evaluate(tmp_path / "run")
    assert precisions() == was
    assert during == [("ieee", "ieee")] * 3  # validation and test of the run, and the command's
    assert torch.get_float32_matmul_precision() == "highest"  # raises where a setting was left behind


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]


def test_a_worker_is_deterministic_wherever_it_is_hosted(small_corpus: Path, tmp_path: Path):
    """Not by the command's process alone: under Ray it has one of its own."""
    config = small(small_corpus, run={"deterministic": True, "epochs": 1})
    try:
        run_worker(config, Store.open(small_corpus), RunDirectory.create(config, tmp_path / "run"), Silent(), False)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
