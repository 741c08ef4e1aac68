"""A checkpoint's manifest: the size and the SHA-256 of each of its files, and of itself; whether they are so still."""

import hashlib
import re
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # typing's is known to pydantic from Python 3.12 on

from tpdist.data.disk import UNREACHABLE
from tpdist.data.store import sha256_of as sha256
from tpdist.errors import RunError
from tpdist.training.depot import MANIFEST
from tpdist.training.files import dump_json, json_text

FORMAT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
SHARD = re.compile(r"states-\d+-\d+\.safetensors")
Count = Annotated[int, Field(ge=0)]


class FileRow(TypedDict):
    bytes: Count
    sha256: str


class ManifestJson(TypedDict):
    """`manifest.json`. sha256: of the same text without this entry."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    format: int
    files: dict[str, FileRow]
    sha256: str


def file_row(path: Path) -> FileRow:
    """What the manifest says of a file: its size in bytes, its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(path: Path, files: dict[str, FileRow]) -> None:
    """Write `manifest.json` to `path`, for files by name. Written last: a checkpoint without it is none."""
    body = {"format": FORMAT, "files": files}
    dump_json(path, {**body, "sha256": _digest(body)})


def verify_checkpoint(path: Path, where: str | None = None) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is.

    Raises RunError for another format, and where the file system has gone from this machine.
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
        return _unreadable(shown, error)
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
        return _unreadable(shown, error)
    return None


def _unreadable(shown: str, error: OSError) -> str:
    said = f"{shown}: cannot be read ({error.strerror})"
    if error.errno in UNREACHABLE:  # what is there may be whole
        raise RunError(said) from error
    return said


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(body).encode()).hexdigest()
