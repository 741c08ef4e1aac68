"""Where a run's checkpoints are kept: a directory that all workers see, or an object store.

While it is written, a checkpoint has a *stage*, known by its name and a token that the leader draws, so that what a
dead or a stopped worker left is never taken for this one's. In a directory the stage is `.<name>.<token>.tmp`, and one
rename makes it a checkpoint. An object store cannot rename: there the manifest, written last, makes it one.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tpdist.config import Experiment
from tpdist.errors import ConfigError, RunError, TpdistError, first_line
from tpdist.training.files import sweep, sync
from tpdist.training.run_dir import RunDirectory

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "manifest.json"
PATTERN = "step-????????*"
ASIDE = "damaged-"


class Depot(Protocol):
    """Every method may raise OSError; that of an object store raises RunError."""

    where: str

    def names(self) -> list[str]:
        """The checkpoints, oldest first."""
        ...

    def fetch(self, name: str, scratch: Path) -> Path:
        """A checkpoint as a local directory; what has to be copied for it goes below `scratch`."""
        ...

    def begin(self, name: str, token: int) -> None:
        """Make the stage. The leader alone, before any other method is called for it."""
        ...

    def stage(self, name: str, token: int) -> Path:
        """The local directory that this worker writes the stage's files into."""
        ...

    def publish(self, name: str, token: int, file: str) -> None:
        """A file of `stage` is complete: make it last, and let the other workers see it."""
        ...

    def read(self, name: str, token: int, file: str) -> bytes | None:
        """A small file that another worker published; None while it is not there."""
        ...

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        """The manifest is published: the stage without the files `unwanted` is the checkpoint. The leader alone."""
        ...

    def leave(self, token: int) -> None:
        """This worker is done with a stage, but for the leader, who finishes or discards it."""
        ...

    def discard(self, name: str, token: int) -> None:
        """Remove a stage that came to nothing. The leader alone."""
        ...

    def remove(self, name: str) -> None: ...

    def set_aside(self, name: str) -> None:
        """Rename a damaged checkpoint, so that it is none any more."""
        ...

    def sweep(self) -> None:
        """Remove what killed processes were writing. Only for who has the run to itself."""
        ...


class Directory:
    """A directory of this machine, or of a file system that all workers share."""

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob(PATTERN))

    def fetch(self, name: str, scratch: Path) -> Path:
        return self.path / name

    def begin(self, name: str, token: int) -> None:
        self.stage(name, token).mkdir(parents=True)

    def stage(self, name: str, token: int) -> Path:
        return self.path / f".{name}.{token:x}.tmp"

    def publish(self, name: str, token: int, file: str) -> None:
        sync(self.stage(name, token) / file)

    def read(self, name: str, token: int, file: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self.stage(name, token) / file).read_bytes()
        return None

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        stage = self.stage(name, token)
        for file in unwanted:
            (stage / file).unlink()
        sync(stage)
        stage.rename(self.path / name)
        sync(self.path)

    def leave(self, token: int) -> None:
        pass

    def discard(self, name: str, token: int) -> None:
        shutil.rmtree(self.stage(name, token), ignore_errors=True)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)

    def set_aside(self, name: str) -> None:
        aside = self.path / f"{ASIDE}{name}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.path / name).rename(aside)

    def sweep(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)


class ObjectStore:
    """A place below a URI, through pyarrow or fsspec. Files are written locally and copied, one by one."""

    def __init__(self, uri: str):
        """Raises ConfigError where the URI names nothing that can be reached."""
        self.where = uri.rstrip("/")
        self._filesystem, self._base = _open(self.where)
        self._stages: dict[int, tempfile.TemporaryDirectory[str]] = {}

    def names(self) -> list[str]:
        with self._told():
            return self._list(complete=True)

    def fetch(self, name: str, scratch: Path) -> Path:
        from pyarrow.fs import FileSelector, LocalFileSystem, copy_files

        local = scratch / name
        local.mkdir()
        with self._told():
            for info in self._filesystem.get_file_info(FileSelector(f"{self._base}/{name}")):
                if info.is_file:
                    copy_files(info.path, str(local / info.base_name), self._filesystem, LocalFileSystem())
        return local

    def begin(self, name: str, token: int) -> None:
        self.remove(name)  # parts of one that was never finished

    def stage(self, name: str, token: int) -> Path:
        if token not in self._stages:
            self._stages[token] = tempfile.TemporaryDirectory()
        return Path(self._stages[token].name)

    def publish(self, name: str, token: int, file: str) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._told():
            self._filesystem.create_dir(f"{self._base}/{name}")
            copy_files(
                str(self.stage(name, token) / file), f"{self._base}/{name}/{file}", LocalFileSystem(), self._filesystem
            )

    def read(self, name: str, token: int, file: str) -> bytes | None:
        path = f"{self._base}/{name}/{file}"
        with self._told():
            if not self._filesystem.get_file_info(path).is_file:
                return None
            with self._filesystem.open_input_stream(path) as stream:
                return stream.read()

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        with self._told():
            for file in unwanted:
                self._filesystem.delete_file(f"{self._base}/{name}/{file}")
        self.leave(token)

    def leave(self, token: int) -> None:
        if token in self._stages:
            self._stages.pop(token).cleanup()

    def discard(self, name: str, token: int) -> None:
        self.leave(token)
        self.remove(name)

    def remove(self, name: str) -> None:
        with self._told():
            path = f"{self._base}/{name}"
            if self._filesystem.get_file_info(f"{path}/{MANIFEST}").is_file:
                self._filesystem.delete_file(f"{path}/{MANIFEST}")  # it is none from here on
            if self._filesystem.get_file_info(path).type.name == "Directory":
                self._filesystem.delete_dir(path)

    def set_aside(self, name: str) -> None:
        from pyarrow.fs import FileSelector

        self.remove(f"{ASIDE}{name}")
        with self._told():
            aside = f"{self._base}/{ASIDE}{name}"
            self._filesystem.create_dir(aside)
            for info in self._filesystem.get_file_info(FileSelector(f"{self._base}/{name}")):
                self._filesystem.move(info.path, f"{aside}/{info.base_name}")
            self._filesystem.delete_dir(f"{self._base}/{name}")

    def sweep(self) -> None:
        with self._told():
            self._filesystem.create_dir(self._base)
            for name in self._list(complete=False):
                self._filesystem.delete_dir(f"{self._base}/{name}")

    def _list(self, complete: bool) -> list[str]:
        """Those with a manifest, or those without."""
        from pyarrow.fs import FileSelector

        below = FileSelector(self._base, allow_not_found=True, recursive=True)
        paths = [Path(info.path) for info in self._filesystem.get_file_info(below)]
        found = {path if path.match(PATTERN) else path.parent for path in paths}
        found = {path for path in found if path.match(PATTERN)}
        return sorted(path.name for path in found if (path / MANIFEST in paths) == complete)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the library says of a store that cannot be reached, as one line."""
        try:
            yield
        except Exception as error:
            raise RunError(f"run.checkpoint_to: {self.where}: {first_line(error)}") from error


def depot_for(config: Experiment, run: RunDirectory) -> Depot:
    """The run's `checkpoints/`, or its own place, by its name, below `run.checkpoint_to`."""
    to = config.run.checkpoint_to
    if to is None:
        return Directory(run.checkpoints)
    name = run.path.absolute().name
    return ObjectStore(f"{to.rstrip('/')}/{name}") if "://" in to else Directory(Path(to) / name)


def has_checkpoints(config: Experiment, run: RunDirectory) -> bool:
    """Whether there may be any: also where nobody can tell."""
    try:
        return bool(depot_for(config, run).names())
    except TpdistError:
        return True


def _open(uri: str) -> "tuple[FileSystem, str]":
    """pyarrow's file system, or fsspec's for what pyarrow does not know."""
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        try:
            return FileSystem.from_uri(uri)
        except ArrowInvalid:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(uri)
            return PyFileSystem(FSSpecHandler(filesystem)), path
    except Exception as error:
        raise ConfigError(f"{uri}: cannot be opened ({first_line(error)})", "run.checkpoint_to") from error
