"""The figures of a finished run: `result.json`, and what `tpdist.train` returns."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """Perplexities are those of the best epoch's model; null where a figure does not apply.

    tokens_per_second: training tokens over the seconds of training alone; seconds: the same seconds.
    boundary_bytes, carried_bytes, gradient_bytes: sent by all workers together, since they last joined.
    waiting_neighbours, waiting_reduction: share of the training seconds since then that the workers waited for each
    other, transfers included, on average. recoveries: failures of workers that were mended since the run was last
    started; null for one worker without Ray. device: cpu, or the name of the GPU. test_perplexity: null
    where run.test is false. train_perplexity: of the best epoch, a mean over its updates, between which θ moves; null
    where it is not known.
    best_possible_perplexity: the lowest, known for synthetic corpora only.
    """

    run: str
    method: str
    seed: int
    device: str
    valid_perplexity: float
    test_perplexity: float | None
    unigram_perplexity: float
    best_possible_perplexity: float | None
    best_epoch: int
    parameters: int
    tokens_per_second: float
    seconds: float
    steps: int
    epochs: int
    train_perplexity: float | None = None
    workers: int = 1
    boundary_bytes: int = 0
    carried_bytes: int = 0
    gradient_bytes: int = 0
    waiting_neighbours: float = 0.0
    waiting_reduction: float = 0.0
    recoveries: int | None = None

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(self.run)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
