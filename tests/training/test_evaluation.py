"""Perplexity with θ frozen, against a plain loop over tokens."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_evaluation import make_model, make_tokens, plain_losses

from tpdist.config import Data, Model, Run
from tpdist.data import ArrayTokens, prepare
from tpdist.models import LanguageModel, build_model
from tpdist.training import evaluation
from tpdist.training.evaluation import evaluate_tokens, joined, perplexity, share_of_loss


@pytest.mark.parametrize(("cell", "layers"), [("gru", 1), ("elman", 2), ("lstm", 2), ("mrnn", 1)])
@pytest.mark.parametrize(
    ("count", "block", "piece"), [(2, 4, 8), (30, 4, 8), (33, 4, 1024), (25, 30, 8), (777, 4, 64), (777, 6, 64)]
)
def test_it_equals_a_plain_loop(cell, layers, count, block, piece, monkeypatch):
    """In short pieces, whose states do not settle, and in long ones, side by side; in pieces of whole blocks."""
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
