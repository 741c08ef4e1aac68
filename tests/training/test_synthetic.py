"""On a source whose entropy is known, a trained model comes near the best perplexity that there is."""

from pathlib import Path

import pytest
from small_runs import small

import tpdist


def test_admm_comes_within_5_percent_of_the_best_perplexity(tmp_path: Path):
    """Six hidden states, which the model has to infer. The bound from below is the sample's own noise."""
    config = small(
        tmp_path / "store",
        data={"synthetic": {"types": 12, "states": 6, "branching": 2, "tokens": 20_000}},
        model={"hidden": 24},
        objective={"block": 10, "weight": 0.1},
        method={"name": "admm"},
        batching={"streams": 8, "blocks": 4},
        optimizer={"lr": 0.01},
        run={"epochs": 4},
    )
    result = tpdist.train(config, tmp_path / "run")
    best = result.best_possible_perplexity
    assert best == tpdist.data.Store.open(tmp_path / "store").manifest.best_perplexity
    assert result.unigram_perplexity > 5 * best
    assert result.valid_perplexity == pytest.approx(best, rel=0.05)
    assert result.test_perplexity == pytest.approx(best, rel=0.05)
