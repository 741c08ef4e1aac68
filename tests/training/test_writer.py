"""Checkpoints are written beside the training, on every worker, and what goes wrong there comes back."""

import errno
import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import Listener, assert_same_runs, disk_calls, interrupted, list_checkpoints, small, stop_at

import tpdist
from tpdist.parallel import Place, Workers
from tpdist.parallel.traffic import Traffic
from tpdist.training import epoch_end, trainer, writer
from tpdist.training.checkpoints import Packed, Shard, load_checkpoint
from tpdist.training.depots import Directory
from tpdist.training.writer import PartMissingError, Writer


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(small_corpus: Path, tmp_path: Path, monkeypatch):
    """The disk stands still until three more updates are done; what it gets is what was there before them."""
    go_on, save, written = threading.Event(), writer.save_tensors, []

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert go_on.wait(60)
        written.append(path.name)
        save(tensors, path)

    def look() -> None:
        assert not written
        assert not list_checkpoints(tmp_path / "run/checkpoints")
        go_on.set()

    config = small(small_corpus, run={"checkpoint_every": 4, "keep_last": 9})
    tpdist.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_tensors", slow)
        tpdist.train(config, tmp_path / "run", Listener({7: look}))
    assert names(tmp_path / "run") == [f"step-000000{n}" for n in ("04", "08", "09-epoch", "12", "16", "18-epoch")]
    for one, other in zip(*(list_checkpoints(tmp_path / run / "checkpoints") for run in ("whole", "run")), strict=True):
        for file in ("tensors.safetensors", "states-0-0.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), one


@pytest.mark.parametrize(("seconds", "busy", "written"), [(1e-9, False, 10), (1e-9, True, 1), (1e9, False, 1)])
def test_seconds_between_checkpoints(
    seconds: float, busy: bool, written: int, small_corpus: Path, tmp_path: Path, monkeypatch
):
    """Nothing becomes due while the last one is still being written; one at an epoch's end there always is."""
    steps: list[str] = []

    def note(self: Writer, name: str, packed: Packed, best: str | None = None) -> None:
        steps.append(name)

    monkeypatch.setattr(Writer, "write", note)
    monkeypatch.setattr(Writer, "busy", busy)
    monkeypatch.setattr(Writer, "wait", lambda self: None)
    tpdist.train(small(small_corpus, run={"checkpoint_every_s": seconds, "epochs": 1}), tmp_path / "run")
    assert steps == [f"step-{n:08d}" for n in range(1, written)] + ["step-00000009-epoch"]


def test_the_best_epochs_checkpoint_is_kept(small_corpus: Path, tmp_path: Path, monkeypatch):
    from tpdist.training.evaluation import Evaluation

    losses = iter([2.0, 1.0, 1.5, 1.6, 1.7])
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(next(losses, 0.0), 20))
    run = tmp_path / "run"
    config = small(small_corpus, run={"epochs": 5, "keep_last": 1, "keep_best": True})
    interrupted(lambda: tpdist.train(config, run, stop_at(28)))
    assert names(run) == ["step-00000018-epoch", "step-00000028"]
    tpdist.resume(run)
    assert names(run) == ["step-00000018-epoch", "step-00000045-epoch"]


def test_seconds_are_counted_from_the_last_checkpoint(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Three of them, by a clock that an update moves on by one."""
    steps: list[str] = []

    def note(self: Writer, name: str, packed: Packed, best: str | None = None) -> None:
        steps.append(name)

    monkeypatch.setattr(Writer, "write", note)
    now = [0.0]
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tick = Listener({n: lambda: now.append(now.pop() + 1) for n in range(1, 10)})
    tpdist.train(small(small_corpus, run={"checkpoint_every_s": 3.0, "epochs": 1}), tmp_path / "run", tick)
    assert steps == ["step-00000004", "step-00000008", "step-00000009-epoch"]


def one_of_two(directory: Path, time_: int) -> tuple[Writer, Packed]:
    """Worker 0 or 1 along time, without a process group: what they agree on is not at stake."""
    workers = Workers(Place(0, time_, 1, 2), Traffic())
    state = {"corpus": "", "optimizers": {"theta": [], "h": []}, "layout": {}, "theta_scalars": {}, "h_counts": {}}
    shard = Shard(f"states-0-{time_}.safetensors", range(1), [2 * time_, 2 * time_ + 1], time_)
    return Writer(Directory(directory), workers, 2), Packed(
        {"a": torch.ones(2)}, state, {"h": torch.ones(1, 2, 3)}, shard
    )


def test_the_leader_waits_for_every_receipt(tmp_path: Path):
    leader, packed = one_of_two(tmp_path, 0)
    leader.write("step-00000001", packed)
    (stage,) = tmp_path.iterdir()
    token = int(stage.name.split(".")[2], 16)
    receipt = stage / "states-0-1.safetensors.receipt"
    receipt.write_text('{"bytes": 12')  # half of one
    time.sleep(0.1)
    assert leader.busy
    other, theirs = one_of_two(tmp_path, 1)
    other._run("step-00000001", token, theirs, None)
    leader.wait()
    other.check()
    loaded = load_checkpoint(Directory(tmp_path), print)
    assert [shard.slots for shard, _ in loaded.shards()] == [[0, 1], [2, 3]]
    assert sorted(path.name for path in loaded.path.iterdir()) == [
        "manifest.json", "state.json", "states-0-0.safetensors", "states-0-1.safetensors", "tensors.safetensors",
    ]  # fmt: skip


def test_all_is_on_the_disk_before_a_checkpoint_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And its manifest last, of a run of two workers."""
    leader, packed = one_of_two(tmp_path, 0)
    other, theirs = one_of_two(tmp_path, 1)
    done = disk_calls(monkeypatch)
    leader.write("step-00000001", packed)
    (stage,) = tmp_path.iterdir()
    other._run("step-00000001", int(stage.name.split(".")[2], 16), theirs, None)
    leader.wait()
    # a receipt may be read, and all be done, before it is synced
    *files, manifest, directory, renamed, parent = (one for one in done if ".receipt" not in one[1])
    assert manifest[:2] == ("synced", "manifest.json")
    assert (directory, renamed) == (("synced", stage.name, 0), ("renamed", stage.name, 0))
    assert parent == ("synced", tmp_path.name, 0)
    whole = {("synced", path.name, path.stat().st_size) for path in (tmp_path / "step-00000001").iterdir()}
    assert len(whole) == 5
    assert whole <= {*files, manifest}


def test_another_workers_full_disk_is_the_leaders_error_too(tmp_path: Path, monkeypatch):
    leader, packed = one_of_two(tmp_path, 0)
    leader.write("step-00000001", packed)
    (stage,) = tmp_path.iterdir()
    other, theirs = one_of_two(tmp_path, 1)

    save = writer.save_tensors

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name == theirs.shard.file:
            raise OSError(errno.ENOSPC, "No space left on device", "the-file")
        save(tensors, path)

    monkeypatch.setattr(writer, "save_tensors", full)
    other._run("step-00000001", int(stage.name.split(".")[2], 16), theirs, None)
    for one, at in ((other, "the-file"), (leader, f"{socket.gethostname()}: the-file")):  # whose disk is to be mended
        with pytest.raises(OSError, match=f"No space left on device: '{at}'"):
            one.wait()
    assert not list(tmp_path.iterdir())


def test_a_run_that_failed_does_not_wait_for_a_worker_that_died(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writer, "GRACE_S", 0.05)
    leader, packed = one_of_two(tmp_path, 0)
    leader.write("step-00000001", packed)
    leader.give_up()
    assert not leader.busy
    assert not list(tmp_path.iterdir())
    with pytest.raises(PartMissingError, match="not every worker wrote its part"):
        leader.check()


def test_a_stage_that_is_not_seen_by_a_worker(tmp_path: Path):
    """Its directory is its own machine's: the leader's stage is not there."""
    other, packed = one_of_two(tmp_path / "elsewhere", 1)
    other._run("step-00000001", 7, packed, None)
    with pytest.raises(tpdist.RunError, match=r"elsewhere.*: not there; .*where every worker sees it"):
        other.check()


def test_an_older_name_is_pruned_only_when_the_new_one_is_whole(small_corpus: Path, tmp_path: Path, monkeypatch):
    """The process dies while the last file of the second checkpoint is written; the first is still there."""
    run, calls = tmp_path / "run", iter(range(9))
    write = writer.write_manifest

    def dies(path: Path, files: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        write(path, files)

    config = small(small_corpus, run={"keep_last": 1})
    tpdist.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_manifest", dies)
        message = interrupted(lambda: tpdist.train(config, run))
    assert "the checkpoint step-00000009-epoch is whole" in message
    assert names(run) == ["step-00000009-epoch"]
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)
    assert json.loads((run / "checkpoints/step-00000018-epoch/manifest.json").read_text())["format"] == 2
