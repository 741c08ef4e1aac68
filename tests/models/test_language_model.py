"""The model as the method sees it: one flat state, its dtype, its parameters."""

import pytest
import torch
from small_models import B, E, H, N, V, build, rand
from torch import nn

from tpdist.config import BUILT_IN_CELLS


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_bfloat16_products_are_close(cell: str) -> None:
    low, high = build(dtype="bfloat16", cell=cell), build(dtype="float32", cell=cell)
    ids, state = torch.randint(V, (B, N)), torch.rand(N, high.state_size) - 0.5
    results = []
    for model in (low, high):
        h, last = model.unroll(ids, state)
        loss = model.loss(h, ids)
        assert not torch.equal(h, h.bfloat16().float())  # no step rounds the state
        assert (h.dtype, last.dtype, loss.dtype, model.weight.dtype) == (torch.float32,) * 4
        results.append((h, last, loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert torch.equal(results[0][0], results[1][0]) is (cell == "lstm")  # whose steps a CPU takes in float32
    different = False
    for a, b in zip(*results, strict=True):
        different |= not torch.equal(a, b)
        assert float(((a - b).norm() / b.norm()).detach()) < 2e-2
    assert different


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_share_one_matrix_and_sum_its_gradients(tied: bool) -> None:
    model = build(tied=tied)
    assert (model.weight is model.embedding.weight) is tied
    assert len(list(model.parameters())) == (7 if not tied else 6)
    if tied:
        ids = torch.randint(V, (B, N))
        h, _ = model.unroll(ids, model.zero_state(N))
        (got,) = torch.autograd.grad(model.loss(h, ids), model.weight)
        untied = build(tied=False)
        with torch.no_grad():
            for name, p in untied.named_parameters():
                p.copy_(model.weight if name == "embedding.weight" else model.get_parameter(name))
        h, _ = untied.unroll(ids, untied.zero_state(N))
        parts = torch.autograd.grad(untied.loss(h, ids), [untied.weight, untied.embedding.weight])
        torch.testing.assert_close(got, parts[0] + parts[1], rtol=1e-12, atol=1e-12)


def test_layers_share_one_flat_state() -> None:
    """Layer by layer, h first; the head sees the top h."""
    model = build(cell="lstm", layers=2, embedding=E)
    ids, state = torch.randint(V, (B, N)), rand(N, 4 * H)
    h, last = model.unroll(ids, state)
    plain = nn.LSTM(E, H, num_layers=2).double()
    names = [f"{kind}_{at}_l{layer}" for layer in (0, 1) for kind in ("weight", "bias") for at in ("ih", "hh")]
    with torch.no_grad():
        for name in names:
            source = model.layers[int(name[-1])].get_parameter(f"rnn.{name[:-1]}0")
            plain.get_parameter(name).copy_(source)
    first = (
        torch.stack([state[:, :H], state[:, 2 * H : 3 * H]]),
        torch.stack([state[:, H : 2 * H], state[:, 3 * H :]]),
    )
    out, (h_last, c_last) = plain(model.embedding(ids), first)
    torch.testing.assert_close(h, out)
    torch.testing.assert_close(last, torch.cat([h_last[0], c_last[0], h_last[1], c_last[1]], 1))
    assert torch.equal(model.visible(last), h[-1])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_copy_is_in_one_piece(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU cuDNN would put the weights together anew at every call, and say so."""
    flattened: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    model = build(cell=cell, layers=2)
    flattened.clear()
    copied = model.copied()
    assert flattened == [module for module in copied.modules() if isinstance(module, nn.RNNBase)]
    assert len(flattened) == 2
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_a_copy_of_a_cell_that_keeps_a_result() -> None:
    """As `torch.nn.utils.weight_norm` does, and whoever looks at gates; torch alone would refuse to copy it."""
    model = build(cell="elman")
    model.layers[0].kept = model.unroll(torch.randint(V, (B, N)), rand(N, H))[0]
    copied = model.copied()
    assert torch.equal(*(vars(one.layers[0])["kept"] for one in (copied, model)))
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
