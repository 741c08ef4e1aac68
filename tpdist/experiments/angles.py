"""How far the θ-gradient of a visit is from that of BPTT with a longer reach, on the windows of a trained run.

`python -m tpdist.experiments.angles SWEEP --set …`: the models of one of its arms, in float64; windows spread over the
training text, each entered with the state that an exact roll-out over the windows before it leaves. One table: what
H-steps do to the gradient, with starts tied (the paper) and held (README, "The method").
"""

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import Store, default_store
from tpdist.errors import TpdistError, key_of
from tpdist.experiments.modules import ended, json_file, write_json_file
from tpdist.experiments.results import joined_commands, versions, versions_of
from tpdist.experiments.testtime import chosen_runs
from tpdist.models import LanguageModel
from tpdist.parallel import Workers
from tpdist.tprop import Alone, Boundaries, Theta, plan_epoch, visit
from tpdist.tprop.prediction import predict
from tpdist.training.batches import Batch, Batches
from tpdist.training.files import read_json
from tpdist.training.kept_model import KeptModel
from tpdist.training.run_dir import RunDirectory

WINDOWS = 16
BEFORE = 4  # windows rolled out before one that is looked at


def cases(weight: float) -> dict[str, tuple[str, ...]]:
    """Ways to visit a window, by name, as changes of the configuration that `--set` takes.

    H-steps 0, 1, 2, 5 with λ = weight: plain ones of size 1/λ and a tenth of it, Adagrad's of 0.1 and 0.01.
    """
    found: dict[str, tuple[str, ...]] = {"no H-steps, truncated BPTT": ("method.name=bptt",)}
    optimisers = (
        ("plain, 1/λ", "{name: sgd}"),
        ("plain, 0.1/λ", f"{{name: sgd, lr: {0.1 / weight!r}}}"),
        ("Adagrad, 0.1", "{name: adagrad, lr: 0.1}"),
        ("Adagrad, 0.01", "{name: adagrad, lr: 0.01}"),
    )
    for steps in (1, 2, 5):
        for label, optimiser in optimisers:
            for starts in ("tied", "held"):
                changes = ("method.name=pm", f"method.h_steps={steps}", f"method.starts={starts}")
                changes += (f"method.h_optimizer={optimiser}", f"objective.weight={weight!r}")
                found[f"{steps} H-step{'s' * (steps > 1)}, {label}, {starts}"] = changes
    return found


def angles(run: str | Path, overrides: Sequence[str], weight: float, windows: int = WINDOWS) -> dict[str, list[float]]:
    """Of every case, for every window: the cosine of its θ-gradient with that of BPTT over the whole window."""
    directory = RunDirectory.open(run)
    base = [*overrides, "method.first=forward", "batching.order=sequential", "run.dtype=float64", "run.device=cpu"]
    whole_window = ["method.name=costate", "method.sweeps=null", "method.edge_costate=zero", "objective.weight=0.0"]
    config, model, batches = opened(directory, [*base, *whole_window])
    configs = {name: _config(directory, [*base, *changes]) for name, changes in cases(weight).items()}
    found: dict[str, list[float]] = {name: [] for name in configs}
    for batch, carried in entered_windows(model, batches, windows):
        whole = gradient(model, config, batches, batch, carried)
        for name, one in configs.items():
            own = gradient(model, one, batches, batch, carried)
            found[name].append(float(torch.cosine_similarity(own, whole, 0)))
    return found


def opened(run: RunDirectory, changes: Sequence[str]) -> tuple[Experiment, LanguageModel, Batches]:
    """Its configuration with `changes`, and by that the model of its best epoch and the windows of its training."""
    config, cpu = _config(run, changes), torch.device("cpu")
    store = Store.open(default_store(config.data))
    model = KeptModel(run, "best").load(config, store.manifest)
    return config, model, Batches(config, store.tokens("train"), Workers.alone().place, cpu, model.bias.dtype)


def entered_windows(model: LanguageModel, batches: Batches, windows: int) -> Iterator[tuple[Batch, Tensor]]:
    """Windows spread over the text, each with the state [S, d] that a roll-out over those before it leaves.

    A last one that is shorter than the others is left out.
    """
    count = max(1, batches.layout.blocks // batches.per_window)
    before = min(BEFORE, count - 1)
    for index in range(before, count, max(1, (count - before) // windows))[:windows]:
        carried = model.zero_state(len(batches.streams))
        for earlier in range(index - before, index):
            carried = roll(model, batches.batch(earlier), carried)[:, -1]
        yield batches.batch(index), carried


def roll(model: LanguageModel, batch: Batch, carried: Tensor) -> Tensor:
    """The exact states at the boundaries of a window: carried [S, d] -> [S, k+1, d]."""
    assert batch.window is not None
    states = [carried]
    for block in range(batch.window.blocks):
        states.append(predict(model, batch.window.inputs[:, :, block, None], states[-1][:, None], 1 << 20)[:, 0])
    return torch.stack(states, 1)


def gradient(model: LanguageModel, config: Experiment, batches: Batches, batch: Batch, carried: Tensor) -> Tensor:
    """The θ-gradient of one visit, flat; θ stays where it is. carried [S, d]."""
    plan = replace(plan_epoch(config, 1, batches.per_window), theta_steps=1)
    theta = _Kept(model, config.optimizer)
    boundaries = Boundaries.for_plan(plan, carried.shape[0], len(batches.slots) - 1, model)
    assert batch.window is not None
    visit(model, plan, theta, batch.window, batch.begin, boundaries, carried, Alone())
    return torch.cat([p.grad.flatten() for p in theta.parameters if p.grad is not None])


class _Kept(Theta):
    """Leaves the gradient where it is, and the parameters too."""

    def step(self, tokens: int, states: dict[str, Tensor] | None = None) -> None: ...


def _config(directory: RunDirectory, changes: Sequence[str]) -> Experiment:
    return directory.load_config(list({key_of(text): text for text in changes}.values()))


def _kept(file: Path | None) -> dict[str, Any]:
    """What a file holds that other columns have been written to. Raises TpdistError where it is another's."""
    if file is None or not file.exists():
        return {"cosines": {}}
    try:
        kept = read_json(file)
        return kept | {"cosines": dict(kept["cosines"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TpdistError(f"{file}: is not what this program writes; give --json another name") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tpdist.experiments.angles", description=__doc__)
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's directory, such as runs/reproduce-small-b20")
    parser.add_argument("--arm", default="bptt", help="whose chosen setting's runs are looked at; default bptt")
    parser.add_argument("--weight", type=float, default=1.0, metavar="λ")
    parser.add_argument("--windows", type=int, default=WINDOWS, metavar="N")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="block and window, where not the runs'",
    )
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="write the means of every run here, a column beside others"
    )
    options = parser.parse_args()
    if not 0 < options.weight < math.inf:
        raise TpdistError(f"--weight: must be a finite number above 0, got {options.weight}")
    if options.windows < 1:
        raise TpdistError(f"--windows: must be at least 1, got {options.windows}")
    kept = _kept(options.json)
    means: dict[str, list[float]] = {}
    home = Path(options.sweep)
    runs = [home / "points" / row["point"] for row in chosen_runs(home, [options.arm])[options.arm]]
    for run in runs:
        for name, values in angles(run, options.set, options.weight, options.windows).items():
            means.setdefault(name, []).append(round(sum(values) / len(values), 5))
    for name, values in means.items():
        print(f"{name:<40} " + "  ".join(f"{value:.4f}" for value in values))
    if options.json:
        block = _config(RunDirectory.open(runs[0]), options.set).objective.block
        kept["cosines"][f"B = {block}, λ = {options.weight:g}"] = means
        made_by = versions_of([kept.get("versions", {}), versions()])  # columns stand beside older ones
        kept |= {"windows": options.windows, "versions": made_by}
        own = shlex.join(["python", "-m", "tpdist.experiments.angles", *sys.argv[1:]])
        kept["command"] = joined_commands(kept.get("command"), own)
        write_json_file(options.json, kept)


if __name__ == "__main__":
    raise SystemExit(ended(main))
