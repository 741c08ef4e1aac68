"""What a place for checkpoints does by itself: names, receipts, claims; what cannot be deleted."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tpdist import RunError
from tpdist.training.depot import Depot
from tpdist.training.depots import Directory
from tpdist.training.object_store import ObjectStore


def filled(to: str, names: list[str]) -> Depot:
    kept = ObjectStore(f"{to}/run") if "://" in to else Directory(Path(to) / "run")
    for token, name in enumerate(names):
        kept.begin(name, token)
        (kept.stage(name, token) / "manifest.json").write_text("{}")
        kept.publish(name, token, "manifest.json")
        kept.finish(name, token, [])
    return kept


def test_the_newest_is_the_one_with_the_most_updates(to: str):
    names = ["step-99999999-epoch", "step-100000000", "step-100000000-epoch"]
    assert filled(to, names[::-1]).names() == names


def test_a_copy_that_somebody_has_made_is_no_checkpoint(to: str):
    """Else a run goes on from it, as the newest, and prunes those that are newer."""
    copies = ["step-00000005.bak", "step-00000005 (1)", "step-00000009-epoch-copy"]
    assert filled(to, ["step-00000009-epoch", *copies]).names() == ["step-00000009-epoch"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
def test_a_directory_that_cannot_be_read_is_not_one_without_checkpoints(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a run begins anew beside them, and a sweep's task removes them."""
    kept = filled(str(tmp_path), ["step-00000009"])

    def fail(path: Any = ".") -> Any:
        raise OSError(number, os.strerror(number), path)

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(RunError, match=f"run: cannot be read: {os.strerror(number)}$") as caught:
        kept.names()
    assert isinstance(caught.value.__cause__, OSError)  # where it was the machine's, another may do better


def test_a_receipt_of_an_earlier_attempt_is_none_of_this_ones(to: str, tmp_path: Path):
    """What a worker that was cut off leaves after the stage was made anew."""
    kept = ObjectStore(f"{to}/run") if "://" in to else Directory(Path(to) / "run")
    name, file = "step-00000001", "states-0-1.safetensors.receipt"
    kept.begin(name, 1)
    (kept.stage(name, 1) / "states-0-2.safetensors").write_text("of more workers")
    kept.publish(name, 1, "states-0-2.safetensors")
    kept.begin(name, 2)
    assert kept.read(name, 2, "states-0-2.safetensors") is None
    for token, text in ((1, "old"), (2, "new")):
        assert kept.read(name, 2, file) is None
        (kept.stage(name, token) / file).write_text(text)
        kept.publish(name, token, file)
    assert kept.read(name, 2, file) == b"new"
    assert kept.read(name, 1, file) == b"old"
    kept.finish(name, 2, [file])
    assert kept.read(name, 2, file) is None


class Throttled:
    """A file system that takes no directory away."""

    def __init__(self, inner: Any):
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def delete_dir(self, path: str) -> None:
        raise OSError("slow down")


class ReadAndWrite(Throttled):
    """One that takes no file away, either."""

    delete_file = Throttled.delete_dir


def test_a_store_that_deletes_nothing_has_checkpoints_of_many_workers(tmp_path: Path):
    """Whose receipts then stay."""
    kept: Any = ObjectStore(f"file://{tmp_path}/run")
    for file in ("states-0-1.safetensors.receipt", "manifest.json"):
        (kept.stage("step-00000001", 1) / file).write_text("{}")
        kept.publish("step-00000001", 1, file)
    kept._filesystem = ReadAndWrite(kept._filesystem)
    kept.finish("step-00000001", 1, ["states-0-1.safetensors.receipt"])
    assert kept.names() == ["step-00000001"]


def test_what_is_half_removed_is_no_checkpoint(tmp_path: Path):
    kept: Any = ObjectStore(f"file://{tmp_path}/run")
    (kept.stage("step-00000001", 1) / "manifest.json").write_text("{}")
    kept.publish("step-00000001", 1, "manifest.json")
    assert kept.names() == ["step-00000001"]
    kept._filesystem = Throttled(kept._filesystem)
    with pytest.raises(RunError, match="slow down"):
        kept.remove("step-00000001")
    kept._filesystem = kept._filesystem._inner
    assert kept.names() == []


def test_a_place_on_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert [Directory(tmp_path / "kept").claim(run) for run in ("one", "two", "one")] == ["one"] * 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["run"]
