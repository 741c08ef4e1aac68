"""Checkpoints in a directory of their own, and in object stores: the same files, the same promises."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import Listener, figures, interrupted, rows, small, stop_at

import tpdist
from tpdist import ConfigError, RunError
from tpdist.cli import main
from tpdist.config import to_yaml
from tpdist.training.checkpoints import load_checkpoint
from tpdist.training.depot import Depot
from tpdist.training.depots import Directory, depot_for
from tpdist.training.object_store import ObjectStore
from tpdist.training.run_dir import RunDirectory

FILES = {"manifest.json", "state.json", "states-0-0.safetensors", "tensors.safetensors"}


def depot(to: str, run: Path) -> Depot:
    return depot_for(RunDirectory.open(run).load_config(), RunDirectory(run))


def test_a_run_is_resumed_from_there(to: str, small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus), tmp_path / "whole")
    config = small(small_corpus, run={"checkpoint_to": to, "checkpoint_every": 4})
    interrupted(lambda: tpdist.train(config, run, stop_at(11)))
    kept = depot(to, run)
    assert not list((run / "checkpoints").iterdir())
    assert kept.where == f"{to}/run"
    assert kept.names() == ["step-00000009-epoch", "step-00000011"]
    (tmp_path / "scratch").mkdir()
    assert {path.name for path in kept.fetch("step-00000011", tmp_path / "scratch").iterdir()} == FILES
    tpdist.resume(run)
    assert kept.names() == ["step-00000016", "step-00000018-epoch"]
    assert rows(tmp_path / "whole") == rows(run)
    assert figures(tmp_path / "whole") == figures(run)


def test_a_damaged_one_is_set_aside(to: str, small_corpus: Path, tmp_path: Path):
    run, listener = tmp_path / "run", Listener()
    interrupted(lambda: tpdist.train(small(small_corpus, run={"checkpoint_to": to}), run, stop_at(11)))
    kept = depot(to, run)
    if isinstance(kept, Directory):
        (kept.path / "step-00000011/state.json").write_text("{}")
    else:
        assert isinstance(kept, ObjectStore)
        with kept._filesystem.open_output_stream(f"{kept._base}/step-00000011/state.json") as stream:
            stream.write(b"{}")
    interrupted(lambda: tpdist.resume(run, reporter=Listener({10: listener.close, **stop_at(10)._at})))
    assert kept.names() == ["step-00000009-epoch", "step-00000010"]
    said: list[str] = []
    kept.remove("step-00000010")
    assert load_checkpoint(kept, said.append).name == "step-00000009-epoch"
    assert said == []


def test_what_was_never_finished_is_no_checkpoint(to: str, small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    interrupted(lambda: tpdist.train(small(small_corpus, run={"checkpoint_to": to}), run, stop_at(11)))
    kept = depot(to, run)
    kept.begin("step-00000012", 7)
    (kept.stage("step-00000012", 7) / "states-0-0.safetensors").write_bytes(b"torn")
    kept.publish("step-00000012", 7, "states-0-0.safetensors")
    assert kept.read("step-00000012", 7, "states-0-0.safetensors") == b"torn"
    assert kept.read("step-00000012", 7, "state.json") is None
    assert kept.names()[-1] == "step-00000011"
    kept.clear_leftovers()
    assert kept.read("step-00000012", 7, "states-0-0.safetensors") is None
    tpdist.resume(run)


def test_another_run_of_this_name_is_not_overwritten(to: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, run={"checkpoint_to": to, "epochs": 1})
    tpdist.train(config, tmp_path / "run")
    with pytest.raises(RunError, match="elsewhere/run: holds checkpoints already; give --run-dir a new name"):
        tpdist.train(config, tmp_path / "other/run")
    assert not (tmp_path / "other/run").exists()
    assert depot(to, tmp_path / "run").names() == ["step-00000009-epoch"]


def test_a_run_goes_on_from_no_other_runs_checkpoints(to: str, small_corpus: Path, tmp_path: Path):
    tpdist.train(small(small_corpus, run={"checkpoint_to": to, "epochs": 1}), tmp_path / "run")
    tpdist.train(small(small_corpus, run={"seed": 1, "epochs": 1}), tmp_path / "other/run")
    with pytest.raises(RunError, match=r"run: is the place of another run .*; leave run\.checkpoint_to as it was"):
        tpdist.resume(tmp_path / "other/run", [f"run.checkpoint_to={to}", "run.epochs=2"])


def test_two_runs_of_one_name_that_begin_side_by_side(to: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, run={"checkpoint_to": to, "epochs": 1})

    def begin_another() -> None:
        with pytest.raises(RunError, match="elsewhere/run: is the place of another run of this name"):
            tpdist.train(config, tmp_path / "other/run")

    tpdist.train(config, tmp_path / "run", Listener({4: begin_another, 5: begin_another}))
    assert depot(to, tmp_path / "run").names() == ["step-00000009-epoch"]


def test_a_run_that_never_took_a_step_leaves_its_place(to: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, run={"checkpoint_to": to, "epochs": 1}, model={"init_from": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="init_from"):
        tpdist.train(config, tmp_path / "run")
    tpdist.train(small(small_corpus, run={"checkpoint_to": to, "epochs": 1}), tmp_path / "run")


def test_a_place_of_a_run_that_was_made_before_places_were_claimed(to: str, small_corpus: Path, tmp_path: Path):
    """A newcomer is refused and leaves no claim; nor does a run leave one where it finds nothing to go on from."""
    config = small(small_corpus, run={"checkpoint_to": to, "epochs": 1})
    tpdist.train(config, tmp_path / "run")
    depot(to, tmp_path / "run").release()
    with pytest.raises(RunError, match="holds checkpoints already"):
        tpdist.train(config, tmp_path / "other/run")
    assert tpdist.resume(tmp_path / "run", ["run.epochs=2"]).epochs == 2
    with pytest.raises(RunError, match=r"no checkpoint to resume from .*; if run\.checkpoint_to or .* change it back$"):
        tpdist.resume(tmp_path / "run", [f"run.checkpoint_to={to}2"])
    tpdist.train(small(small_corpus, run={"checkpoint_to": f"{to}2", "epochs": 1}), tmp_path / "third/run")


def test_a_link_to_a_run_is_that_run(to: str, small_corpus: Path, tmp_path: Path):
    tpdist.train(small(small_corpus, run={"checkpoint_to": to, "epochs": 1}), tmp_path / "run")
    (tmp_path / "latest").symlink_to("run")
    assert tpdist.resume(tmp_path / "latest", ["run.epochs=2"]).epochs == 2


def test_what_cannot_be_pruned_costs_no_new_checkpoint(to: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    config = small(small_corpus, run={"checkpoint_to": to, "keep_last": 1})
    for kind in (Directory, ObjectStore):

        def refuse(self: Depot, name: str, remove: Callable[[Depot, str], None] = kind.remove) -> None:
            if name == "step-00000009-epoch" and name in self.names():
                raise RunError("the store throttles")
            remove(self, name)

        monkeypatch.setattr(kind, "remove", refuse)
    tpdist.train(config, tmp_path / "run")
    assert depot(to, tmp_path / "run").names() == ["step-00000009-epoch", "step-00000018-epoch"]


def test_a_relative_directory_is_that_of_the_first_command(small_corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interrupted(lambda: tpdist.train(small(small_corpus, run={"checkpoint_to": "kept"}), tmp_path / "run", stop_at(2)))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    tpdist.resume(tmp_path / "run")
    assert (tmp_path / "kept/run/step-00000018-epoch").is_dir()


def test_a_place_that_cannot_be_opened(small_corpus: Path, tmp_path: Path, capsys):
    with pytest.raises(ConfigError, match=r"run\.checkpoint_to: nosuch://x/run: cannot be opened"):
        tpdist.train(small(small_corpus, run={"checkpoint_to": "nosuch://x"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_store_that_refuses_is_said_in_one_line(small_corpus: Path, tmp_path: Path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation\nand more")

    (tmp_path / "c.yaml").write_text(to_yaml(small(small_corpus, run={"checkpoint_to": f"file://{tmp_path}/kept"})))
    monkeypatch.setattr("tpdist.training.object_store.copy_files", refuse)
    assert main(["train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"tpdist: run.checkpoint_to: file://{tmp_path}/kept/run: AWS Error ACCESS_DENIED during PutObject operation"
    )
