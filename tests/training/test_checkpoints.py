"""Checkpoints are whole or passed over, and what does not fit is refused."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import Listener, assert_same_runs, interrupted, list_checkpoints, small, stop_at

import tpdist
from tpdist import ConfigError, DataError, RunError
from tpdist.parallel import Workers
from tpdist.training import checkpoints, files, manifest, writer
from tpdist.training.checkpoints import load_checkpoint
from tpdist.training.depots import Directory
from tpdist.training.writer import Writer


def save(path: Path, a: torch.Tensor) -> None:
    """A checkpoint of one worker that holds `a` and no states."""
    shard = checkpoints.Shard("states-0-0.safetensors", range(1), [0, 1], 0)
    state = {"corpus": "", "optimizers": {"theta": [], "h": []}, "layout": {}, "theta_scalars": {}, "h_counts": {}}
    packed = checkpoints.Packed({"a": a}, state, {"h": torch.zeros(1, 2, 3)}, shard)
    written = Writer(Directory(path.parent), Workers.alone(), 2)
    written.write(path.name, packed)
    written.wait()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def leave_out_the_state(file: Path) -> None:
    listed = json.loads(file.read_text())["files"]
    manifest.write_manifest(file, {name: row for name, row in listed.items() if name != "state.json"})


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("tensors.safetensors", tear, r"bytes where \d+ were written"),
    ("tensors.safetensors", alter, "its SHA-256 is not that of what was written"),
    ("tensors.safetensors", Path.unlink, "missing"),
    ("states-0-0.safetensors", tear, r"bytes where \d+ were written"),
    ("states-0-0.safetensors", alter, "its SHA-256 is not that of what was written"),
    ("states-0-0.safetensors", Path.unlink, "missing"),
    ("state.json", tear, r"bytes where \d+ were written"),
    ("state.json", Path.unlink, "missing"),
    ("manifest.json", tear, "not a checkpoint's manifest"),
    ("manifest.json", Path.unlink, "missing"),
    ("manifest.json", leave_out_the_state, "does not list tensors.safetensors and state.json"),
    ("manifest.json", lambda path: path.write_text('{"format": 1}'), "not a checkpoint's manifest"),
    ("manifest.json", lambda path: (path.unlink(), path.mkdir()), "not a file"),
]


@pytest.fixture(scope="module")
def two_checkpoints(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped at update 11, after one of an epoch's end at 9; and the same run whole, beside it."""
    directory = tmp_path_factory.mktemp("two")
    tpdist.train(small(small_corpus), directory / "whole")
    interrupted(lambda: tpdist.train(small(small_corpus), directory / "run", stop_at(11)))
    return directory


@pytest.mark.parametrize(("file", "damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(file: str, damage, said: str, two_checkpoints: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints / "run", run)
    damage(run / "checkpoints/step-00000011" / file)
    listener = Listener()
    interrupted(lambda: tpdist.resume(run, reporter=stop_at(10)))
    assert names(run) == ["damaged-step-00000011", "step-00000009-epoch", "step-00000010"]
    shutil.rmtree(run / "checkpoints/step-00000010")
    shutil.copytree(run / "checkpoints/damaged-step-00000011", run / "checkpoints/step-00000011")  # and once more
    tpdist.resume(run, reporter=listener)
    (notice,) = [text for text in listener.said if "step-00000011" in text]
    assert notice.startswith(str(run / "checkpoints/step-00000011" / file))
    assert notice.endswith("; the checkpoint before it is used")
    assert re.search(said, notice)
    assert_same_runs(two_checkpoints / "whole", run)


def test_all_damaged(two_checkpoints: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints / "run", run)
    for checkpoint in list_checkpoints(run / "checkpoints"):
        tear(checkpoint / "state.json")
    before = names(run)
    with pytest.raises(RunError) as caught:
        tpdist.resume(run)
    oldest = run / "checkpoints/step-00000009-epoch/state.json"
    assert str(caught.value).startswith(
        f"{run}/checkpoints: no checkpoint to resume from (all 2 are damaged; the oldest: {oldest}: "
    )
    assert names(run) == before


def test_a_list_of_places_that_no_state_fills_is_not_made(tmp_path: Path):
    """Whoever wrote it can make it as long as he likes."""
    files.save_tensors({"carried": torch.zeros(1, 3)}, tmp_path / "states-0-0.safetensors")
    shard = {"file": "states-0-0.safetensors", "streams": (0, 1), "slots": [(0, 10**6)], "time": 0}
    loaded = checkpoints.Loaded("step-00000001", "here", tmp_path, {}, {"shards": [shard]})
    assert [shard.slots for shard, _ in loaded.shards()] == [[]]


def test_a_checkpoint_of_another_version(two_checkpoints: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints / "run", run)
    file = run / "checkpoints/step-00000011/manifest.json"
    files_of_it = json.loads(file.read_text())["files"]
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 3)
        manifest.write_manifest(file, files_of_it)
    with pytest.raises(RunError, match=r"step-00000011/manifest.json: a checkpoint of format 3, this program reads"):
        tpdist.resume(run)
    assert names(run) == ["step-00000009-epoch", "step-00000011"]


NO_FIT = [
    (["model.hidden=7"], r"holds another model: parameter embedding.weight is \(12, 6\) there and \(12, 7\) in", None),
    (
        ["model.cell=lstm"],
        r"holds another model: parameter layers.0.\S+ is \(18,\) there and \(24,\) in the configuration",
        None,
    ),
    (["model.layers=2"], r"parameter layers.1.\S+ is absent there and \(\d+,.*\) in the configuration", None),
    (["batching.blocks=4"], "saved in the middle of an epoch, with blocks per window 3; the configuration has 4", None),
    (["batching.streams=1"], "in the middle of an epoch, with batching.streams 2; the configuration has 1", None),
    (["objective.block=2"], "in the middle of an epoch, with objective.block 4; the configuration has 2", None),
    (["run.seed=4"], "saved in the middle of an epoch, with run.seed 0; the configuration has 4: leave it", None),
    (["method.first=persistent"], r"its stored states do not fit the configuration: h is absent there and", None),
    (["run.epochs=0"], "--set: run.epochs: must be at least 1, got 0", ConfigError),
    (["data.synthetic.seed=3"], "made with data.synthetic.seed 0, the configuration has 3", DataError),
]


@pytest.mark.parametrize(("overrides", "said", "kind"), NO_FIT)
def test_what_does_not_fit_is_refused(overrides, said: str, kind, two_checkpoints: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints / "run", run)
    config = (run / "config.yaml").read_text()
    with pytest.raises(kind or RunError, match=said):
        tpdist.resume(run, overrides)
    assert (run / "config.yaml").read_text() == config
    assert names(run) == names(two_checkpoints / "run")
    tpdist.resume(run)
    assert_same_runs(two_checkpoints / "whole", run)


def test_windows_stay_as_they_are_until_an_epoch_is_over(small_corpus: Path, tmp_path: Path):
    """Where blocks have no states of their own, too."""
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus, method={"name": "bptt"}), run, stop_at(11)))
    with pytest.raises(RunError, match="saved in the middle of an epoch, with blocks per window 3; the configuration"):
        tpdist.resume(run, ["batching.blocks=4"])


@pytest.mark.parametrize(("updates", "when"), [(9, "states stored for every block"), (11, "the middle of an epoch")])
def test_windows_of_which_states_are_stored_stay_as_they_are(updates: int, when: str, small_corpus, tmp_path: Path):
    run, method = tmp_path / "run", {"first": "persistent"}
    if updates == 9:
        tpdist.train(small(small_corpus, method=method, run={"epochs": 1}), run)
    else:
        interrupted(lambda: tpdist.train(small(small_corpus, method=method), run, stop_at(updates)))
    with pytest.raises(RunError, match=f"{when}, with batching.order sequential; the configuration has shuffled: lea"):
        tpdist.resume(run, ["batching.order=shuffled", "run.epochs=2"])


def test_the_checkpoint_of_another_run_is_refused(small_corpus: Path, two_checkpoints: Path, tmp_path: Path):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus, model={"hidden": 5}), run, stop_at(1)))
    shutil.copytree(two_checkpoints / "run/checkpoints/step-00000011", run / "checkpoints/step-00000011")
    with pytest.raises(RunError, match=r"step-00000011: holds another model: parameter embedding.weight is \(12, 6\)"):
        tpdist.resume(run)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (4, ["step-00000012", "step-00000016", "step-00000018-epoch"]),
        (3, ["step-00000012", "step-00000015", "step-00000018-epoch"]),  # the last update's two are one
    ],
)
def test_keep_last(every: int, kept: list[str], keep: int, small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"checkpoint_every": every, "keep_last": keep}), run)
    assert names(run) == kept[-keep:]


def test_a_lower_learning_rate_can_be_given(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(11)))
    tpdist.resume(run, ["optimizer.lr=0.001"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["lr"] == 0.001


@pytest.mark.parametrize("fails", ["save_tensors", "dump_json", "file_row", "write_manifest"])
def test_a_failed_write_leaves_nothing_behind(fails: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(2)))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(writer, fails, fail)
    with pytest.raises(MemoryError):
        save(run / "checkpoints/step-00000003", torch.zeros(2))
    assert os.listdir(run / "checkpoints") == ["step-00000002"]


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch):
    (tmp_path / "f.json").write_text("old")

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.write_json(tmp_path / "f.json", {"a": 1})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f.json", "old")]


def test_a_name_that_exists_is_kept_if_whole_and_written_again_if_not(tmp_path: Path):
    path = tmp_path / "step-00000001"
    save(path, torch.zeros(2))
    stamp = (path / "state.json").stat().st_mtime_ns
    save(path, torch.zeros(2))
    assert (path / "state.json").stat().st_mtime_ns == stamp
    tear(path / "tensors.safetensors")
    save(path, torch.ones(2))
    assert load_checkpoint(Directory(tmp_path), print).tensors["a"].tolist() == [1, 1]
