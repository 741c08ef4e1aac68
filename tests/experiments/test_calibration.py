"""What `tpdist plan` times on this machine."""

from types import SimpleNamespace
from typing import Any

import pytest

from tpdist.config import Experiment
from tpdist.experiments import calibration, costs, measure
from tpdist.tprop import plan_epoch

TYPES, B = 50, 4


def experiment(method: dict[str, Any], **batching: Any) -> Experiment:
    return Experiment.model_validate(
        {"model": {"hidden": 6}, "objective": {"block": B}, "method": method, "batching": batching}
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SMALL", 200), ("LARGE", 2_000), ("CHUNK", 200)):
        monkeypatch.setattr(calibration, name, value)


def test_a_machines_updates_make_a_line() -> None:
    config = experiment({"name": "admm", "first": "persistent"}, mode="batch", streams=1)
    share = costs.share_of(config, 40_000)
    device = calibration.calibrate(config, plan_epoch(config, 1, share.blocks), TYPES, share)
    assert device.per_token_s > 0
    assert device.fixed_s >= 0


@pytest.mark.parametrize("sweeps", [3, 9_999])
def test_of_many_costate_sweeps_a_few_are_made(sweeps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an update takes 1 s, a token 2 ms, a sweep 0.1 s and 0.5 ms a token."""
    made, clock = set[int](), SimpleNamespace(now=0.0)

    def visit(model: Any, plan: Any, theta: Any, window: Any, *others: Any) -> None:
        made.add(plan.sweeps)
        clock.now += 1 + 0.1 * plan.sweeps + window.tokens * (2e-3 + 0.5e-3 * plan.sweeps)

    monkeypatch.setattr(calibration, "visit", visit)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    config = experiment({"name": "costate", "sweeps": sweeps}, mode="batch", streams=1)
    share = costs.share_of(config, 40_001)
    device = calibration.calibrate(config, plan_epoch(config, 1, share.window), TYPES, share)
    assert max(made) <= 8
    assert device.fixed_s == pytest.approx(1 + 0.1 * sweeps)
    assert device.per_token_s == pytest.approx(2e-3 + 0.5e-3 * sweeps)


@pytest.mark.parametrize(("order", "reach"), [("shuffled", 3), ("sequential", 0)])
def test_windows_in_random_order_come_with_the_blocks_before_them(
    order: str, reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[tuple[int, int]]()
    visit = calibration.visit

    def looked_at(model: Any, plan: Any, theta: Any, window: Any, begin: int, *others: Any) -> Any:
        seen.add((window.earlier.shape[2], begin))
        return visit(model, plan, theta, window, begin, *others)

    monkeypatch.setattr(calibration, "visit", looked_at)
    method = {"name": "costate", "first": "persistent", "relaxation": 3, "sweeps": 0}
    config = experiment(method, order=order, streams=2, blocks=1)
    share = costs.share_of(config, 40_001)
    calibration.calibrate(config, plan_epoch(config, 1, share.window), TYPES, share)
    assert seen == {(reach, reach)}
