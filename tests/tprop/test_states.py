"""First values of H, and what a visit leaves in the stored states."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import Problem, experiment, make_stream, windows_of
from torch import Tensor

from tpdist.models import LanguageModel, build_model
from tpdist.tprop import Alone, Boundaries, Plan, Theta, Window, make_window, plan_epoch, visit
from tpdist.tprop.outcome import by_place
from tpdist.tprop.states import first_values

TYPES, B, S, K = 6, 3, 2, 4
ALL = 3 * K  # blocks of a stream: three windows


class Case:
    """A stream of three windows and stored states drawn at random."""

    def __init__(self, order: str = "sequential", method: dict[str, Any] | None = None, **parts: Any):
        self.config = experiment(
            objective={"block": B, "weight": 0.5},
            method={"name": "admm", **(method or {})},
            batching={"streams": S, "blocks": K, "order": order},
            **parts,
        )
        self.model: LanguageModel = build_model(self.config.model, self.config.run, TYPES)
        self.plan: Plan = plan_epoch(self.config, 1, K)
        self.stream = make_stream(S, ALL * B, TYPES)
        self.windows = windows_of(self.stream, B, K)
        self.boundaries = Boundaries.for_plan(self.plan, S, ALL, self.model)
        g = torch.Generator().manual_seed(8)
        self.stored = torch.rand(S, ALL + 1, self.model.state_size, generator=g).double() - 0.5
        if self.boundaries.h is not None:
            self.boundaries.h.copy_(self.stored)
        self.carried = torch.rand(S, self.model.state_size, generator=g).double()

    def roll(self, state: Tensor, first: int, last: int) -> Tensor:
        """Through blocks first..last-1 of the stream."""
        with torch.no_grad():
            ids = self.stream[:, first * B : last * B].t()
            return self.model.unroll(ids, state)[1] if last > first else state

    def first(self, index: int, window: Window | None = None) -> Tensor:
        window = self.windows[index] if window is None else window
        return first_values(self.model, self.plan, window, index * K, self.boundaries, self.carried, Alone())

    def with_earlier(self, index: int, blocks: int) -> Window:
        """Window `index` and the inputs of the blocks before it."""
        begin = index * K
        ids = self.stream[:, (begin - blocks) * B : begin * B]
        return replace(self.windows[index], earlier=ids.reshape(S, blocks, B).permute(2, 0, 1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("index", "edge"), [(0, "carry"), (1, "carry"), (1, "zero")])
@pytest.mark.parametrize("first", ["zero", "one-block", "forward"])
def test_first_values(first: str, index: int, edge: str) -> None:
    case = Case(method={"first": first, "edge": edge})
    h, begin = case.first(index), index * K
    start = case.carried if edge == "carry" and index else torch.zeros_like(case.carried)
    close(h[:, 0], start)
    for i in range(1, K):
        wanted = {
            "zero": torch.zeros_like(start),
            "one-block": case.roll(torch.zeros_like(start), begin + i - 1, begin + i),
            "forward": case.roll(start, begin, begin + i),
        }[first]
        close(h[:, i], wanted)
    assert not h[:, K].any()


@pytest.mark.parametrize("sweeps", range(K + 1))
def test_relaxation_reaches_as_many_blocks_back(sweeps: int) -> None:
    case = Case(method={"first": "persistent", "relaxation": sweeps, "starts": "tied"})
    h = case.first(1)
    for i in range(K):
        back = max(0, i - sweeps)
        from_state = case.carried if back == 0 else case.stored[:, K + back]
        close(h[:, i], case.roll(from_state, K + back, K + i))


@pytest.mark.parametrize("sweeps", [0, 1, 2, 5])
def test_relaxation_crosses_the_edge_of_a_shuffled_window(sweeps: int) -> None:
    """Every boundary, the window's first too, is its stored state of `sweeps` blocks earlier rolled up to here."""
    case = Case("shuffled", {"first": "persistent", "relaxation": sweeps, "starts": "tied"})
    index = 2
    h = case.first(index, case.with_earlier(index, sweeps))
    for i in range(K):
        place = index * K + i
        close(h[:, i], case.roll(case.stored[:, place - sweeps], place - sweeps, place))


@pytest.mark.parametrize("sweeps", [1, 3])
def test_relaxation_across_the_edge_rolls_no_block_that_nobody_reads(
    sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweep after sweep one block less, and no roll-out of the blocks before the window in turn."""
    case = Case("shuffled", {"first": "persistent", "relaxation": sweeps, "starts": "tied"})
    rolled: list[int] = []
    unroll = case.model.unroll

    def counted(ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rolled.append(state.shape[0] // S)
        return unroll(ids, state)

    monkeypatch.setattr(case.model, "unroll", counted)
    case.first(2, case.with_earlier(2, sweeps))
    assert rolled == [sweeps + K - 1 - sweep for sweep in range(sweeps)]


@pytest.mark.parametrize("first", ["zero", "one-block", "forward"])
def test_a_shuffled_window_starts_from_its_stored_state_rolled_through_earlier_blocks(first: str) -> None:
    case = Case("shuffled", {"first": first})
    close(case.first(1, case.with_earlier(1, 2))[:, 0], case.roll(case.stored[:, K - 2], K - 2, K))
    close(case.first(1)[:, 0], case.stored[:, K])


def test_a_zero_edge_stays_zero_in_a_shuffled_window() -> None:
    case = Case("shuffled", {"first": "persistent", "relaxation": 2, "edge": "zero"})
    h = case.first(1, case.with_earlier(1, 2))
    assert not h[:, 0].any()
    close(h[:, 2], case.roll(torch.zeros_like(case.carried), K, K + 2))
    close(h[:, 3], case.roll(case.stored[:, K + 1], K + 1, K + 3))


@pytest.mark.parametrize("starts", ["tied", "held"])
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_what_a_visit_leaves(starts: str, order: str) -> None:
    """Tied: the moved states. Held: the starts, unmoved. Shuffled: the prediction for the window after it too."""
    case = Case(order, {"first": "persistent", "starts": starts, "h_steps": 2})
    case.plan = replace(case.plan, relaxation=0)
    first = case.first(1)
    theta = Theta(case.model, case.config.optimizer)
    outcome = visit(case.model, case.plan, theta, case.windows[1], K, case.boundaries, case.carried, Alone())
    h = case.boundaries.h
    assert h is not None
    moved = (h[:, K + 1 : 2 * K] - first[:, 1:K]).abs().amax(-1)
    assert (moved > 1e-4).all() if starts == "tied" else not moved.any()
    close(h[:, K], first[:, 0])
    outside = [*range(K), *range(2 * K + (order == "shuffled"), ALL + 1)]
    close(h[:, outside], case.stored[:, outside])
    if order == "shuffled":
        close(h[:, 2 * K], outcome.carry)


def test_carry_is_the_prediction_of_the_last_block_before_theta_moves() -> None:
    case = Case(method={"first": "forward", "name": "bptt"})
    wanted = case.roll(case.carried, K, 2 * K)
    theta = Theta(case.model, case.config.optimizer)
    close(visit(case.model, case.plan, theta, case.windows[1], K, Boundaries(), case.carried, Alone()).carry, wanted)


def test_closing_target_starts_at_zero_and_its_dual_is_kept() -> None:
    case = Case(method={"first": "forward", "closing": True, "h_steps": 0, "dual": {"lr": 0.3}}, optimizer={"lr": 1e-9})
    window = windows_of(case.stream, B, K, closing=True)[0]
    assert window.coupled[:, K].all()
    assert window.movable[:, K].all()
    boundaries = Boundaries.for_plan(case.plan, S, K, case.model)
    theta = Theta(case.model, case.config.optimizer)
    for _ in range(2):
        visit(case.model, case.plan, theta, window, 0, boundaries, case.carried, Alone())
    prediction = case.roll(torch.zeros_like(case.carried), 0, K)
    assert boundaries.u is not None
    torch.testing.assert_close(boundaries.u[:, K], -2 * 0.3 * 0.5 * prediction, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("edge_free", [False, True])
def test_edge_free_moves_the_first_state_of_the_window(edge_free: bool) -> None:
    case = Case(method={"first": "persistent", "starts": "tied", "edge_free": edge_free})
    window = windows_of(case.stream, B, K, edge_free=edge_free)[1]
    theta = Theta(case.model, case.config.optimizer)
    visit(case.model, case.plan, theta, window, K, case.boundaries, case.carried, Alone())
    assert case.boundaries.h is not None
    moved = float((case.boundaries.h[:, K] - case.carried).abs().max())
    assert moved > 1e-3 if edge_free else moved == 0


def test_a_block_without_labels_has_no_boundary_and_ends_at_a_neighbour() -> None:
    labels = torch.zeros(B, S, K, dtype=torch.long)
    labels[:, 1, K - 1] = -1
    inputs = labels.clamp(min=0)
    options: dict[str, Any] = {"tokens": 1, "opens": True}
    window = make_window(inputs, labels, torch.float64, **options)
    assert window.coupled.tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]
    right = make_window(inputs, labels, torch.float64, continues=(True, False), **options)
    assert right.coupled.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    left = make_window(
        inputs.clone(), torch.zeros_like(labels), torch.float64, continues=(False, True),
        follows=torch.tensor([True, False]), **options,
    )  # fmt: skip
    assert left.coupled.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    assert left.movable[:, K].tolist() == [False, False]


def test_primal_and_dual_residuals_of_a_visit() -> None:
    """Σ ‖h - ĥ‖² over interior boundaries; λ² Σ ‖Δĥ‖² between the first pass and the fresh ĥ of the dual step."""
    problem = Problem(
        method={"name": "admm", "h_steps": 1, "first": "zero", "starts": "tied"}, objective={"weight": 0.5}
    )
    boundaries = Boundaries.for_plan(problem.plan, 2, problem.window.blocks, problem.model)
    outcome = visit(problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone())
    zero = torch.zeros(2, 4, problem.model.state_size).double()
    zero[:, 0] = problem.carried
    ids = problem.window.inputs.flatten(1)
    before = problem.model.unroll(ids, zero.flatten(0, 1))[1].view_as(zero)
    assert boundaries.u is not None
    residual = boundaries.u[:, 1:4]  # u = r after one step from 0 with α = 1/λ
    assert float(outcome.primal) == pytest.approx(float(residual.square().sum()), rel=1e-12)
    torch.testing.assert_close(outcome.residuals, residual.square().sum((0, 2)), rtol=1e-12, atol=0)
    # the θ of `Problem` does not move; the fresh ĥ is of the moved starts, h = ĥ + r
    moved = zero.clone()
    gradient = torch.zeros_like(zero)
    leaf = zero.clone().requires_grad_()
    h, _ = problem.model.unroll(ids, leaf.flatten(0, 1))
    total = problem.model.loss(h, problem.window.labels.flatten(1))
    end = problem.model.unroll(ids, leaf.flatten(0, 1))[1].view_as(zero)
    total = total + 0.25 * (leaf[:, 1:] - end[:, :-1]).square().sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    moved[:, 1:] -= 2.0 * gradient[:, 1:]
    after = problem.model.unroll(ids, moved.flatten(0, 1))[1].view_as(zero)
    assert float(outcome.dual) == pytest.approx(
        float(0.25 * (after - before).detach()[:, :-1].square().sum()), rel=1e-10
    )


@pytest.mark.parametrize(("blocks", "closing"), [(1, False), (2, False), (64, True), (65, False), (150, True)])
def test_residuals_by_place_are_sums_over_neighbouring_places(blocks: int, closing: bool) -> None:
    """At most 64 bins of as many places each, wherever a worker's part of the window begins."""
    plan = replace(Problem().plan, blocks=blocks, closing=closing)
    places = blocks - 1 + closing
    squares = torch.rand(2, blocks, generator=torch.Generator().manual_seed(2)).double()
    squares[:, places:] = 0  # boundary K, where nothing closes the window
    size = next(n for n in range(1, 4) if places <= 64 * n)
    starts = range(0, max(1, places), size)
    wanted = torch.stack([squares[:, begin : begin + size].sum() for begin in starts])
    assert len(wanted) <= 64
    torch.testing.assert_close(by_place(plan, squares, 1), wanted, rtol=1e-14, atol=0)
    cut = blocks // 3
    parts = by_place(plan, squares[:, :cut], 1) + by_place(plan, squares[:, cut:], 1 + cut)
    torch.testing.assert_close(parts, wanted, rtol=1e-14, atol=0)
