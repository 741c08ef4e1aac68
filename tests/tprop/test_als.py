"""Method `als`: the objective never rises, every half ends at a stationary point of its majoriser, workers agree."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from als_case import TYPES, Case, D, K, S
from chain import Chain, Link
from problems import make_stream

from tpdist.tprop import Alone, Boundaries, als, als_equations, als_visit
from tpdist.tprop.als import step_h
from tpdist.tprop.als_equations import parameter_groups

CELLS = ["elman", "mrnn"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_the_objective_never_rises(cell: str, weight: float) -> None:
    """After each colour of the H half and after each group of parameters, over many alternations."""
    case = Case(cell, weight)
    values = [case.objective()]
    for _ in range(15):
        with torch.no_grad():
            for parity in (0, 1):
                with torch.enable_grad():
                    case.h = case.h + step_h(case.model, case.plan, case.window, case.h, parity, Alone()).detach()
                values.append(case.objective())
            for equations, step in parameter_groups(case.model):
                step(case.model, equations(case.model, case.plan, case.window, case.h))
                values.append(case.objective())
    for before, after in itertools.pairwise(values):
        assert after <= before + 1e-10 * abs(before)
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("parity", [0, 1])
def test_the_h_half_is_stationary(cell: str, parity: int) -> None:
    case = Case(cell)
    with torch.no_grad():
        moved = case.h + step_h(case.model, case.plan, case.window, case.h, parity, Alone())
    chosen = [i for i in range(1, K) if i % 2 == parity]
    changed = (moved != case.h).any(-1)
    assert changed[0].nonzero()[:, 0].tolist() == chosen
    assert changed[1].nonzero()[:, 0].tolist() == [i for i in chosen if i < K - 1]
    moved.requires_grad_()
    new = copy.deepcopy(case.model)  # equal, and not the same: see `majoriser`
    (gradient,) = torch.autograd.grad(case.majoriser(case.model, case.h, new, moved), moved)
    before = case.h.clone().requires_grad_()
    (old,) = torch.autograd.grad(case.majoriser(case.model, case.h, new, before), before)
    assert float(old[changed].abs().max()) > 1e-2
    assert float(gradient[changed].abs().max()) < 1e-6


GROUPS = {
    "elman": [["layers.0.recurrent.weight", "layers.0.input.weight", "layers.0.input.bias"]],
    "mrnn": [
        ["layers.0.recurrent.weight"],
        ["layers.0.input.weight"],
        ["layers.0.alpha", "layers.0.beta_h", "layers.0.beta_x", "layers.0.bias"],
    ],
}


@pytest.mark.parametrize("cell", CELLS)
def test_each_group_of_parameters_is_stationary(cell: str) -> None:
    case = Case(cell)
    names = [*GROUPS[cell], ["embedding.weight"], ["weight", "bias"]]
    groups = parameter_groups(case.model)
    assert sorted(n for group in names for n in group) == sorted(n for n, _ in case.model.named_parameters())
    for (equations, step), group in zip(groups, names, strict=True):
        old = copy.deepcopy(case.model)
        with torch.no_grad():
            step(case.model, equations(case.model, case.plan, case.window, case.h))
        for name, parameter in case.model.named_parameters():
            assert torch.equal(parameter, old.get_parameter(name)) is (name not in group), name
        after, before = case.model, copy.deepcopy(old)
        for model, bound in ((before, None), (after, 2e-5)):
            wanted = [model.get_parameter(n) for n in group]
            gradients = torch.autograd.grad(case.majoriser(old, case.h, model, case.h), wanted)
            size = max(float(g.abs().max()) for g in gradients)
            assert size > 1e-2 if bound is None else size < bound, group


@pytest.mark.parametrize("cell", CELLS)
def test_a_visit_is_even_boundaries_then_odd_ones_then_the_parameters_as_often_as_asked(cell: str) -> None:
    case, by_hand = (Case(cell, theta_steps=3) for _ in range(2))
    als_visit(case.model, case.plan, case.window, 0, case.boundaries, case.model.zero_state(S), Alone())
    model, plan, window, h = by_hand.model, by_hand.plan, by_hand.window, by_hand.h
    for parity in (0, 1):
        h = h + step_h(model, plan, window, h, parity, Alone()).detach()
    with torch.no_grad():
        for equations, step in parameter_groups(model) * 3:
            step(model, equations(model, plan, window, h))
    assert case.boundaries.h is not None
    pairs = [(case.boundaries.h[:, :K], h[:, :K]), *zip(case.model.parameters(), model.parameters(), strict=True)]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_what_a_visit_tells_and_leaves(cell: str) -> None:
    """Loss and penalty are those before θ moved, residuals those after; the blocks around the window stay."""
    case, begin = Case(cell), 2
    before, weight = copy.deepcopy(case.model), case.plan.terms.weight
    stored = torch.randn(S, begin + K + 3, D, generator=torch.Generator().manual_seed(6)).double()
    boundaries = Boundaries(h=stored.clone())
    told = als_visit(case.model, case.plan, case.window, begin, boundaries, case.model.zero_state(S), Alone())
    assert boundaries.h is not None
    outside = [0, 1, *range(begin + K, begin + K + 3)]
    assert torch.equal(boundaries.h[:, outside], stored[:, outside])
    h = boundaries.h[:, begin : begin + K]
    was, now = (m.unroll(case.inputs.flatten(1), h.reshape(-1, D))[1].view_as(h).detach() for m in (before, case.model))
    coupled = case.window.coupled[:, 1:K, None]
    penalty = weight / 2 * ((h[:, 1:] - was[:, :-1]).square() * coupled).sum()
    residuals = ((h[:, 1:] - now[:, :-1]).square() * coupled).sum((0, 2))
    dual = weight**2 * ((now - was)[:, :-1].square() * coupled).sum()
    wanted = [(told.penalty, penalty), (told.residuals, residuals), (told.dual, dual), (told.carry, now[:, -1])]
    for got, value in wanted:
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-12)
    case.model = before
    assert float(told.loss + told.penalty) == pytest.approx(case.objective(torch.cat([h, h[:, :1]], 1)), rel=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_type_that_no_token_is_keeps_its_embedding(cell: str) -> None:
    case = Case(cell, stream=make_stream(S, K, TYPES - 1))
    before = case.model.embedding.weight.detach().clone()
    als_visit(case.model, case.plan, case.window, 0, case.boundaries, case.model.zero_state(S), Alone())
    same = (case.model.embedding.weight == before).all(1)
    assert same.tolist() == [not bool((case.inputs == i).any()) for i in range(TYPES)]
    assert same[-1]


@pytest.mark.parametrize("cell", CELLS)
def test_chunks_change_nothing(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    for numbers in (2**24, 3):  # all rows at once, one by one
        monkeypatch.setattr(als, "NUMBERS", numbers)
        monkeypatch.setattr(als_equations, "NUMBERS", numbers)
        case = Case(cell)
        for _ in range(2):
            als_visit(case.model, case.plan, case.window, 0, case.boundaries, case.model.zero_state(S), Alone())
        left.append([*(p.detach() for p in case.model.parameters()), case.boundaries.h])
    for one, other in zip(*left, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def perplexity(case: Case) -> float:
    """Of the exact roll-out (Eq. 1)."""
    with torch.no_grad():
        h, _ = case.model.unroll(case.inputs[0].t(), case.model.zero_state(S))
        return math.exp(min(50.0, float(case.model.loss(h, case.labels[0].t())) / case.window.tokens))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("first", ["persistent", "forward"])
def test_visits_lower_the_perplexity_of_a_tiny_corpus(cell: str, first: str) -> None:
    """A cycle through all types, with kept states and with states that are rolled out anew at every visit."""
    case = Case(cell, 1.0, stream=torch.arange(K + 1).repeat(S, 1) % TYPES, first=first)
    perplexities, sums = [perplexity(case)], []
    for _ in range(40):
        outcome = als_visit(case.model, case.plan, case.window, 0, case.boundaries, case.model.zero_state(S), Alone())
        sums.append(float(outcome.loss + outcome.penalty))
        perplexities.append(perplexity(case))
    if first == "persistent":
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(sums))
    assert perplexities[0] > 0.9 * TYPES
    assert perplexities[-1] < 1.2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lost", [math.inf, math.nan, 1e200])
@pytest.mark.parametrize("which", ["weight", "embedding.weight", "layers.0.recurrent.weight"])
def test_overflown_numbers_are_not_numbers(cell: str, lost: float, which: str) -> None:
    """No factor exists of them. The visit has to end as any other, for all workers to see what became of it."""
    case = Case(cell, theta_steps=2)
    with torch.no_grad():
        case.model.get_parameter(which)[0, 0] = lost
    outcome = als_visit(case.model, case.plan, case.window, 0, case.boundaries, case.model.zero_state(S), Alone())
    figures = [outcome.loss, outcome.penalty, *(p.sum() for p in case.model.parameters())]
    assert not torch.stack(figures).isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("spans", [[7, 5], [1, 10, 1], [4, 4, 4]])
def test_workers_agree_with_one(cell: str, spans: list[int]) -> None:
    one, *cases = [Case(cell, theta_steps=2) for _ in range(1 + len(spans))]
    for _ in range(3):
        alone = als_visit(one.model, one.plan, one.window, 0, one.boundaries, one.model.zero_state(S), Alone())
    chain = Chain(len(spans))
    links = [Link(chain, place) for place in range(len(spans))]

    def work(place: int) -> Any:
        case = cases[place]
        begin, end = sum(spans[:place]), sum(spans[: place + 1])
        assert case.boundaries.h is not None
        mine = Boundaries(h=case.boundaries.h[:, begin : end + 1].clone())
        for _ in range(3):
            outcome = als_visit(
                case.model, case.plan, case.make(begin, end), 0, mine, case.model.zero_state(S), links[place],
                chain.sum_over(place),
            )  # fmt: skip
        assert mine.h is not None
        numbers = torch.cat([torch.stack([outcome.loss, outcome.penalty, outcome.dual]).detach(), outcome.residuals])
        return [p.detach() for p in case.model.parameters()], mine.h[:, : spans[place]], numbers

    results = chain.run(work)
    for left, right in itertools.pairwise(links):  # ARCHITECTURE.md's table
        assert (left.sent_right, right.sent_left) == (3 * S * D * 2, 3 * S * D * 3)
    close = {"rtol": 1e-10, "atol": 1e-10}
    for theta, _, _ in results:
        for a, b in zip(theta, one.model.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach(), **close)
    assert one.boundaries.h is not None
    torch.testing.assert_close(torch.cat([h for _, h, _ in results], 1), one.boundaries.h[:, :K], **close)
    wanted = torch.cat([torch.stack([alone.loss, alone.penalty, alone.dual]).detach(), alone.residuals])
    torch.testing.assert_close(torch.stack([n for _, _, n in results]).sum(0), wanted, **close)
