"""Checkpoints in an object store, by pyarrow's file systems or fsspec's. What a depot is: `depot.py`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, copy_files

from tpdist.errors import ConfigError, RunError, first_line
from tpdist.training.depot import ASIDE, MANIFEST, NAME, OWNER, RECEIPT, oldest_first


class ObjectStore:
    """A place below a URI, through pyarrow or fsspec. Files are written locally and copied, one by one."""

    def __init__(self, uri: str):
        """Raises ConfigError where the URI names nothing that can be reached."""
        self.where = uri.rstrip("/")
        self._filesystem, self._base = _open(self.where)
        self._stages: dict[int, tempfile.TemporaryDirectory[str]] = {}

    def claim(self, run: str) -> str:
        path = f"{self._base}/{OWNER}"
        with self._told():
            if not self._filesystem.get_file_info(path).is_file:
                self._filesystem.create_dir(self._base)
                with self._filesystem.open_output_stream(path) as stream:
                    stream.write(run.encode())
            with self._filesystem.open_input_stream(path) as stream:
                return stream.read().decode(errors="replace")

    def release(self) -> None:
        with self._told():
            self._filesystem.delete_file(f"{self._base}/{OWNER}")

    def names(self) -> list[str]:
        with self._told():
            return self._list(complete=True)

    def fetch(self, name: str, scratch: Path) -> Path:
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
        with self._told():
            self._filesystem.create_dir(f"{self._base}/{name}")
            copy_files(
                str(self.stage(name, token) / file), self._path(name, token, file), LocalFileSystem(), self._filesystem
            )

    def read(self, name: str, token: int, file: str) -> bytes | None:
        path = self._path(name, token, file)
        with self._told():
            if not self._filesystem.get_file_info(path).is_file:
                return None
            with self._filesystem.open_input_stream(path) as stream:
                return stream.read()

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        with suppress(RunError), self._told():  # it is whole: what cannot be deleted stays, and harms nobody
            for file in unwanted:
                self._filesystem.delete_file(self._path(name, token, file))
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
        self.remove(f"{ASIDE}{name}")
        with self._told():
            aside = f"{self._base}/{ASIDE}{name}"
            self._filesystem.create_dir(aside)
            for info in self._filesystem.get_file_info(FileSelector(f"{self._base}/{name}")):
                self._filesystem.move(info.path, f"{aside}/{info.base_name}")
            self._filesystem.delete_dir(f"{self._base}/{name}")

    def clear_leftovers(self) -> None:
        with self._told():
            self._filesystem.create_dir(self._base)
            for name in self._list(complete=False):
                self._filesystem.delete_dir(f"{self._base}/{name}")

    def _path(self, name: str, token: int, file: str) -> str:
        return f"{self._base}/{name}/{file}" + (f".{token:x}" if file.endswith(RECEIPT) else "")

    def _list(self, complete: bool) -> list[str]:
        """Those with a manifest, or those without."""
        below = FileSelector(self._base, allow_not_found=True, recursive=True)
        paths = [Path(info.path) for info in self._filesystem.get_file_info(below)]
        found = {path if NAME.fullmatch(path.name) else path.parent for path in paths}
        return oldest_first(path.name for path in found if (path / MANIFEST in paths) == complete)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the library says of a store that cannot be reached, as one line."""
        try:
            yield
        except Exception as error:
            raise RunError(f"run.checkpoint_to: {self.where}: {first_line(error)}") from error


def _open(uri: str) -> tuple[FileSystem, str]:
    """pyarrow's file system, or fsspec's for what pyarrow does not know."""
    try:
        try:
            return FileSystem.from_uri(uri)
        except ArrowInvalid:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(uri)
            return PyFileSystem(FSSpecHandler(filesystem)), path
    except Exception as error:
        raise ConfigError(f"{uri}: cannot be opened ({first_line(error)})", "run.checkpoint_to") from error
