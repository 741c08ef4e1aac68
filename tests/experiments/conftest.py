"""Fixtures of the experiments' tests: a sweep that takes seconds, and its directory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tpdist.experiments.points import Point
from tpdist.experiments.sweep_dir import SweepDirectory

TEXT = """
data: {recipe: synthetic, store: STORE, synthetic: {types: 12, states: 4, branching: 2, tokens: 200}}
model: {hidden: 6}
objective: {block: 4}
batching: {streams: 2, blocks: 3}
run: {epochs: 2, device: cpu}
sweep:
  seeds: [0, 1]
  tuning_seeds: 1
  grid: {optimizer.lr: [0.001, 0.05]}
  arms:
    bptt: {set: {method.name: bptt}}
    broken: {set: {method.name: bptt, optimizer.options: {no_such: 1.0}}}
"""
Done = Callable[[Point, float], None]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two arms, of which every point of one fails. Its store is `store` beside it, not made yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "a.yaml"
    path.write_text(TEXT.replace("STORE", str(tmp_path / "store")))
    return path


@pytest.fixture
def home(tmp_path: Path) -> SweepDirectory:
    """Its directory, which is not there yet."""
    return SweepDirectory(tmp_path / "out")


@pytest.fixture
def done(home: SweepDirectory) -> Done:
    """Leave in `home` what a point leaves that has come to a validation perplexity."""

    def leave(point: Point, perplexity: float) -> None:
        home.run(point).mkdir(parents=True)
        result = {"valid_perplexity": perplexity, "best_epoch": 1, "tokens_per_second": 10.0, "seconds": 2.0}
        (home.run(point) / "result.json").write_text(json.dumps(result))

    return leave
