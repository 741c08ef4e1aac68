"""No space on the disk or in a GPU's memory, no disk: one line, exit code 2, and the checkpoint before it is whole."""

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_runs, interrupted, small, stop_at

import tpdist
from tpdist import RunError
from tpdist.cli import main
from tpdist.config import to_yaml
from tpdist.errors import first_line
from tpdist.training import files, manifest, run_dir, tracking, trainer
from tpdist.training.files import save_tensors

FULL = OSError(errno.ENOSPC, "No space left on device", "the-file")


def after(calls: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """`original` for some calls, then the disk is full."""
    left = iter(range(calls))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise FULL
        return original(*arguments, **options)

    return called


# what is patched, and the calls that pass: until the first epoch's checkpoint at 9 is written, and some more
WRITES = {
    "checkpoint": ("tpdist.training.writer", "save_tensors", 3),
    "checkpoint's state": ("tpdist.training.writer", "dump_json", 1),
    "model": ("tpdist.training.kept_model", "save_tensors", 2),
    "model's description": ("tpdist.training.kept_model", "write_json", 2),
    "sync": ("tpdist.training.depots", "sync", 9),
    "result": ("tpdist.training.worker", "write_json", 0),
    "events": ("tpdist.training.trackers", "Event", 9),
}


@pytest.mark.parametrize("what", WRITES)
def test_the_run_can_be_resumed(what: str, small_corpus: Path, tmp_path: Path, monkeypatch, capsys):
    module, name, calls = WRITES[what]
    config, run = small(small_corpus), tmp_path / "run"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    tpdist.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        target = __import__(module, fromlist=[name])
        patch.setattr(target, name, after(calls, getattr(target, name)))
        assert main(["train", str(tmp_path / "config.yaml"), "--run-dir", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    saved = "step-00000018-epoch" if what == "result" else "step-00000009-epoch"
    assert line == (
        "tpdist: the-file: no space left on the disk (No space left on device); "
        f"the checkpoint {saved} is whole. Continue with: tpdist train --resume {run}"
    )
    assert not list(run.rglob("*.tmp"))
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize("reader", ["read_bytes", "sha256"])
def test_a_checkpoint_on_a_file_system_that_is_away_is_not_damaged(
    reader: str, small_corpus: Path, tmp_path: Path, monkeypatch, capsys
):
    """Else it is set aside, and the run goes on from the one before it."""
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(11)))
    owner = Path if reader == "read_bytes" else manifest
    read = getattr(owner, reader)

    def away(path: Path) -> Any:
        if "checkpoints" in path.parts:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(owner, reader, away)
        assert main(["train", "--resume", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"tpdist: {run}/checkpoints/step-00000011/\S+: cannot be read \(Stale file handle\)", line)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000009-epoch", "step-00000011"]


def test_metrics(small_corpus: Path, tmp_path: Path, monkeypatch):
    """A row that is half written is dropped by the resumed run."""
    run, write = tmp_path / "run", tracking.Tracker.write

    def half(self: Any, row: dict[str, Any]) -> None:
        if row["step"] == 14:
            self._file.write('{"kind": "step", "ep')
            self._file.flush()
            raise FULL
        write(self, row)

    tpdist.train(small(small_corpus), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Tracker, "write", half)
        with pytest.raises(RunError, match="no space left on the disk"):
            tpdist.train(small(small_corpus), run)
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)


def no_memory_on_a_cpu() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    return raised.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"), "CUDA out"),
        (no_memory_on_a_cpu(), "[enforce fail"),
    ],
    ids=["gpu", "cpu"],
)
def test_a_full_memory(error: RuntimeError, said: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    run, count = tmp_path / "run", trainer.count_update

    def full(self: trainer.Trainer, *arguments: Any) -> None:
        if self.state.step == 12:
            raise error
        count(self, *arguments)

    tpdist.train(small(small_corpus), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "count_update", full)
        with pytest.raises(RunError) as raised:
            tpdist.train(small(small_corpus), run)
    assert str(raised.value).startswith(said)
    assert str(raised.value) == (
        f"{first_line(error).rstrip('.')}. Write a smaller batching.chunk_tokens, or in a new run fewer "
        "batching.streams; the checkpoint step-00000009-epoch is whole. "
        f"Continue with: tpdist train --resume {run}"
    )
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize("module", [run_dir, tracking])
def test_nothing_is_left_of_a_run_that_took_no_step(module: Any, small_corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "write_text", after(0, print))
    with pytest.raises(
        RunError, match=r"cannot be written: No space left|no space left on the disk .*start the run again"
    ):
        tpdist.train(small(small_corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_rows_survive_when_a_resumed_run_finds_the_disk_full(small_corpus: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(11)))
    before = (run / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", after(1, files.sync))
        with pytest.raises(RunError, match="no space left"):
            tpdist.resume(run)
    assert (run / "metrics.jsonl").read_bytes() == before


REAL = """
import resource, sys, pathlib, torch
from tpdist.training.files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_tensors({"a": torch.zeros(1000)}, pathlib.Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def test_safetensors_says_so_as_an_oserror(tmp_path: Path):
    """A real limit of the system, in a process of its own."""
    file = tmp_path / "a.safetensors"
    done = subprocess.run([sys.executable, "-c", REAL, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[Errno 27] File too large: '{file}'"


def test_others_may_read_what_is_saved(tmp_path: Path):
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
