"""Checkpoints: everything that the next step depends on, written whole or not at all.

A checkpoint is a directory `step-<steps>`, or `step-<steps>-epoch` at an epoch's end, with `tensors.safetensors` (θ and
its optimiser), `states-<stream>-<time>.safetensors` (what a worker's blocks own), `state.json` and `manifest.json`
(sizes and SHA-256 of the others). Every worker writes its own states. It is written under another name, synced, and
renamed; a torn or altered one is recognised by its manifest, set aside as `damaged-step-<steps>`, and the one before
it is used.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tpdist.data.store import sha256_of as sha256
from tpdist.errors import RunError
from tpdist.parallel import Workers
from tpdist.training.files import atomic_directory, save_tensors, write_json

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save_checkpoint(final: Path, packed: "Packed", keep: int, workers: Workers) -> None:
    """Write the checkpoint `final` and delete all but the newest `keep` beside it. All workers call it at once.

    A name says step and phase, so a whole one that exists already holds the same state.
    """
    whole = workers.leads and final.exists() and verify_checkpoint(final) is None
    if workers.from_leader(float(whole)):
        return
    if workers.leads and final.exists():
        shutil.rmtree(final)
    with atomic_directory(final, workers.leads) as temporary:
        workers.wait_for_all()  # the directory is there
        save_tensors(packed.states, temporary / packed.shard.file)
        shards = workers.gather(packed.shard.to_json())
        if workers.leads:
            save_tensors(packed.tensors, temporary / TENSORS)
            write_json(temporary / STATE, {"format": FORMAT, **packed.state, "shards": shards})
            names = [TENSORS, STATE, *(shard["file"] for shard in shards)]
            files = {n: {"bytes": (temporary / n).stat().st_size, "sha256": sha256(temporary / n)} for n in names}
            write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    workers.wait_for_all()  # it has its name
    if workers.leads:
        for old in list_checkpoints(final.parent)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Shard:
    """Whose states a file holds: of these streams, and at place j those of boundary `slots[j]` of the corpus."""

    file: str
    streams: range
    slots: list[int]
    time: int

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "streams": [self.streams.start, self.streams.stop],
            "slots": runs(self.slots),
            "time": self.time,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Shard":
        slots = [slot for begin, end in values["slots"] for slot in range(begin, end)]
        return cls(values["file"], range(*values["streams"]), slots, values["time"])


@dataclass(frozen=True)
class Packed:
    """One worker's part of a checkpoint: what all share (the leader writes it), and its own states."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    states: dict[str, Tensor]
    shard: Shard


def runs(numbers: list[int]) -> list[list[int]]:
    """[3, 4, 5, 9] -> [[3, 6], [9, 10]]: half-open runs."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found


@dataclass(frozen=True)
class Loaded:
    """A whole checkpoint, and the damaged ones after it."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    damaged: list[Path]

    def shards(self) -> list[tuple[Shard, dict[str, Tensor]]]:
        """The states of every worker that wrote it; files are read as they are asked for."""
        found = [Shard.from_json(values) for values in self.state["shards"]]
        return [(shard, load_file(self.path / shard.file)) for shard in found]

    def set_damaged_aside(self) -> None:
        """Rename the damaged ones, so that none is taken for newer than what the run writes next."""
        for path in self.damaged:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def load_checkpoint(directory: Path, notice: Callable[[str], None]) -> Loaded:
    """The newest checkpoint that is whole; those passed over are told to `notice`.

    Raises RunError where there is none, and for one that another version of the program wrote.
    """
    damaged: list[Path] = []
    wrong = ""
    for path in reversed(list_checkpoints(directory)):
        if wrong:
            notice(f"{wrong}; the checkpoint before it is used")
        wrong = verify_checkpoint(path) or ""
        if not wrong:
            state = json.loads((path / STATE).read_text())
            return Loaded(path, load_file(path / TENSORS), state, damaged)
        damaged.append(path)
    found = f"all {len(damaged)} are damaged; the oldest: {wrong}" if damaged else "there is none"
    raise RunError(f"{directory}: no checkpoint to resume from ({found}); start a new run")


def list_checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(directory.glob("step-????????*"))


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is. Raises RunError for another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise RunError(
                f"{path / MANIFEST}: a checkpoint of format {manifest['format']}, this program reads format {FORMAT}; "
                f"resume with the version that wrote it"
            )
        if not {TENSORS, STATE} <= manifest["files"].keys():
            return f"{path / MANIFEST}: does not list {TENSORS} and {STATE}"
        for name, expected in manifest["files"].items():
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{file}: {file.stat().st_size} bytes where {expected['bytes']} were written"
            if sha256(file) != expected["sha256"]:
                return f"{file}: its SHA-256 is not that of what was written"
    except FileNotFoundError as error:
        return f"{error.filename}: missing"
    except OSError as error:
        return f"{error.filename or path}: cannot be read ({error.strerror})"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{path / MANIFEST}: not a checkpoint's manifest"
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON scalars. Parameters are numbered in their order."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            key = f"{prefix}{index}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                scalars[key] = value
    return tensors, scalars


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    """The inverse of `pack_optimizer`, onto an optimiser of the same parameters, to the bit."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():  # torch casts scalars such as NAdam's mu_product to the parameters' dtype
        loaded = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor):
                loaded[name] = loaded[name].to(value.dtype)
