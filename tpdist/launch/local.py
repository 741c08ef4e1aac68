"""The commands' meaning: train, resume, evaluate, sample; on one worker in this process."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tpdist.config import Experiment, with_place
from tpdist.data import Split, Store, open_or_prepare
from tpdist.data.prepare import Report
from tpdist.errors import ConfigError, TpdistError
from tpdist.models import LanguageModel
from tpdist.training.evaluation import Evaluation, TestTimeSteps, evaluate_tokens
from tpdist.training.progress import Reporter, Silent
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory
from tpdist.training.sampling import sample_text
from tpdist.training.trainer import pick_device
from tpdist.training.worker import run_worker


def train(
    config: Experiment,
    run_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    data_progress: Report | None = None,
) -> Result:
    """Train a new run and write its directory (default `runs/<name>-<time>`); a missing store is prepared first.

    Raises ConfigError, DataError, RunError for input that does not do; NonFiniteError; Interrupted.
    """
    _check_supported(config)
    store = open_or_prepare(config.data, data_progress)
    run = RunDirectory.create(config, run_dir)
    return _run(config, store, run, reporter, resume=False)


def resume(run_dir: str | Path, overrides: Sequence[str] = (), reporter: Reporter | None = None) -> Result:
    """Continue a run from its newest checkpoint, to the same numbers as an uninterrupted run.

    overrides: changes of its configuration, such as `run.epochs=20`; the model and the corpus must stay.
    """
    run = RunDirectory.open(run_dir)
    config = run.load_config(overrides)
    _check_supported(config)
    return _run(config, open_or_prepare(config.data), run, reporter, resume=True)


def evaluate(
    run_dir: str | Path,
    split: Split = "valid",
    *,
    h_steps: int = 0,
    h_lr: float = 0.1,
    by_position: bool = False,
    which: str = "best",
) -> Evaluation:
    """Perplexity of a run's `best` or `last` model on a split, rolled out exactly.

    h_steps: gradient steps of size `h_lr` on past h at test time (Section 4.1). by_position: perplexity at every
    position of a block too.
    """
    if h_steps < 0:
        raise TpdistError(f"--h-steps: must be at least 0, got {h_steps}")
    config, store, model = _load(run_dir, which)
    test_time = TestTimeSteps(h_steps, h_lr, config.objective.weight) if h_steps else None
    return evaluate_tokens(
        model, store.tokens(split), config.objective.block, by_position=by_position, test_time=test_time
    )


def sample(
    run_dir: str | Path,
    prompt: str = "",
    *,
    tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    which: str = "best",
) -> str:
    """The prompt continued by `tokens` tokens."""
    _, store, model = _load(run_dir, which)
    return sample_text(model, store, prompt, tokens, temperature, top_k, seed)


def _run(config: Experiment, store: Store, run: RunDirectory, reporter: Reporter | None, resume: bool) -> Result:
    reporter = reporter or Silent()
    torch.use_deterministic_algorithms(config.run.deterministic)
    try:
        return run_worker(config, store, run, reporter, resume)
    except ConfigError as error:
        raise with_place(error, config) from error
    finally:
        reporter.close()


def _load(run_dir: str | Path, which: str) -> tuple[Experiment, Store, LanguageModel]:
    run = RunDirectory.open(run_dir)
    config = run.load_config()
    store = open_or_prepare(config.data)
    return config, store, run.load_model(config, which).to(pick_device(config))


def _check_supported(config: Experiment) -> None:
    if config.cluster.workers > 1:
        raise with_place(
            ConfigError(f"this version trains on one worker, got {config.cluster.workers}; write 1", "cluster.workers"),
            config,
        )
