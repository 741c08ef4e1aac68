"""Checkpoints: everything that the next step depends on, written whole or not at all.

A checkpoint is a directory `step-<steps>`, or `step-<steps>-epoch` at an epoch's end, with `tensors.safetensors`, `state.json` and `manifest.json` (sizes
and SHA-256 of the other two). It is written under another name, synced, and renamed; a torn or altered one is
recognised by its manifest and the one before it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tpdist.errors import RunError

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save_checkpoint(final: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint `final` and delete all but the newest `keep` beside it.

    A name says step and phase, so one that exists already holds the same state.
    """
    if final.exists():
        return
    with atomic_directory(final) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
        write_json(temporary / STATE, {"format": FORMAT, **state})
        files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)}
                 for name in (TENSORS, STATE)}  # fmt: skip
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    for old in list_checkpoints(final.parent)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(directory: Path, notice: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint that is whole; those passed over are told to `notice`.

    Raises RunError where there is none.
    """
    checkpoints = list_checkpoints(directory)
    for path in reversed(checkpoints):
        wrong = verify_checkpoint(path)
        if wrong is None:
            state = json.loads((path / STATE).read_text())
            return load_file(path / TENSORS), state
        notice(f"{wrong}; the checkpoint before it is used")
    found = f"all {len(checkpoints)} are damaged" if checkpoints else "there is none"
    raise RunError(f"{directory}: no checkpoint to resume from ({found}); start a new run")


def list_checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(directory.glob("step-????????*"))


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"{path / MANIFEST}: format {manifest['format']}, this version reads {FORMAT}"
        for name in (TENSORS, STATE):
            expected, file = manifest["files"][name], path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{file}: {file.stat().st_size} bytes where {expected['bytes']} were written"
            if sha256(file) != expected["sha256"]:
                return f"{file}: its SHA-256 is not that of what was written"
    except FileNotFoundError as error:
        return f"{error.filename}: missing"
    except (KeyError, TypeError, ValueError):
        return f"{path / MANIFEST}: not a checkpoint's manifest"
    return None


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """A directory that appears as `final` when the block ends, complete and synced, and not at all if it raises."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        temporary.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a file under another name, sync it, and put it in the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """The inverse of `pack_optimizer`, onto an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or RunError."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; did the run finish an epoch?") from error
    except SafetensorError as error:
        raise RunError(f"{path}: not a whole safetensors file ({error})") from error
