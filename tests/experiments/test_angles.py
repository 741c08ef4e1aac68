"""Angles between gradients, where the answer is known."""

from pathlib import Path

import pytest
from small_runs import small

import tpdist
from tpdist.experiments.angles import angles


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("angles") / "run"
    config = small(small_corpus, method={"name": "bptt"}, batching={"streams": 2, "blocks": 4}, run={"epochs": 3})
    tpdist.train(config, out)
    return out


def test_held_steps_of_one_over_lambda_are_costate_sweeps(run: Path):
    found = angles(run, [], weight=0.5, windows=2)
    # 5 steps reach beyond the window's 3 boundaries: the gradient of BPTT through all of it
    assert found["5 H-steps, plain, 1/λ, held"] == pytest.approx([1.0, 1.0], abs=1e-12)
    cut, one, two = (
        sum(found[name]) / 2
        for name in ("no H-steps, truncated BPTT", "1 H-step, plain, 1/λ, held", "2 H-steps, plain, 1/λ, held")
    )
    assert cut < one < two < 1
    # moving the start too leaves something else
    assert all(abs(value - 1) > 1e-4 for value in found["5 H-steps, plain, 1/λ, tied"])


def test_nothing_of_the_run_is_changed(run: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    angles(run, ["batching.blocks=3"], weight=1.0, windows=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
