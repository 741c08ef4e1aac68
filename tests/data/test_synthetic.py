"""The synthetic source: its entropy rate is exact, its sample agrees, its stores repeat."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdist.config import Data, Synthetic
from tpdist.data import prepare
from tpdist.data.synthetic import MarkovSource, Sampler
from tpdist.errors import ConfigError


def irreducible(source: MarkovSource) -> bool:
    """Whether every state can be reached from every other: some power of the steps has no zero."""
    m, b = source.emit.shape
    steps = np.eye(m)
    steps[np.repeat(np.arange(m), b), source.following.ravel()] = 1
    return bool((np.linalg.matrix_power(steps, m) > 0).all())


@given(states=st.integers(1, 20), branching=st.integers(2, 6), extra=st.integers(0, 20), seed=st.integers(0, 1000))
def test_every_source_is_unifilar_irreducible_and_stationary(states: int, branching: int, extra: int, seed: int):
    source = MarkovSource.draw(Synthetic(types=branching + extra, states=states, branching=branching, seed=seed))
    assert all(len(set(row)) == branching for row in source.emit.tolist())
    assert source.probability.sum(axis=1) == pytest.approx(1)
    assert irreducible(source)
    assert len(np.unique(source.emit)) == min(branching + extra, states * branching)
    law = source.stationary()
    moved = np.zeros(states)
    np.add.at(moved, source.following, law[:, None] * source.probability)
    assert law.min() > 0
    assert moved == pytest.approx(law, abs=1e-12)
    assert 0 < source.entropy_rate() <= math.log(branching)


def test_a_known_source():
    """Two states; 0 stays with 1/4, 1 stays with 1/2: π = (2/5, 3/5)."""
    source = MarkovSource(np.array([[0, 1], [0, 1]]), np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([[0, 1], [1, 0]]))
    assert source.stationary() == pytest.approx([0.4, 0.6])
    quarter = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert source.entropy_rate() == pytest.approx(0.4 * quarter + 0.6 * math.log(2))
    assert not irreducible(MarkovSource(source.emit, source.probability, np.array([[0, 0], [0, 1]])))


def test_a_long_sample_agrees_with_the_entropy_rate():
    """Mean surprise by the source itself, and by the counts of (state, token) in the sample."""
    options = Synthetic(states=8, types=16, branching=3, tokens=400_000)
    source = MarkovSource.draw(options)
    sample, nats = Sampler(source, 0).take(400_000, np.dtype(np.uint8))
    assert nats == pytest.approx(source.entropy_rate(), rel=5e-3)
    # the state is a function of the past: follow it from every start until one start alone is left
    following = {(s, t): n for s in range(8) for t, n in zip(source.emit[s], source.following[s], strict=True)}
    possible = set(range(8))
    tokens = iter(sample.tolist())
    for token in tokens:
        possible = {following[s, token] for s in possible if (s, token) in following}
        if len(possible) == 1:
            break
    (state,) = possible
    counts = np.zeros((8, 16))
    for token in tokens:
        counts[state, token] += 1
        state = following[state, token]
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log(np.where(share > 0, share, 1))).sum() / counts.sum()
    assert entropy == pytest.approx(source.entropy_rate(), rel=5e-3)


def test_pieces_of_a_sample_follow_each_other():
    source = MarkovSource.draw(Synthetic())
    whole, _ = Sampler(source, 3).take(3000, np.dtype(np.uint8))
    sampler = Sampler(source, 3)
    assert (np.concatenate([sampler.take(n, np.dtype(np.uint8))[0] for n in (1000, 500, 1500)]) == whole).all()
    assert (Sampler(source, 4).take(3000, np.dtype(np.uint8))[0] != whole).any()


def test_the_first_token_is_given():
    source = MarkovSource(np.array([[0, 1]]), np.array([[0.5, 0.5]]), np.array([[0, 0]]))
    assert Sampler(source, 0).take(10, np.dtype(np.uint8))[1] == pytest.approx(math.log(2))


def test_a_sample_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def take(*_: object):
        raise MemoryError

    monkeypatch.setattr(Sampler, "take", take)
    with pytest.raises(ConfigError) as caught:
        prepare(Data(recipe="synthetic"), tmp_path / "store")
    assert str(caught.value) == ("data.synthetic.tokens: 200,000 tokens of 64 types do not fit into memory; take fewer")
    assert not list(tmp_path.iterdir())


def test_store(tmp_path: Path):
    data = Data(recipe="synthetic", synthetic=Synthetic(tokens=50_000, seed=7))
    store = prepare(data, tmp_path / "one")
    manifest = store.manifest
    assert manifest.tokens == {"train": 50_000, "valid": 5_000, "test": 5_000}
    assert len(store.vocabulary) == 64
    assert set(store.vocabulary.types) == {f"w{i}" for i in range(64)}
    assert store.vocabulary.counts == sorted(store.vocabulary.counts, reverse=True)
    assert np.bincount(store.tokens("train").read(0, 50_000)).tolist() == store.vocabulary.counts
    assert manifest.best_perplexity == math.exp(MarkovSource.draw(data.synthetic).entropy_rate())
    assert manifest.ideal_perplexity is not None
    for value in manifest.ideal_perplexity.values():
        assert value == pytest.approx(manifest.best_perplexity, rel=0.05)
    assert min(manifest.unigram_perplexity.values()) > 5 * manifest.best_perplexity
    assert prepare(data, tmp_path / "two").manifest == manifest
    other = Data(recipe="synthetic", synthetic=Synthetic(tokens=50_000, seed=8))
    assert prepare(other, tmp_path / "three").manifest.best_perplexity != manifest.best_perplexity
