"""Cells against plain loops and written equations."""

from typing import Any

import pytest
import torch
from small_models import B, E, H, N, rand
from torch import Tensor, nn

from tpdist.models import GRU, LSTM, MRNN, Cell, Elman
from tpdist.models import gru as gru_module
from tpdist.models.cells import in_pieces


@pytest.mark.parametrize("kind", [GRU, LSTM])  # the others have no other
def test_fast_forward_equals_the_step_loop(kind: type[Cell]) -> None:
    cell = kind(E, H).double()
    for p in cell.parameters():
        nn.init.normal_(p)
    x, state = rand(B, N, E).requires_grad_(), rand(N, cell.state_size).requires_grad_()
    up_h, up_last = rand(B, N, H), rand(N, cell.state_size)
    results = []
    for forward in (cell, lambda x, s: Cell.forward(cell, x, s)):
        h, last = forward(x, state)
        assert torch.equal(h[-1], last[:, :H])
        total = (h * up_h).sum() + (last * up_last).sum()
        results.append((h, last, *torch.autograd.grad(total, [x, state, *cell.parameters()])))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2 * N, 100])
def test_the_gru_works_its_derivatives_out_some_steps_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "ROWS", rows)
    cell, state, x = GRU(E, H).double(), rand(N, H).requires_grad_(), rand(B, N, E)
    for up in ((None, rand(N, H)), (rand(B, N, H), None)):
        slow, fast = (
            torch.autograd.grad([y for y, u in zip(run(x, state), up, strict=True) if u is not None], state,
                                [u for u in up if u is not None])
            for run in (lambda x, s: Cell.forward(cell, x, s), cell)
        )  # fmt: skip
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    monkeypatch.delattr(gru_module, "_slopes")  # which nobody asks for
    with torch.no_grad():
        for got, wanted in zip(cell(x, state), Cell.forward(cell, x, state), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alone", ["inputs", "state", "weights"])
def test_the_gru_where_one_alone_learns(alone: str) -> None:
    cell, x, state = GRU(E, H).double().requires_grad_(alone == "weights"), rand(B, N, E), rand(N, H)
    asked = {"inputs": [x], "state": [state], "weights": list(cell.parameters())}[alone]
    for tensor in asked:
        tensor.requires_grad_()
    slow, fast = (
        torch.autograd.grad(run(x, state)[0].square().sum(), asked)
        for run in (lambda x, s: Cell.forward(cell, x, s), cell)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


def test_steps_are_the_written_equations() -> None:
    x, h = rand(N, E), rand(N, H)
    elman, mrnn = Elman(E, H).double(), MRNN(E, H).double()
    for p in (*elman.parameters(), *mrnn.parameters()):
        nn.init.normal_(p)
    wanted = torch.sigmoid(x @ elman.input.weight.T + elman.input.bias + h @ elman.recurrent.weight.T)
    torch.testing.assert_close(elman.step(elman.project(x), h), wanted)
    a, u = x @ mrnn.input.weight.T, h @ mrnn.recurrent.weight.T
    wanted = torch.tanh(mrnn.alpha * a * u + mrnn.beta_h * u + mrnn.beta_x * a + mrnn.bias)
    torch.testing.assert_close(mrnn.step(mrnn.project(x), h), wanted)


class Complex(Cell):
    """An own cell with a complex state, its two parts beside each other, to which a complex projection is added."""

    parts = 2

    def project(self, x: Tensor) -> Tensor:
        return torch.complex(x, -x)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        new = (0.5 + 0.5j) * torch.complex(*state.chunk(2, -1)) + x
        return torch.cat([new.real, new.imag], -1)


def test_the_step_loop_takes_inputs_that_are_projected_to_complex_numbers() -> None:
    cell, x, state = Complex(H, H), rand(B, N, H), rand(N, 2 * H)
    last = cell(x, state)[1]
    for at in x:
        state = cell.step(cell.project(at), state)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_sequence_in_pieces_is_the_sequence(kind: type[nn.RNNBase]):
    rnn, x, zero = kind(E, H).double(), torch.randn(7, 2, E).double(), torch.zeros(1, 2, H).double()
    state = (zero, zero) if kind is nn.LSTM else zero
    whole, pieces = rnn(x, state), in_pieces(rnn, x, state, 3)
    for one, other in zip(_flat(whole), _flat(pieces), strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(h.square().sum(), list(rnn.parameters())) for h, _ in (whole, pieces)]
    torch.testing.assert_close(*gradients)


def _flat(outcome: tuple[Tensor, Any]) -> list[Tensor]:
    h, last = outcome
    return [h, *last] if isinstance(last, tuple) else [h, last]
