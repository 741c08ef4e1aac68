"""Files that are whole or not there: written under another name, synced, and renamed."""

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tpdist.data.disk import parse_json, sync
from tpdist.errors import RunError, first_line


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file under another name, sync it, and put it in the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text in UTF-8, whole or not at all."""
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """A value as JSON, whole or not at all."""
    write_text(path, json_text(value))


def clear_leftovers(directory: Path) -> None:
    """Remove what a killed process was writing in `directory`. Only for who has the run to itself."""
    for path in [*directory.glob(".*.tmp"), *directory.glob(".tmp*")]:  # ours, and those of safetensors
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that others may read. Raises OSError where the system refuses.

    safetensors hides that in an error of its own, and from 0.8 on makes files for their owner alone.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(mode)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError where it cannot be read, ValueError where it holds none."""
    return parse_json(path.read_text(encoding="utf-8"))


def dump_json(path: Path, value: Any) -> None:
    """A value as JSON, straight into the file: in a directory that is not there yet for others, or /dev/stdout."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """The one way in which the program writes JSON."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def json_lines(rows: Iterable[Any]) -> str:
    """A line of JSON for each."""
    return "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: null for infinity and not-a-number."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_tensors(path: Path, shown: str | None = None) -> dict[str, Tensor]:
    """A safetensors file, or RunError. shown: its name for the user, if `path` is a copy."""
    shown = shown or str(path)
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{shown}: missing; did the run finish an epoch?") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise RunError(f"{shown}: not a whole safetensors file ({reason})") from error
    for name in tensors:
        if not name.isprintable():
            raise RunError(f"{shown}: holds a tensor of the name {name!r}, which no tpdist has written")
    return tensors
