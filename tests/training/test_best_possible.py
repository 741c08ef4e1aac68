"""On a source whose entropy is known, a trained model comes near the best perplexity that there is."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import small

import tpdist
from tpdist.data import Store


def trigram_perplexity(store: Store) -> float:
    """Of the validation split, by the training split's counts of three tokens in a row."""
    train, valid = (store.tokens(split).read(0, len(store.tokens(split))) for split in ("train", "valid"))
    counts = np.full((len(store.vocabulary),) * 3, 0.01)
    np.add.at(counts, (train[:-2], train[1:-1], train[2:]), 1)
    given = counts / counts.sum(-1, keepdims=True)
    return float(np.exp(-np.log(given[valid[:-2], valid[1:-1], valid[2:]]).mean()))


def test_admm_comes_within_5_percent_of_the_best_perplexity(tmp_path: Path):
    """Each token type comes from three of the six hidden states, so the model has to remember more than two tokens."""
    config = small(
        tmp_path / "store",
        data={"synthetic": {"types": 4, "states": 6, "branching": 2, "tokens": 20_000}},
        model={"hidden": 24},
        objective={"block": 10, "weight": 0.1},
        method={"name": "admm"},
        batching={"streams": 8, "blocks": 4},
        optimizer={"lr": 0.01},
        run={"epochs": 4},
    )
    result = tpdist.train(config, tmp_path / "run")
    store, best = Store.open(tmp_path / "store"), result.best_possible_perplexity
    assert best == store.manifest.best_perplexity
    assert result.valid_perplexity == pytest.approx(best, rel=0.05)
    assert result.test_perplexity == pytest.approx(best, rel=0.05)
    assert trigram_perplexity(store) > 1.1 * result.valid_perplexity
    assert result.unigram_perplexity > 1.9 * result.valid_perplexity
