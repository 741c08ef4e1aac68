"""Locks on files, and places that cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from tpdist.data import disk


def opened(file: Path) -> int:
    return os.open(file, os.O_CREAT | os.O_RDWR)


def test_one_at_a_time_until_the_file_is_closed(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert disk.try_lock(first) is True
    assert disk.try_lock(second) is False
    os.close(first)
    assert disk.try_lock(second) is True
    os.close(second)


def test_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    handle = opened(tmp_path / "lock")
    assert disk.fcntl is not None
    monkeypatch.setattr(disk.fcntl, "flock", refuse)
    assert disk.try_lock(handle) is None
    monkeypatch.setattr(disk, "fcntl", None)
    assert disk.try_lock(handle) is None
    os.close(handle)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert disk.unwritable(tmp_path) is None
    assert disk.unwritable(tmp_path / "new/deep") is None
    assert disk.unwritable(tmp_path / "file") == "Not a directory"
    assert disk.unwritable(tmp_path / "file/new/deep") == "Not a directory"
    assert disk.unwritable(tmp_path / ("x" * 300)) == "File name too long"
    asked: list[Path] = []

    def refuse(path: Path, how: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(disk.os, "access", refuse)
    assert disk.unwritable(tmp_path / "new/deep") == "Permission denied"
    assert asked == [tmp_path]
    monkeypatch.setattr(disk.os, "statvfs", lambda path: type("Status", (), {"f_flag": os.ST_RDONLY}))
    assert disk.unwritable(tmp_path) == "Read-only file system"
