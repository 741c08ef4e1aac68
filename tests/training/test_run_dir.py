"""A run's directory: what is in it, what is refused, who holds it."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import interrupted, small, stop_at

import tpdist
from tpdist import Interrupted, RunError
from tpdist.config import load_config, path_keys
from tpdist.data import Store
from tpdist.launch import tasks
from tpdist.launch.local import dry_run
from tpdist.training import locks, run_dir
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory, with_absolute_paths
from tpdist.training.worker import run_worker

NFS_LEASE_S = 90.0  # a server's default
FILES = ("manifest.json", "state.json", "states-0-0.safetensors", "tensors.safetensors")


def test_the_files_of_a_run(small_corpus: Path, tmp_path: Path):
    result = tpdist.train(small(small_corpus), tmp_path / "run")
    found = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    found = [re.sub(r"tfevents\.\d+\.", "tfevents.TIME.", name) for name in found]
    checkpoints = [f"checkpoints/step-000000{n}-epoch" for n in ("09", "18")]
    assert found == [
        ".config.yaml",
        ".lock",
        *[f"{name}/{file}" for name in checkpoints for file in FILES],
        "config.yaml",
        "metrics.jsonl",
        *[f"models/{which}.{ending}" for which in ("best", "last") for ending in ("json", "safetensors")],
        "result.json",
        "tensorboard/events.out.tfevents.TIME.tpdist",
    ]
    assert result.path == tmp_path / "run"


def test_result(small_corpus: Path, tmp_path: Path):
    result = tpdist.train(small(small_corpus), tmp_path / "run")
    figures = json.loads((tmp_path / "run/result.json").read_text())
    assert figures == result.to_json()
    assert figures["unigram_perplexity"] == tpdist.data.Store.open(small_corpus).manifest.unigram_perplexity["valid"]
    assert figures["valid_perplexity"] == tpdist.evaluate(tmp_path / "run").perplexity
    assert figures["test_perplexity"] == tpdist.evaluate(tmp_path / "run", "test").perplexity
    assert (figures["steps"], figures["epochs"], figures["workers"]) == (18, 2, 1)
    assert figures["seconds"] > 0
    assert figures["tokens_per_second"] == pytest.approx(2 * 199 / figures["seconds"])
    assert (figures["boundary_bytes"], figures["carried_bytes"], figures["gradient_bytes"]) == (0, 0, 0)
    assert figures["recoveries"] is None
    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    trained = {row["epoch"]: row["perplexity"] for row in rows if row["kind"] == "epoch"}
    assert figures["train_perplexity"] == trained[figures["best_epoch"]]


def test_the_default_name(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Runs that begin in the same second get numbers."""
    monkeypatch.chdir(tmp_path)

    class Clock(run_dir.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 5, 4, 3, 2, 1)

    monkeypatch.setattr(run_dir, "datetime", Clock)
    config = small(small_corpus, run={"name": "mine", "epochs": 1})
    paths = [tpdist.train(config).run for _ in range(3)]
    assert paths == ["runs/mine-20260504-030201", "runs/mine-20260504-030201-2", "runs/mine-20260504-030201-3"]


def test_an_existing_run_is_refused_and_untouched(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "a run"
    tpdist.train(small(small_corpus), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(RunError) as caught:
        tpdist.train(small("no such store"), run)  # before the data is looked at
    assert str(caught.value) == (
        f"{run}: exists already and is not overwritten; continue it with `tpdist train --resume '{run}'`, "
        "or give --run-dir a new name"
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_that_has_saved_nothing_is_not_said_to_go_on(small_corpus: Path, tmp_path: Path):
    run = RunDirectory.create(small(small_corpus), tmp_path / "run")
    with pytest.raises(RunError, match="no checkpoint is in it: delete it, or give --run-dir a new name"):
        run.refuse_existing()
    with pytest.raises(RunError, match=r"the run has not finished an epoch yet, or somebody removed it$"):
        tpdist.evaluate(run.path)
    run.save_config(small(small_corpus, run={"checkpoint_to": str(tmp_path / "elsewhere")}))
    with pytest.raises(RunError, match="continue it with"):  # there may be some in the other place
        run.refuse_existing()


def test_a_link_that_leads_nowhere_in_the_place_of_runs(small_corpus: Path, tmp_path: Path, monkeypatch):
    """To a disk that is not mounted, say."""
    monkeypatch.chdir(tmp_path)
    to_nowhere(Path("runs"))
    with pytest.raises(RunError, match=r"^runs/run-\d+-\d+: cannot be made: Not a directory$"):
        tpdist.train(small(small_corpus))
    with pytest.raises(RunError, match=r"^runs/NAME-TIME: cannot be made: Not a directory$"):
        dry_run(small(small_corpus), None)


def to_file(path: Path) -> Path:
    path.write_text("mine")
    return path


def to_nowhere(path: Path) -> Path:
    path.symlink_to("/nowhere")
    return path


PLACES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda tmp: tmp, "exists already and is not overwritten; give --run-dir a new name"),
    (lambda tmp: to_file(tmp / "file"), "exists already and is not overwritten; give --run-dir a new name"),
    (lambda tmp: to_file(tmp / "file") / "run", "cannot be made: Not a directory"),
    (lambda tmp: to_file(tmp / "file") / "deep/run", "cannot be made: Not a directory"),
    (lambda tmp: to_nowhere(tmp / "link") / "run", "cannot be made: Not a directory"),
    (lambda tmp: tmp / ("x" * 300), "cannot be made: File name too long"),
    (lambda tmp: Path("/proc/run"), "cannot be made: No such file or directory"),
]


@pytest.mark.parametrize(("make", "said"), PLACES)
def test_a_place_that_cannot_be(make: Callable[[Path], Path], said: str, small_corpus: Path, tmp_path: Path):
    place = make(tmp_path)
    with pytest.raises(RunError) as caught:
        tpdist.train(small(small_corpus), place)
    assert str(caught.value) == f"{place}: {said}"


def test_a_name_of_which_nothing_can_be_read_is_refused(small_corpus: Path, tmp_path: Path):
    with pytest.raises(RunError) as caught:
        tpdist.train(small(small_corpus), tmp_path / "bad\udcff")
    assert str(caught.value) == rf"{tmp_path}/bad\udcff: holds bytes that are not UTF-8; give --run-dir another name"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"a\nb"), ("bad\udcff", r"bad\udcff")])
def test_a_working_directory_that_no_configuration_can_name_is_refused(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: str
):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for work in (lambda: tpdist.train(small("store"), "run"), lambda: dry_run(small("store"), "run")):
        with pytest.raises(RunError) as caught:
            work()
        assert str(caught.value) == (
            f"{tmp_path}/{shown}/store: holds a line break, another control character or bytes that are not UTF-8, and "
            "the run's config.yaml could not be read again; change into another directory"
        )
    assert list(Path().iterdir()) == []
    tpdist.train(small(small_corpus, run={"epochs": 1}), "run")  # nothing in its configuration is below this directory
    assert tpdist.evaluate("run").tokens


def test_two_processes_do_not_train_in_one_directory(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(3)))
    code = "import fcntl, os, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match=f"{run}: another process trains in it; wait for its end, or end it"):
            tpdist.resume(run)
        other.communicate()
    tpdist.resume(run)


def test_a_worker_that_replaces_another_waits_for_its_lock(small_corpus: Path, tmp_path: Path):
    run = RunDirectory.create(small(small_corpus), tmp_path / "run")
    ended: list[bool] = []
    with ExitStack() as other:
        other.enter_context(run.held())

        def end() -> None:
            ended.append(True)
            other.close()

        timer = threading.Timer(0.3, end)
        timer.start()
        with run.held(patience_s=60):
            assert ended
        timer.join()


@pytest.mark.parametrize("task", [False, True], ids=["worker", "task"])
def test_the_lock_of_a_node_that_is_gone_is_waited_for(
    task: bool, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file server keeps it for as long as the node's lease lasts."""
    now = [0.0]
    monkeypatch.setattr(
        locks, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.append(now.pop() + s))
    )
    monkeypatch.setattr(locks, "try_lock", lambda _: now[0] > NFS_LEASE_S)
    config = small(small_corpus, run={"epochs": 1})
    run = RunDirectory.create(config, tmp_path / "run")
    if task:
        monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
        assert tasks._run(config, str(run.path), 1) is None
    else:
        assert run_worker(config, Store.open(small_corpus), run, Silent(), resume=False, recoveries=1)


def test_every_key_that_takes_a_path_is_noted_with_an_absolute_one(tmp_path: Path):
    assert {"data.store", "data.source", "model.init_from", "run.checkpoint_to"} <= set(path_keys())
    whole = with_absolute_paths(load_config(None, [f"{key}=x" for key in path_keys()]), tmp_path)
    assert {attrgetter(key)(whole) for key in path_keys()} == {str(tmp_path / "x")}


def test_a_run_is_usable_from_any_directory(small_corpus: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    relative = os.path.relpath(small_corpus)
    with pytest.raises(Interrupted):
        tpdist.train(small(relative), "my runs/first one", stop_at(4))
    monkeypatch.chdir(tmp_path)
    result = tpdist.resume("home/my runs/first one")
    assert tpdist.evaluate("home/my runs/first one", "test").perplexity == result.test_perplexity
    assert tpdist.load_config("home/my runs/first one/config.yaml").data.store == str(tmp_path / "home" / relative)
