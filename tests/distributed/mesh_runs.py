"""Runs on meshes of local ranks, and what came of them, put together again. Helpers of the tests beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import Store
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training.batches import Batches
from tpdist.training.epoch_end import hand_on
from tpdist.training.figures import count_update
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trainer import Trainer

CORPUS = {"recipe": "synthetic", "synthetic": {"types": 12, "states": 4, "branching": 2, "tokens": 311}}
Parts = dict[str, dict[str, Any]]
WINDOWS = 40  # at most, in an epoch


def experiment(store: Path | str, parts: Parts) -> Experiment:
    """Two streams of 31 blocks of 5 steps; windows of 7 blocks, the last of 3."""
    base: Parts = {
        "data": {**CORPUS, "store": str(store)},
        "model": {"hidden": 4, "init": 0.5},
        "objective": {"block": 5, "weight": 0.3},
        "batching": {"streams": 2, "blocks": 7, "chunk_tokens": 15},
        "optimizer": {"name": "adagrad", "lr": 0.05, "clip": 0.3},
        "run": {"dtype": "float64", "epochs": 9, "device": "cpu"},
    }
    for part, values in parts.items():
        base[part] = {**base.get(part, {}), **values}
    return Experiment.model_validate(base)


def train_here(config: Experiment, run: str, updates: int, resume: bool, workers: Workers) -> dict[str, Any]:
    """`updates` updates on this rank; its parameters, its states with where they belong, and the loss."""
    trainer = Trainer(config, Store.open(str(config.data.store)), RunDirectory(Path(run)), Silent(), workers)
    if resume:
        trainer.resume()
    losses: list[float] = []
    while len(losses) < updates:
        trainer._begin_epoch()
        if trainer.state.position == 0:
            trainer.carried = torch.zeros_like(trainer.carried)
        for batch in trainer.batches.epoch(trainer.state.epoch, skip=trainer.state.position):
            before = trainer.state.sums.loss
            outcome = trainer._visit(batch)
            trainer.carried = outcome.carry
            count_update(trainer, batch, outcome, 0.0)
            losses.append(trainer.state.sums.loss - before)
            if len(losses) == updates:
                break
        else:
            hand_on(trainer)
            trainer.state.epoch, trainer.state.position = trainer.state.epoch + 1, 0
    trainer.save_checkpoint()
    trainer.writer.wait()
    return {
        "theta": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        "states": {name: t.clone() for name, t in trainer.boundaries.tensors().items()},
        "streams": trainer.batches.streams,
        "slots": own_slots(trainer.batches),
        "losses": losses,
        "traffic": workers.traffic,
    }


def own_slots(batches: Batches) -> list[tuple[int, int]]:
    """(place in `Boundaries`, boundary of the corpus) of this worker's own blocks, without spare places.

    A closing target stands behind all boundaries, at its window's number.
    """
    own = {block for index in range(len(batches)) for block in batches._own(index)}
    found = [(place, slot) for place, slot in enumerate(batches.slots) if slot in own]
    for index, windows in enumerate(batches._windows):
        mine = batches._own(index)
        if batches._plan.closing and mine and mine.stop == windows[0].stop:
            found.append((batches._begins[index] + len(mine), batches.layout.blocks + index))
    return found


@dataclass(frozen=True)
class Case:
    """Some updates on some mesh, with a directory for checkpoints."""

    store: str
    run: str
    parts: Parts
    mesh: tuple[int, int]
    updates: int = 6
    resume: bool = False

    def config(self) -> Experiment:
        workers = self.mesh[0] * self.mesh[1]
        return experiment(self.store, {**self.parts, "cluster": {"workers": workers, "mesh": list(self.mesh)}})


def train_rank(cases: list[Case]) -> list[dict[str, Any]]:
    """Every case, one after another, on this rank."""
    results = []
    for case in cases:
        config = case.config()
        workers = Workers.join(config.mesh(), torch.device("cpu"), config.cluster.gradient_dtype)
        results.append(train_here(config, case.run, case.updates, case.resume, workers))
    return results


def train_all(cases: list[Case]) -> list[list[dict[str, Any]]]:
    """What every rank says of every case. Ranks are started once for all cases of a size: starting takes seconds."""
    results: list[list[dict[str, Any]]] = [[] for _ in cases]
    by_size: dict[int, list[int]] = {}
    for i, case in enumerate(cases):
        (Path(case.run) / "checkpoints").mkdir(parents=True, exist_ok=True)
        by_size.setdefault(case.mesh[0] * case.mesh[1], []).append(i)
    for size, members in by_size.items():
        if size == 1:
            for i in members:
                case = cases[i]
                results[i] = [train_here(case.config(), case.run, case.updates, case.resume, Workers.alone())]
            continue
        for ranks in run_ranks(train_rank, size, [cases[i] for i in members]):
            for i, result in zip(members, ranks, strict=True):
                results[i].append(result)
    return results


def together(results: list[dict[str, Any]], blocks: int, streams: int) -> dict[str, Tensor]:
    """θ, H, U, costates and the H-optimiser's state of all ranks as tensors over the whole corpus."""
    whole = {f"theta.{name}": t for name, t in results[0]["theta"].items()}
    for result in results:
        for name, t in result["theta"].items():
            assert torch.equal(t, whole[f"theta.{name}"]), "one θ everywhere"
        for name, t in result["states"].items():
            full = whole.setdefault(name, t.new_full((streams, blocks + WINDOWS, t.shape[2]), torch.nan))
            for place, slot in result["slots"]:
                full[result["streams"].start : result["streams"].stop, slot] = t[:, place]
    owned = [t[:, :blocks] for name, t in whole.items() if not name.startswith("theta.")]
    assert not any(t.isnan().any() for t in owned), "every block has an owner"
    whole["losses"] = torch.tensor(results[0]["losses"], dtype=torch.float64)
    return whole
