"""Checkpoints: everything that the next step depends on, whole or not there.

A checkpoint is a directory `step-<steps>`, or `step-<steps>-epoch` at an epoch's end, with `tensors.safetensors` (θ and
its optimiser), `states-<stream>-<time>.safetensors` (what a worker's blocks own), `state.json` and `manifest.json`
(sizes and SHA-256 of the others, and of itself). Nothing in it is a pickle, and nothing in it is believed before it is
checked. A torn or altered one is set aside as `damaged-step-<steps>`, and the one before it is used.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # typing's is known to pydantic from Python 3.12 on

from tpdist.errors import RunError, first_line
from tpdist.training.depot import MANIFEST, Depot
from tpdist.training.files import load_tensors
from tpdist.training.manifest import STATE, TENSORS, Count, verify_checkpoint

LayoutName = Annotated[str, Field(pattern=r"^\w*$")]


class ShardJson(TypedDict):
    file: str
    streams: tuple[Count, Count]
    slots: list[tuple[int, int]]
    time: Count


class OptimizersJson(TypedDict):
    theta: list[Any]
    h: list[Any]


class StateJson(TypedDict):
    """`state.json`, beside the counters of `RunState`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    corpus: str
    optimizers: OptimizersJson
    layout: dict[str, int | LayoutName]
    theta_scalars: dict[str, int | float]
    h_counts: dict[str, dict[str, float]]
    shards: list[ShardJson]


@dataclass(frozen=True)
class Shard:
    """Whose states a file holds: of these streams, and at place j those of boundary `slots[j]` of the corpus."""

    file: str
    streams: range
    slots: list[int]
    time: int

    def to_json(self) -> ShardJson:
        return {
            "file": self.file,
            "streams": (self.streams.start, self.streams.stop),
            "slots": runs(self.slots),
            "time": self.time,
        }


@dataclass(frozen=True)
class Packed:
    """One worker's part of a checkpoint: what all share (the leader writes it), and its own states."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    states: dict[str, Tensor]
    shard: Shard


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """[3, 4, 5, 9] -> [(3, 6), (9, 10)]: half-open runs."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


@dataclass(frozen=True)
class Loaded:
    """A whole checkpoint, and the damaged ones after it. scratch: holds what had to be copied from elsewhere."""

    name: str
    where: str
    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    damaged: list[str] = field(default_factory=list)
    scratch: tempfile.TemporaryDirectory[str] | None = None

    def shards(self) -> list[tuple[Shard, dict[str, Tensor]]]:
        """The states of every worker that wrote it. Raises RunError where a file does not hold what it says."""
        return [self._shard(values) for values in self.state["shards"]]

    def _shard(self, values: ShardJson) -> tuple[Shard, dict[str, Tensor]]:
        file, (begin, end) = f"{self.where}/{values['file']}", values["streams"]
        places = sum(max(0, end - begin) for begin, end in values["slots"])
        tensors = load_tensors(self.path / values["file"], shown=file)
        for name, tensor in tensors.items():
            wanted = (end - begin,) if name == "carried" else (end - begin, places)
            if tensor.shape[:-1] != wanted:
                raise RunError(f"{file}: {name} is of shape {tuple(tensor.shape)}, and {STATE} speaks of {wanted}")
        # a tensor with values bounds how long the list can be
        filled = any(tensor.numel() for name, tensor in tensors.items() if name != "carried")
        slots = [slot for first, last in values["slots"] for slot in range(first, last)] if filled else []
        return Shard(values["file"], range(begin, end), slots, values["time"]), tensors


def load_checkpoint(depot: Depot, notice: Callable[[str], None], only: str | None = None) -> Loaded:
    """The newest checkpoint that is whole; those passed over are told to `notice`. only: that one and no other.

    Raises RunError where there is none, and for one that another version of the program wrote.
    """
    damaged: list[str] = []
    wrong = ""
    scratch = tempfile.TemporaryDirectory()
    for name in reversed(depot.names()) if only is None else [only]:
        if wrong:
            notice(f"{wrong}; the checkpoint before it is used")
        path, where = depot.fetch(name, Path(scratch.name)), f"{depot.where}/{name}"
        wrong = verify_checkpoint(path, where) or ""
        if not wrong:
            return replace(read_checkpoint(name, path, where), damaged=damaged, scratch=scratch)
        damaged.append(name)
    found = f"all {len(damaged)} are damaged; the oldest: {wrong}" if damaged else "there is none"
    way_on = "" if damaged else "; if run.checkpoint_to or the name of the run's directory was changed, change it back"
    raise RunError(f"{depot.where}: no checkpoint to resume from ({found}); start a new run{way_on}")


def read_checkpoint(name: str, path: Path, where: str) -> Loaded:
    """One that `verify_checkpoint` found whole. Raises RunError where it is not what the program writes."""
    tensors = load_tensors(path / TENSORS, shown=f"{where}/{TENSORS}")
    return Loaded(name, where, path, tensors, _read_state(path, where))


def _read_state(path: Path, where: str) -> dict[str, Any]:
    """`state.json`, every entry of the type that the program writes. Raises RunError."""
    try:
        state: dict[str, Any] = dict(TypeAdapter(StateJson).validate_json((path / STATE).read_bytes(), strict=True))
    except ValidationError as error:
        raise not_a_state(where, error) from error
    manifest = json.loads((path / MANIFEST).read_bytes())
    for shard in state["shards"]:
        if shard["file"] not in manifest["files"]:
            raise RunError(f"{where}/{STATE}: speaks of {shard['file']!r}, which {MANIFEST} does not list")
    return state


def not_a_state(where: str, error: ValidationError) -> RunError:
    """What is wrong with the content of a checkpoint's `state.json`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return RunError(f"{where}/{STATE}: {key!r}: not what a checkpoint holds ({first_line(first['msg'])})")
