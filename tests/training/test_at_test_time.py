"""What is learnt at test time: past h, or θ; each against a plain loop over blocks."""

import numpy as np
import pytest
import torch
from plain_evaluation import make_model, make_tokens

from tpdist.data import ArrayTokens
from tpdist.models import LanguageModel
from tpdist.training.at_test_time import AtTestTime, HSteps, ThetaSteps
from tpdist.training.evaluation import evaluate_tokens


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
