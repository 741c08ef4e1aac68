"""The adding problem, and the model that brings it through the package's own methods."""

import pytest
import torch
from memory_gradients import gradient, gradients_of

from tpdist.experiments.adding import ADDING, MARKED, Adder, sequences
from tpdist.experiments.longmemory import error

STEPS, STREAMS = 520, 3


def test_two_of_the_first_values_are_marked_and_the_trivial_answer_errs_by_a_sixth():
    inputs, sums = sequences(20_000, STEPS, torch.Generator().manual_seed(0))
    marked = inputs.imag
    assert inputs.shape == (STEPS, 20_000)
    assert (marked.sum(0) == 2).all()
    assert not marked[MARKED:].any()
    assert torch.equal(sums, (inputs.real * marked).sum(0, keepdim=True))
    assert float((sums - 1).square().mean()) == pytest.approx(ADDING.trivial, rel=0.03)


def test_a_head_of_nothing_gives_the_trivial_answer():
    model = Adder(4, STEPS)
    torch.nn.init.zeros_(model.weight)
    inputs, sums = sequences(50, STEPS, torch.Generator().manual_seed(1))
    assert error(model, inputs, sums) == pytest.approx(float((sums - 1).square().mean()), rel=1e-5)


def test_blocks_are_the_sequence_cut_and_the_answer_is_wanted_once():
    inputs, sums = sequences(STREAMS, STEPS, torch.Generator().manual_seed(2))
    cut, labels = ADDING.in_blocks(inputs, sums, 20)
    assert cut.shape == (20, STREAMS, STEPS // 20)
    assert torch.equal(cut[3, :, 2], inputs[43])
    assert torch.equal(labels[-1, :, -1], sums[0])
    assert labels.isnan().sum() == labels.numel() - STREAMS


@pytest.mark.parametrize("sweeps", [0, 24, 25])
def test_only_sweeps_over_the_whole_sequence_are_full_bptt(sweeps: int):
    got, model, cut, labels = gradient(ADDING, {"name": "costate", "sweeps": sweeps}, 20, STEPS, STREAMS)
    wanted, *_ = gradient(ADDING, {"name": "bptt"}, STEPS, STEPS, STREAMS)
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True))
    assert off < 1e-10 if sweeps == 25 else off > 1e-6
    # and full BPTT is autograd's own
    h, _ = model.unroll(cut.permute(2, 0, 1).reshape(STEPS, STREAMS), model.zero_state(STREAMS))
    (model.logits(h[-1])[:, 0] - labels[-1, :, -1]).square().sum().backward()
    own = gradients_of(model)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(own, wanted, strict=True))


def test_truncated_bptt_is_blind_to_the_marked_values():
    """Its gradient is that of the last block alone, from a state that counts as given."""
    got, model, cut, labels = gradient(ADDING, {"name": "bptt"}, 20, STEPS, STREAMS)
    state = model.zero_state(STREAMS)
    with torch.no_grad():
        for block in range(STEPS // 20 - 1):
            state = model.unroll(cut[:, :, block], state)[1]
    h, _ = model.unroll(cut[:, :, -1], state)
    model.loss(h, labels[:, :, -1]).backward()
    own = gradients_of(model)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(got, own, strict=True))
