"""The copying problem, and the model that brings it through the package's own methods."""

import math

import pytest
import torch
from memory_gradients import gradient, gradients_of

from tpdist.experiments.copying import BLANK, COPIED, COPYING, GO, LETTERS, Copier, sequences
from tpdist.experiments.longmemory import error

STEPS, STREAMS = 80, 3


def test_the_letters_are_read_first_and_wanted_last():
    inputs, letters = sequences(20_000, STEPS, torch.Generator().manual_seed(0))
    assert inputs.shape == (STEPS, 20_000)
    assert torch.equal(inputs[:COPIED], letters)
    assert COPIED < 20
    assert not (inputs[COPIED:] < LETTERS).any()
    go = inputs == GO
    assert (go.sum(0) == 1).all()
    assert go[-COPIED - 1].all()
    assert (inputs[-COPIED:] == BLANK).all()
    counts = letters.flatten().bincount(minlength=LETTERS) / letters.numel()
    assert counts.tolist() == pytest.approx([1 / LETTERS] * LETTERS, rel=0.03)


def test_a_uniform_guess_errs_by_the_trivial_error():
    model = Copier(4, STEPS)
    torch.nn.init.constant_(model.bias[LETTERS:].detach(), -50.0)
    inputs, letters = sequences(50, STEPS, torch.Generator().manual_seed(1))
    assert error(model, inputs, letters) == pytest.approx(COPYING.trivial, rel=1e-5)
    assert COPYING.trivial == pytest.approx(math.log(4))
    assert COPYING.solved == pytest.approx(math.log(4) / 10)


def test_only_the_answers_count():
    model = Copier(4, STEPS)
    torch.nn.init.normal_(model.weight)
    inputs, letters = sequences(STREAMS, STEPS, torch.Generator().manual_seed(2))
    cut, labels = COPYING.in_blocks(inputs, letters, 20)
    assert torch.equal(cut[3, :, 2], inputs[43])
    with torch.no_grad():
        h, _ = model.unroll(inputs, model.zero_state(STREAMS))
        got = model.loss(h, labels.permute(2, 0, 1).reshape(STEPS, STREAMS))
        logits = model.logits(h[-COPIED:]).flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(logits, letters.flatten(), reduction="sum")
    assert float(got) == pytest.approx(float(wanted))


@pytest.mark.parametrize(("sweeps", "chunk_tokens"), [(0, 65536), (2, 65536), (3, 65536), (3, 40)])
def test_only_sweeps_over_the_whole_sequence_are_full_bptt(sweeps: int, chunk_tokens: int):
    """Also where some chunks of blocks want nothing."""
    method = {"name": "costate", "sweeps": sweeps}
    got, model, cut, labels = gradient(COPYING, method, 20, STEPS, STREAMS, chunk_tokens)
    wanted, *_ = gradient(COPYING, {"name": "bptt"}, STEPS, STEPS, STREAMS)
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True) if b.any())
    assert off < 1e-10 if sweeps == 3 else off > 1e-6
    # and full BPTT is autograd's own
    flat = [x.permute(2, 0, 1).reshape(STEPS, STREAMS) for x in (cut, labels)]
    model.loss(model.unroll(flat[0], model.zero_state(STREAMS))[0], flat[1]).backward()
    own = gradients_of(model)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(own, wanted, strict=True))


def test_the_gradient_of_truncated_bptt_is_blind_to_the_letters():
    """It gives their embeddings no gradient, and the rest what the last block gives, from a state taken as given."""
    got, model, cut, labels = gradient(COPYING, {"name": "bptt"}, 20, STEPS, STREAMS)
    state = model.zero_state(STREAMS)
    with torch.no_grad():
        for block in range(STEPS // 20 - 1):
            state = model.unroll(cut[:, :, block], state)[1]
    model.loss(model.unroll(cut[:, :, -1], state)[0], labels[:, :, -1]).backward()
    own = gradients_of(model)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(got, own, strict=True))
    embedding = dict(zip(dict(model.named_parameters()), got, strict=True))["embedding.weight"]
    assert not embedding[:LETTERS].any()
    assert embedding[GO].any()
