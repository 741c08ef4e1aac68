"""What checkpoints a run has, read through: `tpdist checkpoint list` and `verify`."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tpdist.errors import RunError
from tpdist.training.checkpoints import Loaded, read_checkpoint
from tpdist.training.depot import Depot
from tpdist.training.manifest import verify_checkpoint
from tpdist.training.snapshot import counters
from tpdist.training.state import RunState


@dataclass(frozen=True)
class Found:
    """One checkpoint. wrong: what is, naming the file; the figures are then None. best: whether of the best epoch."""

    name: str
    wrong: str | None
    bytes: int | None = None
    step: int | None = None
    place: str | None = None
    best: bool = False


def inspect(depot: Depot) -> list[Found]:
    """Every checkpoint, oldest first; every byte of them is read. A run that is trained meanwhile may prune some."""
    found, state = [], RunState()
    for name in depot.names():
        with tempfile.TemporaryDirectory() as scratch:
            one, state = _look(depot, name, Path(scratch), state)
        if one.wrong is None or name in depot.names():
            found.append(one)
    best = f"step-{state.best_step:08d}-epoch" if state.best is not None else None
    return [replace(one, best=one.name == best) for one in found]


def _look(depot: Depot, name: str, scratch: Path, before: RunState) -> tuple[Found, RunState]:
    where = f"{depot.where}/{name}"
    try:
        path = depot.fetch(name, scratch)
        if wrong := verify_checkpoint(path, where):
            return Found(name, wrong), before
        loaded: Loaded = read_checkpoint(name, path, where)
        loaded.shards()
        state = counters(loaded.state, where)
        size = sum(file.stat().st_size for file in path.iterdir())
    except (RunError, OSError) as error:
        return Found(name, str(error)), before
    return Found(name, None, size, state.step, state.place), state
