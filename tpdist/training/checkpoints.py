"""Checkpoints: everything that the next step depends on, whole or not there.

A checkpoint is a directory `step-<steps>`, or `step-<steps>-epoch` at an epoch's end, with `tensors.safetensors` (θ and
its optimiser), `states-<stream>-<time>.safetensors` (what a worker's blocks own), `state.json` and `manifest.json`
(sizes and SHA-256 of the others, and of itself). Nothing in it is a pickle, and nothing in it is believed before it is
checked. A torn or altered one is set aside as `damaged-step-<steps>`, and the one before it is used.
"""

import hashlib
import json
import re
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # typing's is known to pydantic from Python 3.12 on

from tpdist.data.store import sha256_of as sha256
from tpdist.errors import RunError
from tpdist.training.depot import MANIFEST, Depot
from tpdist.training.files import dump_json, json_text, load_tensors

FORMAT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
SHARD = re.compile(r"states-\d+-\d+\.safetensors")
Count = Annotated[int, Field(ge=0)]
LayoutName = Annotated[str, Field(pattern=r"^\w*$")]


class FileRow(TypedDict):
    bytes: Count
    sha256: str


class ManifestJson(TypedDict):
    """`manifest.json`. sha256: of the same text without this entry."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    format: int
    files: dict[str, FileRow]
    sha256: str


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


def file_row(path: Path) -> FileRow:
    """What the manifest says of a file: its size in bytes, its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(path: Path, files: dict[str, FileRow]) -> None:
    """Write `manifest.json` to `path`, for files by name. Written last: a checkpoint without it is none."""
    body = {"format": FORMAT, "files": files}
    dump_json(path, {**body, "sha256": _digest(body)})


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
    raise RunError(f"{depot.where}: no checkpoint to resume from ({found}); start a new run")


def read_checkpoint(name: str, path: Path, where: str) -> Loaded:
    """One that `verify_checkpoint` found whole. Raises RunError where it is not what the program writes."""
    tensors = load_tensors(path / TENSORS, shown=f"{where}/{TENSORS}")
    return Loaded(name, where, path, tensors, _read_state(path, where))


def verify_checkpoint(path: Path, where: str | None = None) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is. Raises RunError for another format.

    where: its name for the user, if `path` is a copy.
    """
    where = where or str(path)
    manifest = read_manifest(path, where)
    if isinstance(manifest, str):
        return manifest
    for name, expected in manifest["files"].items():
        if wrong := _verify_file(path / name, f"{where}/{name}", expected):
            return wrong
    return None


def read_manifest(path: Path, where: str) -> ManifestJson | str:
    """A checkpoint's manifest, or what is wrong with it. Raises RunError for one of another format."""
    shown, not_one = f"{where}/{MANIFEST}", f"{where}/{MANIFEST}: not a checkpoint's manifest, or altered"
    try:
        if not stat.S_ISREG((path / MANIFEST).stat().st_mode):
            return f"{shown}: not a file"
        raw = (path / MANIFEST).read_bytes()
        manifest = TypeAdapter(ManifestJson).validate_json(raw, strict=True)
    except FileNotFoundError:
        return f"{shown}: missing"
    except OSError as error:
        return f"{shown}: cannot be read ({error.strerror})"
    except ValidationError:
        return not_one
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    # the text itself, not what it means, has to be what was written
    if manifest["sha256"] != _digest(body) or raw != json_text({**body, "sha256": manifest["sha256"]}).encode():
        return not_one
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{shown}: a checkpoint of format {manifest['format']}, this program reads format {FORMAT}; "
            f"resume with the version that wrote it"
        )
    names = manifest["files"].keys()
    if not {TENSORS, STATE} <= names:
        return f"{shown}: does not list {TENSORS} and {STATE}"
    if strange := [name for name in names - {TENSORS, STATE} if not SHARD.fullmatch(name)]:
        return f"{shown}: lists {min(strange)!r}, which is no file of a checkpoint"
    return manifest


def _verify_file(file: Path, shown: str, expected: FileRow) -> str | None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{shown}: not a file"
        if status.st_size != expected["bytes"]:
            return f"{shown}: {status.st_size} bytes where {expected['bytes']} were written"
        if sha256(file) != expected["sha256"]:
            return f"{shown}: its SHA-256 is not that of what was written"
    except FileNotFoundError:
        return f"{shown}: missing"
    except OSError as error:
        return f"{shown}: cannot be read ({error.strerror})"
    return None


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
    return RunError(f"{where}/{STATE}: {key!r}: not what a checkpoint holds ({first['msg'].splitlines()[0]})")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(body).encode()).hexdigest()
