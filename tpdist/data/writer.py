"""Writing a store: all of it or nothing.

Everything is written into a hidden sibling of the store's directory, forced to the disk, and renamed at the end.
Whatever ends the work early takes the sibling with it; one that a killed process left is removed by the next
preparation of the same store, which finds that nobody holds its lock.
"""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpdist.data.disk import NO_SPACE, sync, try_lock
from tpdist.data.manifest import MANIFEST_FILE, STORE_FILES, VOCABULARY_FILE, FileEntry, Manifest
from tpdist.data.store import ROWS_PER_BATCH, TOKEN_COLUMN, sha256_of
from tpdist.data.vocabulary import Vocabulary
from tpdist.errors import DataError

LOCK_FILE = ".lock"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into one clear line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DataError(
                f"{path}: no space left on the device ({error.strerror}); nothing was kept: free some space, "
                "or give a directory on another disk"
            ) from None
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block ends, and vanishes if it raises.

    Raises DataError if `out` exists and is not an empty directory.
    """
    refuse_existing(out)
    out = out.absolute()
    created = [parent for parent in out.parents if not parent.exists()]
    directory = lock = None
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(out)
            directory = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
            lock = _lock(directory)
        yield directory
        refuse_existing(out)
        with writing(out):
            directory.chmod(0o777 & ~_umask())
            sync(directory)
            os.rename(directory, out)
            sync(out.parent)
            (out / LOCK_FILE).unlink(missing_ok=True)  # last: what a kill leaves before is known by it
    except BaseException:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def refuse_existing(out: Path) -> None:
    """Raise DataError if `out` exists and is not an empty directory: nothing is ever overwritten.

    The working directory is refused too: a shell in it would go on in the one that was replaced.
    """
    for parent in out.absolute().parents:
        if os.path.isfile(parent):
            raise DataError(f"{parent}: a file, where a directory is expected")
    with writing(out):
        if not out.exists() and not out.is_symlink():
            return
    if out.is_symlink() or os.path.ismount(out):
        raise DataError(f"{out}: is a link or a mount point, which is not replaced; give a directory inside it")
    if not out.is_dir():
        raise DataError(f"{out}: exists and is a file; give another directory")
    if os.path.samefile(out, "."):
        raise DataError(f"{out}: is the working directory, which is not replaced; give one inside it")
    with writing(out):
        if any(out.iterdir()):
            kind = "a store" if (out / MANIFEST_FILE).exists() else "other files"
            raise DataError(
                f"{out}: exists and holds {kind}; it is not overwritten: give another directory or delete it"
            )


def id_dtype(types: int) -> np.dtype:
    """The smallest dtype of a store that holds ids below `types`."""
    return np.dtype(np.uint8 if types <= 1 << 8 else np.uint16 if types <= 1 << 16 else np.int32)


def write_tokens(
    path: Path, dtype: np.dtype, batches: Iterable[NDArray[np.integer]], rows: int = ROWS_PER_BATCH
) -> int:
    """Write all ids that `batches` yields to an Arrow IPC file, and force it to the disk; returns their number.

    Its record batches have `rows` rows; the last one may be shorter.
    """
    schema = pa.schema([pa.field(TOKEN_COLUMN, pa.from_numpy_dtype(dtype), nullable=False)])
    tokens = 0
    with writing(path):
        file = open(path, "wb")  # noqa: SIM115 (an error of closing must not hide the one before)
        writer = pa.ipc.new_file(file, schema)
    try:
        for ids in _in_rows(batches, dtype, rows):
            with writing(path):
                writer.write_batch(pa.record_batch([pa.array(ids)], schema=schema))
            tokens += len(ids)
        with writing(path):
            writer.close()
            file.flush()
            os.fsync(file.fileno())
            file.close()
    finally:
        with suppress(OSError):
            file.close()
    return tokens


def _in_rows(batches: Iterable[NDArray[np.integer]], dtype: np.dtype, rows: int) -> Iterator[NDArray[np.integer]]:
    """The same ids in arrays of `rows`, the last of which may be shorter; the next one takes the memory of each."""
    buffer, filled = np.empty(rows, dtype=dtype), 0
    for ids in batches:
        while len(ids):
            part = ids[: rows - filled]
            buffer[filled : filled + len(part)] = part
            filled, ids = filled + len(part), ids[len(part) :]
            if filled == rows:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def write_vocabulary(directory: Path, vocabulary: Vocabulary) -> None:
    """Write `vocabulary.json`."""
    content = {"types": vocabulary.types, "counts": vocabulary.counts}
    write_text(directory / VOCABULARY_FILE, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Measure the other files, which must all be there, and write `manifest.json`."""
    files = {}
    for name in STORE_FILES:
        with writing(directory / name):
            path = directory / name
            files[name] = FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
    write_text(directory / MANIFEST_FILE, manifest.model_copy(update={"files": files}).sealed().to_json())


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 and force it to the disk."""
    with writing(path), open(path, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _lock(directory: Path) -> int:
    taken = directory / f"{LOCK_FILE}.new"
    handle = os.open(taken, os.O_CREAT | os.O_RDWR)
    try_lock(handle)
    taken.rename(directory / LOCK_FILE)  # seen only once it is held
    return handle


def _clear_leftovers(out: Path) -> None:
    """Remove what killed preparations of `out` left behind. Where nothing can be locked it stays."""
    for directory in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        with suppress(OSError):
            handle = os.open(directory / LOCK_FILE, os.O_RDWR)
            try:
                if try_lock(handle):
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
