"""Recipe `synthetic`: a hidden Markov source whose entropy rate is known exactly.

The source is unifilar: hidden state s emits one of `branching` token types with probabilities p_s, and the next
state is a function of (s, token). So the state sequence is a Markov chain with stationary law π, and the entropy
rate is Σ_s π_s H(p_s) (Shannon 1948, Theorem 5); exp of it is the best perplexity that any model can reach on
long text. The model sees the tokens only and has to infer the state.

One branch of every state leads to the next state of a random cycle through all states, so the chain is irreducible
and π is unique. The other branches lead to random states.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpdist.config import Synthetic
from tpdist.errors import ConfigError

MAX_STATES = 4096
"""The stationary law is found by a dense solve."""
MAX_TYPES = MAX_BRANCHES = 10_000_000
"""Of names, and of branches of all states together: lists of Python's are made of both."""
MAX_TOKENS = 1 << 31
"""A split is drawn into memory: some GB."""
CHUNK = 1 << 18


@dataclass(frozen=True)
class MarkovSource:
    """emit int64 [m, b]: token types of each state; probability float64 [m, b]; following int64 [m, b]: next state."""

    emit: NDArray[np.int64]
    probability: NDArray[np.float64]
    following: NDArray[np.int64]

    @classmethod
    def draw(cls, options: Synthetic) -> "MarkovSource":
        """A random source of options that `check` lets pass."""
        m, b = options.states, options.branching
        rng = np.random.default_rng([options.seed, 0])
        probability = rng.standard_exponential((m, b)) + 1e-3  # Dirichlet(1, …, 1), kept off 0
        probability /= probability.sum(axis=1, keepdims=True)
        emit = np.empty((m, b), dtype=np.int64)
        used = np.zeros(options.types)
        for state in range(m):  # the least used types, so that all types are used
            emit[state] = np.argsort(used + rng.random(options.types))[:b]
            used[emit[state]] += 1
        following = rng.integers(m, size=(m, b))
        cycle = rng.permutation(m)
        following[cycle, rng.integers(b, size=m)] = np.roll(cycle, -1)
        return cls(emit, probability, following)

    def stationary(self) -> NDArray[np.float64]:
        """π [m]: π P = π, Σ π = 1."""
        m, b = self.emit.shape
        transition = np.zeros((m, m))
        np.add.at(transition, (np.repeat(np.arange(m), b), self.following.ravel()), self.probability.ravel())
        system = transition.T - np.eye(m)
        system[-1] = 1.0
        right = np.zeros(m)
        right[-1] = 1.0
        return np.linalg.solve(system, right).astype(np.float64)

    def entropy_rate(self) -> float:
        """Nats per token."""
        entropy = -(self.probability * np.log(self.probability)).sum(axis=1)
        return float(self.stationary() @ entropy)


class Sampler:
    """Draws one long sample, piece after piece; the state is carried from piece to piece."""

    def __init__(self, source: MarkovSource, seed: int):
        self._source = source
        self._rng = np.random.default_rng([seed, 1])
        self._state = int(self._rng.choice(len(source.emit), p=source.stationary()))

    def take(
        self, tokens: int, dtype: np.dtype, report: Callable[[int], None] = lambda done: None
    ) -> tuple[NDArray[np.integer], float]:
        """The next token types [tokens], and the source's own mean nats over all of them but the first.

        `report` is called with the number of tokens drawn so far.
        """
        source, state = self._source, self._state
        branching = source.emit.shape[1]
        edges = np.cumsum(source.probability, axis=1)[:, :-1].tolist()
        following = source.following.ravel().tolist()
        emit, nats = source.emit.ravel(), -np.log(source.probability).ravel()
        sample = np.empty(tokens, dtype=dtype)
        total = 0.0
        for begin in range(0, tokens, CHUNK):
            cells = []
            for uniform in self._rng.random(min(CHUNK, tokens - begin)).tolist():
                cell = state * branching + bisect_right(edges[state], uniform)
                cells.append(cell)
                state = following[cell]
            sample[begin : begin + len(cells)] = emit[cells]
            total += float(nats[cells[1:] if begin == 0 else cells].sum())
            report(begin + len(cells))
        self._state = state
        return sample, total / (tokens - 1)


def check(options: Synthetic) -> None:
    """Raise ConfigError for a source that cannot be."""
    if options.branching > options.types:
        raise ConfigError(
            f"{options.branching} different types in a state, but there are only {options.types} types; "
            "at most data.synthetic.types",
            "data.synthetic.branching",
        )
    if options.states > MAX_STATES:
        raise ConfigError(f"{options.states} hidden states; at most {MAX_STATES}", "data.synthetic.states")
    if options.types > MAX_TYPES:
        raise ConfigError(f"{options.types:,} types; at most {MAX_TYPES:,}", "data.synthetic.types")
    if options.states * options.branching > MAX_BRANCHES:
        raise ConfigError(
            f"{options.branching:,} different types in each of {options.states:,} states; at most "
            f"{MAX_BRANCHES // options.states:,}",
            "data.synthetic.branching",
        )
    if options.tokens > MAX_TOKENS:
        raise ConfigError(f"{options.tokens:,} tokens; at most {MAX_TOKENS:,}", "data.synthetic.tokens")
