"""The head in chunks against torch's cross entropy over all logits."""

import itertools

import pytest
import torch
from small_models import H, V, rand
from torch import nn

from tpdist.models import IGNORED, cross_entropy, token_losses
from tpdist.models import head as head_module


@pytest.mark.usefixtures("onednn")  # in float32
@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_chunked_head_equals_cross_entropy(
    rows: int, multiple: int, needed: tuple[int, ...], dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not types are added up to a multiple, as on a GPU by its softmax; and by either library's products."""
    monkeypatch.setattr(head_module, "ROWS_ON_CPU", rows)
    monkeypatch.setitem(head_module.MULTIPLE, "cpu", multiple)
    if multiple > 1:
        monkeypatch.setattr(head_module, "_softmax_on_cpu", head_module._softmax)
    labels = torch.randint(V, (11,))
    labels[[0, 5, 10]] = IGNORED
    values = [x.to(dtype) for x in (5 * rand(11, H), rand(V, H), rand(V))]
    leaves = [x.requires_grad_(bool(n)) for x, n in zip(values, needed, strict=True)]
    h, weight, bias = leaves
    got = cross_entropy(h, weight, bias, labels)
    wanted = nn.functional.cross_entropy(h @ weight.T + bias, labels, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(got, wanted, rtol=close, atol=close)
    asked = [x for x in leaves if x.requires_grad]
    upstream = -2.5  # a loss that is scaled further on
    for a, b in zip(
        torch.autograd.grad(upstream * got, asked), torch.autograd.grad(upstream * wanted, asked), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=close, atol=close)
    each = token_losses(h, weight, bias, labels)
    assert each[labels == IGNORED].tolist() == [0, 0, 0]
    torch.testing.assert_close(each.sum(), wanted.detach(), rtol=close, atol=close)


def test_head_does_not_overflow_and_bears_ignored_and_no_tokens() -> None:
    h, weight, bias = 1e4 * rand(4, H), rand(V, H), rand(V)
    assert torch.isfinite(cross_entropy(h, weight, bias, torch.zeros(4, dtype=torch.long)))
    h.requires_grad_()
    nothing = cross_entropy(h, weight, bias, torch.full((4,), IGNORED))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert h.grad is not None
    assert not h.grad.any()
    asked = [h, weight.requires_grad_(), bias.requires_grad_()]
    nothing = cross_entropy(h[:0], weight, bias, torch.zeros(0, dtype=torch.long))
    assert float(nothing.detach()) == 0
    for gradient, of in zip(torch.autograd.grad(nothing, asked), asked, strict=True):
        assert torch.equal(gradient, torch.zeros_like(of))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head_scores_labels_whose_probability_vanishes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either of the ways that a CPU and a GPU take."""
    h, weight, bias = (x.to(dtype) for x in (rand(8, H), 100 * rand(V, H), rand(V)))
    h[2], bias[0] = 0, -100  # of which float32 holds a digit at most
    labels = (h @ weight.T + bias).argmin(1)
    labels[0], labels[1] = IGNORED, (weight @ h[1] + bias).argmax()
    wanted = nn.functional.cross_entropy(h @ weight.T + bias, labels, ignore_index=IGNORED, reduction="sum")
    assert wanted > 6 * 103  # exp(-103) is 0 in float32
    torch.testing.assert_close(cross_entropy(h, weight, bias, labels), wanted)
    monkeypatch.setattr(head_module, "_softmax_on_cpu", head_module._softmax)
    torch.testing.assert_close(cross_entropy(h, weight, bias, labels), wanted)


def test_head_keeps_its_gradients_for_another_backward_pass() -> None:
    leaves = [x.requires_grad_() for x in (rand(4, H), rand(V, H), rand(V))]
    loss = cross_entropy(*leaves, torch.arange(4))
    first = [x.clone() for x in torch.autograd.grad(loss, leaves, retain_graph=True)]
    loss.backward(retain_graph=True)
    for leaf in leaves:
        assert leaf.grad is not None
        leaf.grad.zero_()  # as an optimiser may do to what it was given
    loss.backward()
    for leaf, wanted in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, wanted)  # type: ignore[arg-type]


def test_head_refuses_second_derivatives() -> None:
    """The gradient is computed in the forward pass; a derivative of it would be silently wrong."""
    h, weight, bias = rand(4, H).requires_grad_(), rand(V, H), rand(V)
    (gradient,) = torch.autograd.grad(
        cross_entropy(h, weight, bias, torch.zeros(4, dtype=torch.long)) ** 2, h, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bfloat16_gradients_of_many_chunks_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 256 + 1 is 256."""
    monkeypatch.setattr(head_module, "ROWS_ON_CPU", 1)
    h, weight, bias = torch.ones(1500, H), torch.zeros(V, H).requires_grad_(), torch.zeros(V).requires_grad_()
    labels = torch.zeros(1500, dtype=torch.long)
    low, high = (
        torch.autograd.grad(cross_entropy(h, weight, bias, labels, dtype), [weight, bias])
        for dtype in (torch.bfloat16, torch.float32)
    )
    torch.testing.assert_close(low, high, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head_holds_the_logits_of_one_chunk(dtype: torch.dtype) -> None:
    tokens, types = 10 * head_module.ROWS_ON_CPU + 1, 200
    h, weight, bias = (torch.randn(n, dtype=dtype) for n in ((tokens, H), (types, H), types))
    labels = torch.randint(types, (tokens,))
    chunk = head_module.ROWS_ON_CPU * types * h.element_size()
    for scored, most in ((cross_entropy, 1.5), (token_losses, 2.5)):  # torch's own loss makes a second tensor of them
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            scored(h, weight.requires_grad_(scored is cross_entropy), bias, labels)
        events = profile.kineto_results.events()  # type: ignore[union-attr]
        memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        assert max(itertools.accumulate(size for _, size in memory)) < most * chunk
