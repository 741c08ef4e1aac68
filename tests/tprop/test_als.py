"""Method `als`: the objective never rises, every half ends at a stationary point of its majoriser, workers agree."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from chain import Chain, Link
from problems import experiment, make_stream
from torch import Tensor

from tpdist.models import IGNORED, LanguageModel, build_model
from tpdist.tprop import Alone, Boundaries, Plan, Window, als, als_equations, als_visit, make_window, plan_epoch
from tpdist.tprop.als import step_h
from tpdist.tprop.als_equations import parameter_groups
from tpdist.tprop.objective import blocks_pass

TYPES, S, K, D = 7, 2, 12, 3
CELLS = ["elman", "mrnn"]


class Case:
    """Stream 1 is one token shorter. Stored states at random: nothing is at a solution."""

    def __init__(self, cell: str, weight: float = 0.6, stream: Tensor | None = None, **method: Any):
        self.config = experiment(
            model={"cell": cell, "activation": "identity", "hidden": D, "embedding": 2, "init": 0.6},
            objective={"block": 1, "loss_on": "target", "weight": weight},
            method={"name": "als", "first": "persistent", **method},
            batching={"streams": S, "blocks": K},
        )
        self.model: LanguageModel = build_model(self.config.model, self.config.run, TYPES)
        self.plan: Plan = replace(plan_epoch(self.config, 1, K), relaxation=0)  # H as the last visit left it
        stream = make_stream(S, K, TYPES) if stream is None else stream
        self.inputs, self.labels = (x.t()[None].permute(0, 2, 1).contiguous() for x in (stream[:, :-1], stream[:, 1:]))
        self.labels[:, 1, -1] = IGNORED
        self.window = self.make(0, K)
        self.boundaries = Boundaries.for_plan(self.plan, S, K, self.model)
        self.h = torch.randn(S, K + 1, D, generator=torch.Generator().manual_seed(4)).double()
        if self.boundaries.h is not None:
            self.boundaries.h.copy_(self.h)
        self.h[:, 0] = 0
        self.h[:, K] = 0

    def make(self, first: int, last: int) -> Window:
        here = slice(first, last)
        return make_window(
            self.inputs[:, :, here], self.labels[:, :, here], torch.float64, tokens=2 * K - 1, opens=True,
            continues=(first > 0, last < K), offset=first,
            follows=(self.labels[0, :, last] != IGNORED) if last < K else None,
        )  # fmt: skip

    def objective(self, h: Tensor | None = None) -> float:
        h = self.h if h is None else h
        with torch.no_grad():
            r = blocks_pass(self.model, self.plan.terms, self.window, h[:, :K], h, torch.zeros_like(h), 100)
        return float(r.loss + r.penalty)

    def majoriser(self, old: LanguageModel, old_h: Tensor, new: LanguageModel, h: Tensor) -> Tensor:
        """The upper bound around (old, old_h), at (new, h), written out token by token (Böhning 1992)."""
        total, norm = torch.zeros(()).double(), torch.linalg.matrix_norm(old.weight.detach(), 2)
        for s in range(S):
            for i in range(K - s):
                label, ids = self.labels[0, s, i], self.inputs[:, s, i][:, None]
                prediction = new.unroll(ids, h[None, s, i])[1][0]
                last = i + 1 == K - s
                with torch.no_grad():
                    old_read = old.unroll(ids, old_h[None, s, i])[1][0] if last else old_h[s, i + 1]
                    old_logits = old.logits(old_read)
                read = prediction if last else h[s, i + 1]
                logits = new.weight @ read + new.bias
                slope = torch.softmax(old_logits, 0) - torch.nn.functional.one_hot(label, TYPES)
                quadratic = (logits - old_logits).square().sum() / 4
                if last and new.weight is not old.weight and torch.equal(new.weight, old.weight):
                    quadratic = norm.square() * (read - old_read).square().sum() / 4
                total = total - old_logits.log_softmax(0)[label] + slope @ (logits - old_logits) + quadratic
                if not last:
                    total = total + self.plan.terms.weight / 2 * (read - prediction).square().sum()
        return total


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

    def work(place: int) -> Any:
        case = cases[place]
        begin, end = sum(spans[:place]), sum(spans[: place + 1])
        assert case.boundaries.h is not None
        mine = Boundaries(h=case.boundaries.h[:, begin : end + 1].clone())
        for _ in range(3):
            outcome = als_visit(
                case.model, case.plan, case.make(begin, end), 0, mine, case.model.zero_state(S), Link(chain, place),
                chain.sum_over(place),
            )  # fmt: skip
        assert mine.h is not None
        numbers = torch.cat([torch.stack([outcome.loss, outcome.penalty, outcome.dual]).detach(), outcome.residuals])
        return [p.detach() for p in case.model.parameters()], mine.h[:, : spans[place]], numbers

    results = chain.run(work)
    close = {"rtol": 1e-10, "atol": 1e-10}
    for theta, _, _ in results:
        for a, b in zip(theta, one.model.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach(), **close)
    assert one.boundaries.h is not None
    torch.testing.assert_close(torch.cat([h for _, h, _ in results], 1), one.boundaries.h[:, :K], **close)
    wanted = torch.cat([torch.stack([alone.loss, alone.penalty, alone.dual]).detach(), alone.residuals])
    torch.testing.assert_close(torch.stack([n for _, _, n in results]).sum(0), wanted, **close)
