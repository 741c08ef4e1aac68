"""Costate sweeps and H-steps against BPTT (design §3), in float64."""

import pytest
from problems import BLOCKS, Problem, relative_error

from tpdist.config import BUILT_IN_CELLS
from tpdist.tprop import Alone, Boundaries, visit

CELLS = {
    **{cell: {"cell": cell} for cell in BUILT_IN_CELLS},
    "elman-tanh": {"cell": "elman", "activation": "tanh"},
    "mrnn-linear": {"cell": "mrnn", "activation": "identity"},
    "gru-2": {"cell": "gru", "layers": 2},
    "lstm-2": {"cell": "lstm", "layers": 2, "embedding": 4},
}


def run(problem: Problem) -> list:
    boundaries = Boundaries.for_plan(problem.plan, 2, BLOCKS, problem.model)
    visit(problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone())
    return problem.gradients()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sweeps", range(BLOCKS))
def test_sweeps_reach_further_back(cell: str, sweeps: int) -> None:
    problem = Problem(model=CELLS[cell], method={"name": "costate", "sweeps": sweeps}, objective={"weight": 0})
    got = run(problem)
    assert relative_error(got, problem.bptt_gradients(sweeps + 1)) < 1e-12
    if sweeps + 1 < BLOCKS:
        assert relative_error(got, problem.bptt_gradients(sweeps + 2)) > 1e-9


@pytest.mark.parametrize("cell", CELLS)
def test_default_sweeps_are_full_bptt(cell: str) -> None:
    problem = Problem(model=CELLS[cell], method={"name": "costate"}, objective={"weight": 0})
    assert relative_error(run(problem), problem.bptt_gradients(BLOCKS)) < 1e-12


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("weight", [0.1, 1.0, 30.0])
def test_held_h_steps_are_costate_sweeps(cell: str, steps: int, weight: float) -> None:
    problem = Problem(
        model=CELLS[cell], method={"name": "pm", "h_steps": steps, "starts": "held"}, objective={"weight": weight}
    )
    assert relative_error(run(problem), problem.bptt_gradients(steps + 1)) < 1e-11


def test_tied_starts_leave_an_error_that_does_not_vanish() -> None:
    errors = []
    for weight in (1e2, 1e4, 1e6):  # η = 1/λ → 0
        problem = Problem(method={"name": "pm", "h_steps": 1, "starts": "tied"}, objective={"weight": weight})
        errors.append(relative_error(run(problem), problem.bptt_gradients(2)))
    assert errors[-1] == pytest.approx(errors[-2], rel=1e-2)
    assert errors[-1] > 1e-3


@pytest.mark.parametrize("cell", ["gru", "lstm-2"])
@pytest.mark.parametrize("block", [1, 5])
def test_sweeps_are_full_bptt_where_the_loss_sits_on_targets_too(cell: str, block: int) -> None:
    """Eq. 8 on rolled-out states: a boundary's own token reaches θ through its costate alone."""
    problem = Problem(
        model=CELLS[cell], method={"name": "costate"}, objective={"weight": 0, "loss_on": "target", "block": block}
    )
    assert relative_error(run(problem), problem.bptt_gradients(BLOCKS)) < 1e-12


def test_a_penalty_adds_nothing_to_the_first_gradient_on_rolled_out_states() -> None:
    problem = Problem(method={"name": "costate"}, objective={"weight": 3.0})
    assert relative_error(run(problem), problem.bptt_gradients(BLOCKS)) < 1e-12
