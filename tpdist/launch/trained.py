"""What a run's model is good for once it is trained: evaluate, sample, export, load."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from tpdist.config import Experiment, with_place
from tpdist.data import Split, Store, Vocabulary, open_or_prepare
from tpdist.data.prepare import Report
from tpdist.errors import ArgumentError, ConfigError, NonFiniteError
from tpdist.models import LanguageModel
from tpdist.training.at_test_time import AtTestTime, HSteps, ThetaSteps
from tpdist.training.checks import pick_device, set_kernels, settings_kept
from tpdist.training.depots import depot_for
from tpdist.training.evaluation import Evaluation, evaluate_tokens
from tpdist.training.inspection import Found, inspect
from tpdist.training.interchange import export_model
from tpdist.training.kept_model import KeptModel
from tpdist.training.run_dir import RunDirectory
from tpdist.training.sampling import sample_text

MODELS = ("best", "last")


def evaluate(
    run_dir: str | Path,
    split: Split = "valid",
    *,
    h_steps: int = 0,
    h_lr: float = 0.1,
    theta_steps: int = 0,
    theta_lr: float = 0.1,
    by_position: bool = False,
    which: str = "best",
    overrides: Sequence[str] = (),
    data_progress: Report | None = None,
) -> Evaluation:
    """Perplexity of a run's `best` or `last` model on a split, rolled out exactly.

    h_steps: gradient steps of size `h_lr` on past h at test time (Section 4.1). theta_steps: steps of size `theta_lr`
    on θ instead, dynamic evaluation. by_position: perplexity at every position of a block too. overrides: of the run's
    configuration, such as `data.store=DIR`, for this once. data_progress: of a missing store that is made first.

    Raises ArgumentError for numbers that make no sense, NonFiniteError where the perplexity is not finite.
    """
    if split not in get_args(Split):
        raise ArgumentError("split", f"must be one of {', '.join(get_args(Split))}; got {split!r}")
    for name, steps, lr in (("h", h_steps, h_lr), ("theta", theta_steps, theta_lr)):
        if steps < 0:
            raise ArgumentError(f"{name}_steps", f"must be at least 0, got {steps}")
        if not 0 < lr < math.inf:
            raise ArgumentError(f"{name}_lr", f"must be a finite number above 0, got {lr}")
    if h_steps and theta_steps:
        raise ArgumentError("theta_steps", f"must be 0 beside H-steps, got {theta_steps}; give one of the two")
    test_time: AtTestTime | None = None
    with _loaded(run_dir, which, overrides, data_progress) as (config, store, model):
        if h_steps:
            test_time = HSteps(h_steps, h_lr, config.objective.weight)
        elif theta_steps:
            test_time = ThetaSteps(theta_steps, theta_lr)
        found = evaluate_tokens(
            model, store.tokens(split), config.objective.block, by_position=by_position, test_time=test_time
        )
    if not math.isfinite(found.perplexity):
        tried = f"; try smaller steps than {h_lr if h_steps else theta_lr:g}" if test_time else ""
        raise NonFiniteError(f"the {split} perplexity is {found.perplexity}: {found.loss:.4g} nats a token{tried}")
    return found


def sample(
    run_dir: str | Path,
    prompt: str = "",
    *,
    tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    which: str = "best",
    overrides: Sequence[str] = (),
) -> str:
    """The prompt continued by `tokens` tokens, drawn from a run's `best` or `last` model (which).

    temperature: divides the logits; 0 takes the likeliest type every time. top_k: draw from that many of the likeliest
    types; None: from all. seed: of the draws. overrides: of the run's configuration, for this once.

    Raises ArgumentError for numbers that make no sense, RunError where the run has no such model, DataError for a word
    of the prompt that the vocabulary lacks where it has no `<unk>`.
    """
    with _loaded(run_dir, which, overrides) as (_, store, model):
        return sample_text(model, store, prompt, tokens, temperature, top_k, seed)


def load_model(
    run_dir: str | Path, which: str = "best", *, overrides: Sequence[str] = ()
) -> tuple[LanguageModel, Vocabulary]:
    """A run's `best` or `last` model, a `torch.nn.Module` on the run's device, and the vocabulary that names its types.

    `model.unroll(ids, state)` takes ids [steps, N] and states [N, state_size], such as `model.zero_state(N)`, and gives
    h [steps, N, hidden] and the states after them; `model.logits(h)` is over the types. Raises RunError where the run
    has no such model.
    """
    with _loaded(run_dir, which, overrides) as (_, store, model):
        return model.eval(), store.vocabulary


def checkpoints(run_dir: str | Path, overrides: Sequence[str] = ()) -> list[Found]:
    """A run's checkpoints, oldest first, each read through and checked."""
    run = RunDirectory.open(run_dir)
    return inspect(depot_for(run.load_config(overrides), run))


def damaged_models(run_dir: str | Path) -> list[str]:
    """What is wrong with a run's `best` and `last` model, where they are there."""
    run = RunDirectory.open(run_dir)
    kept = [KeptModel(run, which) for which in MODELS]
    there = [one for one in kept if one.file.exists() or one.about_file.exists()]
    return [wrong for one in there if (wrong := one.damage()) is not None]


def export(
    run_dir: str | Path, out: str | Path, *, which: str = "best", onnx: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """A run's `best` or `last` model as a directory for others: PyTorch's names, vocabulary, model card.

    onnx: one step of it as ONNX too. Returns the directory.

    Raises RunError where the directory exists, TpdistError where the extra `onnx` is asked for and not installed.
    """
    with _loaded(run_dir, which, overrides) as (config, store, model):
        figures, vocabulary = KeptModel(RunDirectory(Path(run_dir)), which).figures(), store.vocabulary
    # behind it: torch's export to ONNX refuses kernels that are set for recurrences alone
    export_model(model.cpu(), vocabulary, config, figures, Path(out), onnx)
    return Path(out)


@contextmanager
def _loaded(
    run_dir: str | Path, which: str, overrides: Sequence[str], data_progress: Report | None = None
) -> Iterator[tuple[Experiment, Store, LanguageModel]]:
    """A run's model on its device, whose kernels are those that it was trained with."""
    if which not in MODELS:
        raise ArgumentError("which", f"must be one of {', '.join(MODELS)}; got {which!r}", "model")
    run = RunDirectory.open(run_dir)
    config = run.load_config(overrides)
    try:
        device = pick_device(config)
        store = open_or_prepare(config.data, data_progress)
        model = KeptModel(run, which).load(config, store.manifest).to(device)
    except ConfigError as error:
        raise with_place(error, config) from error
    with settings_kept():
        set_kernels(config.run)
        yield config, store, model
