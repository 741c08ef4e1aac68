"""A sweep under Ray: what is done stays, what was interrupted goes on, what fails is a row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

import tpdist
from tpdist.cli import main
from tpdist.data import open_or_prepare
from tpdist.errors import ConfigError, DataError, NonFiniteError, RunError
from tpdist.experiments import precheck
from tpdist.experiments import sweep as module
from tpdist.experiments.points import Point, expand
from tpdist.experiments.sweep import sweep
from tpdist.experiments.sweep_dir import Known, SweepDirectory, choose, waiting
from tpdist.experiments.table import draw, summary
from tpdist.launch import tasks
from tpdist.training.evaluation import Evaluation
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory

TEXT = """
data: {recipe: synthetic, store: STORE, synthetic: {types: 12, states: 4, branching: 2, tokens: 200}}
model: {hidden: 6}
objective: {block: 4}
batching: {streams: 2, blocks: 3}
run: {epochs: 2, device: cpu}
sweep:
  seeds: [0, 1]
  tuning_seeds: 1
  grid: {optimizer.lr: [0.001, 0.05]}
  arms:
    bptt: {set: {method.name: bptt}}
    broken: {set: {method.name: bptt, optimizer.options: {no_such: 1.0}}}
"""


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT.replace("STORE", str(tmp_path / "store")))
    return path


@pytest.fixture(autouse=True)
def _quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_where_a_sweep_goes(file: Path):
    """Two files without a name do not share a directory."""
    assert module.dry_run(file, [], None)[-2].startswith("runs/a-sweep: ")
    assert module.dry_run(file, ["run.name=mine"], None)[-2].startswith("runs/mine-sweep: ")
    assert module.dry_run(file, [], "out")[-2].startswith("out: ")


def test_what_no_arm_reads_is_said_once_before_anything_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    heard, note = Heard(), "note: --set: method.sweeps changes nothing with method.name: bptt; read by costate"
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    sweep(file, ["method.sweeps=3"], tmp_path / "out", None, heard)
    assert [line for line in heard.said if line.startswith("note: ")] == [note] == heard.said[:1]
    lines = module.dry_run(file, ["method.sweeps=3"], tmp_path / "new")
    assert [line for line in lines if line.startswith("note: ")] == [note] == lines[:1]


def test_a_dry_run_knows_which_seeds_follow(file: Path, tmp_path: Path):
    home, points = SweepDirectory(tmp_path / "out"), [point for point in expand(file) if point.arm == "bptt"]
    for point, perplexity in zip(points, (7.0, None, 8.0), strict=False):
        if perplexity:
            _done(home, point, perplexity)
    ended = f"{home.path}: 1 points to run, 2 done, 0 failed"
    lines = module.dry_run(file, [], home.path, ["bptt"])
    assert (lines[0], lines[-1]) == ("bptt  lr=0.001  seed 1", ended)


def test_a_sweep_is_gone_on_with(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, heard = SweepDirectory(tmp_path / "out"), Heard()
    points = {(p.arm, p.config.optimizer.lr, p.seed): p for p in expand(file)}
    # one that was cut off before its result was written, and one before its first checkpoint
    cut, begun = points["bptt", 0.001, 0], points["bptt", 0.05, 0]
    whole = tpdist.train(cut.config, home.run(cut))
    (home.run(cut) / "result.json").unlink()
    home.run(begun).mkdir(parents=True)
    (home.run(begun) / "config.yaml").write_text("half")

    rows = sweep(file, [], home.path, None, heard)
    by_point = {row["point"]: row for row in rows}
    assert by_point[cut.name]["valid_perplexity"] == whole.valid_perplexity
    assert by_point[cut.name]["steps"] == whole.steps
    assert by_point[begun.name]["state"] == "done"
    assert by_point[begun.name]["tokens"] == 2 * 199
    # the other seed runs the best setting alone; an arm whose every setting fails has none
    assert [(row["arm"], row["set.optimizer.lr"], row["seed"]) for row in rows] == [
        ("bptt", 0.001, 0), ("bptt", 0.05, 0), ("bptt", 0.05, 1), ("broken", 0.001, 0), ("broken", 0.05, 0),
    ]  # fmt: skip
    assert {row["torch"] for row in rows if row["state"] == "done"} == {torch.__version__}
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["arm"] for row in failed] == ["broken", "broken"]
    assert "takes no 'no_such'" in failed[0]["error"]
    assert pq.read_table(home.path / "results.parquet").to_pylist() == rows
    assert len([line for line in heard.said if "seed" in line]) >= 5

    def nothing_runs(next_tasks: Callable[[], list], *_: object) -> None:
        assert next_tasks() == []

    monkeypatch.setattr(module, "run_tasks", nothing_runs)
    assert sweep(file, [], home.path, None, Silent()) == rows
    told = Heard()
    tested = sweep(file, [], home.path, None, told, test=True)
    assert any(line.startswith("bptt: ") and "test perplexity" in line for line in told.said)
    assert told.said[-1] == f"every point is a row of {home.path / 'results.parquet'}"
    chosen = [row["point"] for row in tested if row["test_perplexity"] is not None]
    assert chosen == [points["bptt", 0.05, 0].name, points["bptt", 0.05, 1].name]
    again: list[str] = []
    monkeypatch.setattr(module, "run_tasks", lambda tasks, *_: again.extend(task.run.name for task in tasks()))
    sweep(file, [], home.path, None, Silent(), retry=True)
    assert again == [row["point"] for row in failed]


@pytest.mark.slow  # Ray takes its time to see it
@pytest.mark.timeout(120)
def test_points_that_ray_takes_with_it_have_not_failed(file: Path, tmp_path: Path):
    """Somebody's `ray stop --force`, a machine that runs out of memory: the same command goes on."""
    home = tmp_path / "out"
    changes = ["run.epochs=100000", "sweep.arms={bptt: {set: {method.name: bptt}}}"]
    command = [sys.executable, "-m", "tpdist", "sweep", str(file), "--dir", str(home), "--set", *changes]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweeping:
        while not any(home.glob("points/*/checkpoints/*")):
            assert sweeping.poll() is None
            time.sleep(0.1)
        os.kill(_child(sweeping.pid, "raylet"), signal.SIGKILL)
        _, said = sweeping.communicate()
    assert sweeping.returncode == 2
    assert said == "tpdist: Ray has ended; the same command goes on from what is saved\n"
    assert module.dry_run(file, changes, home)[-2] == f"{home}: 2 points to run, 0 done, 0 failed"


def _child(pid: int, name: str) -> int:
    """The process of that name that `pid` has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            own, _, rest = stat.read_text().partition(" (")
            comm, _, rest = rest.rpartition(") ")
            if comm == name and int(rest.split()[1]) == pid:
                return int(own)
    raise AssertionError(f"{pid} has no {name}")


def _done(home: SweepDirectory, point, perplexity: float) -> None:
    home.run(point).mkdir(parents=True)
    result = {"valid_perplexity": perplexity, "best_epoch": 1, "tokens_per_second": 10.0, "seconds": 2.0}
    (home.run(point) / "result.json").write_text(json.dumps(result))


def known(points: list[Point], *perplexities: float | None) -> list[Known]:
    """Of the first points what they have reached; those without a figure, and all others, wait."""
    figures = [*perplexities, *[None] * len(points)]
    states = ["waiting" if figure is None else "done" for figure in figures]
    rows = [{"state": state, "valid_perplexity": figure} for state, figure in zip(states, figures, strict=True)]
    return list(zip(points, rows, strict=False))


@pytest.mark.parametrize("text", ["{", "[1]", '{"steps": 3}'])
def test_a_point_whose_result_is_damaged_is_not_done(text: str, file: Path, tmp_path: Path):
    """Its run goes on from its last checkpoint, which writes the result anew."""
    home, point = SweepDirectory(tmp_path / "out"), expand(file)[0]
    _done(home, point, 7.0)
    home.failure(point).parent.mkdir()
    home.failure(point).write_text('{"error": "of an earlier attempt"}')
    row = home.row(point)
    assert (row["state"], row["error"], row["tokens"]) == ("done", None, 20)
    home.failure(point).unlink()
    (home.run(point) / "result.json").write_text(text)
    assert home.row(point)["state"] == "waiting"


def test_the_choice_is_the_lowest_mean_over_the_seeds(file: Path):
    points = expand(file)  # those of bptt first
    all_four = known(points, 9.0, 5.0, 6.0, 7.0)  # lr 0.001: 7; lr 0.05: 6.5; a setting that has not been run is out
    assert choose(all_four[:4], (0, 1)) == {points[2].setting}
    assert choose(all_four[:4], (1,)) == {points[0].setting}
    assert choose(all_four, (0, 1)) == {points[2].setting}
    assert choose(known(points, 9.0, 5.0, 6.0)[:4], (0, 1)) == {points[0].setting}  # nor one of which a seed is missing
    three = expand(file, ["sweep.seeds=[0, 1, 2]"])
    assert choose(known(three, 9.0, 1.0, 1.0, 3.0, 3.0, 3.0)[:6], (0, 1, 2)) == {three[3].setting}


def test_the_test_split_waits_for_the_choice(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where time is up, a setting that has not been tried may be better than the best so far."""
    home, asked = SweepDirectory(tmp_path / "out"), []
    points = [p for p in expand(file) if p.arm == "bptt"]
    _done(home, points[0], 9.0)

    def evaluate(run: Path, split: str, overrides: list[str]) -> Evaluation:
        assert split == "test"
        asked.append(run)
        return Evaluation(2.0, 10)

    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    monkeypatch.setattr(module, "evaluate", evaluate)
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert not asked
    assert [(row["seed"], row["chosen"]) for row in rows] == [(0, True), (1, True), (0, False)]
    _done(home, points[2], 8.0)
    heard = Heard()
    sweep(file, [], home.path, None, heard, test=True, arms=["bptt"], limit_s=0.0)
    assert not asked  # nor is it begun once time is up
    assert "time is up before the test split; the same command goes on" in heard.said
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert asked == [home.run(points[2])]
    assert [row["chosen"] for row in rows if row["state"] == "done"] == [False, True]


def test_an_arm_that_has_chosen_does_not_wait_for_the_others(file: Path):
    points = expand(file)
    by_arm = {arm: [p for p in points if p.arm == arm] for arm in ("bptt", "broken")}
    assert points == [*by_arm["bptt"], *by_arm["broken"]]
    assert waiting(known(points), [0]) == [p for p in points if p.seed == 0]
    # its other setting may be better
    assert waiting(known(points, 9.0), [0]) == [p for p in points if p.seed == 0][1:]
    untried = [p for p in by_arm["broken"] if p.seed == 0]
    assert waiting(known(points, 9.0, None, 8.0), [0]) == [*untried, by_arm["bptt"][3]]


def test_a_corpus_is_read_once_for_all_settings(file: Path, monkeypatch: pytest.MonkeyPatch):
    points, opened = expand(file), []
    open_or_prepare(points[0].config.data)
    monkeypatch.setattr(precheck, "open_or_prepare", lambda data: opened.append(data) or open_or_prepare(data))
    assert len(precheck.faults(points, here=False)) == 2
    assert len(opened) == 1


def test_a_corpus_that_is_not_there_is_said_before_any_point_begins(file: Path, tmp_path: Path):
    home, changes = tmp_path / "out", ["data.recipe=ptb", f"data.store={tmp_path / 'none'}"]
    for go in (lambda: sweep(file, changes, home, None, Silent()), lambda: module.dry_run(file, changes, home)):
        with pytest.raises(DataError, match=r"none: no such store; run `tpdist data prepare ptb"):
            go()
    assert not (home / "failed").exists()
    changes = [f"data.store={tmp_path / 'new'}"]
    assert any("would be prepared first" in line for line in module.dry_run(file, changes, home))
    assert not (tmp_path / "new").exists()


def test_a_finished_sweep_asks_for_no_corpus(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = SweepDirectory(tmp_path / "out")
    points = [point for point in expand(file) if point.arm == "bptt"]
    for point in points:
        if point.seed == 0 or point.config.optimizer.lr == 0.05:  # the best, by its figure
            _done(home, point, 7.0 if point.config.optimizer.lr == 0.05 else 8.0)
    changes = ["data.recipe=ptb", f"data.store={tmp_path / 'none'}"]
    moved = {point.name: new for point, new in zip(points, expand(file, changes, ["bptt"]), strict=True)}
    for point in points:
        if home.run(point).is_dir():
            home.run(point).rename(home.path / "points" / moved[point.name].name)
    rows = sweep(file, changes, home.path, None, Silent(), arms=["bptt"])
    assert [row["state"] for row in rows] == ["done"] * 3
    assert module.dry_run(file, changes, home.path, ["bptt"]) == [f"{home.path}: 0 points to run, 3 done, 0 failed"]


def test_a_blow_up_on_the_test_split_is_kept_and_stops_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, asked = SweepDirectory(tmp_path / "out"), []
    for point in expand(file):
        if point.arm == "bptt":
            _done(home, point, 7.0)

    def blows_up(run: Path, split: str, overrides: list[str]) -> Evaluation:
        asked.append(run)
        raise NonFiniteError("the test perplexity is inf")

    monkeypatch.setattr(module, "evaluate", blows_up)
    for _ in range(2):
        rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
        assert [row["test_perplexity"] for row in rows] == [None] * len(rows)
    assert len(asked) == len(set(asked))


def test_a_sweep_of_failures_alone_has_failed(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = SweepDirectory(tmp_path / "out")
    points = [point for point in expand(file) if point.seed == 0]
    home.path.mkdir()
    (home.path / "failed").mkdir()
    for point in points:
        home.failure(point).write_text('{"error": "too few tokens"}')
    assert main(["sweep", str(file), "--dir", str(home.path), "--quiet"]) == 1
    why = f"all {len(points)} points failed; --retry runs them again: too few tokens"
    assert capsys.readouterr().err == f"tpdist: {home.path}: {why}\n"
    assert module.dry_run(file, [], home.path)[-1].endswith(f"{len(points)} failed; --retry runs them again")
    assert module.dry_run(file, [], home.path, retry=True)[-2].endswith(
        f"{len(points)} points to run, 0 done, 0 failed"
    )


def test_a_directory_that_cannot_be_made_is_said(file: Path, tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match=r"^/.*taken: is no directory; move it away"):
        sweep(file, [], tmp_path / "taken", None, Silent())
    with pytest.raises(RunError, match=r"bad\\udcff: holds bytes that are not UTF-8; give --dir another name$"):
        sweep(file, [], tmp_path / "bad\udcff", None, Silent())


def test_two_sweeps_do_not_share_a_directory(file: Path, tmp_path: Path):
    home = SweepDirectory(tmp_path / "out")
    with home.held(), pytest.raises(RunError, match=r"out: another sweep is at work in it; wait for its end"):
        sweep(file, [], home.path, None, Silent())


def test_another_sweep_does_not_take_the_directory(file: Path, tmp_path: Path):
    home = SweepDirectory(tmp_path / "out")
    home.path.mkdir()
    home.write([home.row(point) for point in expand(file)])
    before = (home.path / "results.parquet").read_bytes()
    for go in (
        lambda: sweep(file, ["model.hidden=5"], home.path, None, Silent()),
        lambda: module.dry_run(file, ["model.hidden=5"], home.path),
    ):
        with pytest.raises(RunError, match="out: holds another sweep, 8 points of other settings; move it away"):
            go()
    assert (home.path / "results.parquet").read_bytes() == before
    module.dry_run(file, ["sweep.grid={optimizer.lr: [0.001, 0.7]}"], home.path)  # it may grow and shrink


def test_a_point_waits_for_the_process_that_holds_its_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where Ray has lost sight of a task, it runs it again beside the first, whose run must not be removed."""
    point = next(point for point in expand(file) if point.arm == "bptt")
    run = RunDirectory.create(point.config, tmp_path / "run")
    monkeypatch.setattr(tasks, "LOCK_PATIENCE_S", 0.3)
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)  # it would start a Ray of this process's
    with run.held():
        assert "another process trains in it" in (tasks._run(point.config, str(run.path), 1) or "")
    assert run.config_file.is_file()
    assert tasks._run(point.config, str(run.path), 1) is None
    assert run.result_file.is_file()


def test_what_the_other_process_has_saved_meanwhile_stays(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first process trains to its end while the second waits for the run."""
    point = next(point for point in expand(file) if point.arm == "bptt")
    run, held = RunDirectory(tmp_path / "run"), RunDirectory.held
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    run.path.mkdir()
    waits = [True]

    @contextmanager
    def after_the_other(self: RunDirectory, patience_s: float = 0.0) -> Iterator[None]:
        if waits:
            waits.clear()
            self.path.rmdir()
            tpdist.train(point.config, self.path)
        with held(self, patience_s):
            yield

    monkeypatch.setattr(RunDirectory, "held", after_the_other)
    forgotten: list[RunDirectory] = []
    monkeypatch.setattr(tasks, "forget", lambda _, run: forgotten.append(run))
    assert tasks._run(point.config, str(run.path), 1) is None
    assert forgotten == []
    assert json.loads(run.result_file.read_text())["epochs"] == 2


def test_points_of_another_corpus_are_no_peers(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    home = SweepDirectory(tmp_path / "out")
    for point in (point for point in expand(file) if point.arm == "bptt"):
        assert tasks._run(point.config, str(home.run(point)), 1) is None
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    assert len(sweep(file, [], home.path, None, Silent(), arms=["bptt"])) == 4
    shutil.rmtree(tmp_path / "store")
    assert len(sweep(file, [], home.path, None, Silent(), arms=["bptt"])) == 4  # it is not asked for
    open_or_prepare(expand(file)[0].config.data)
    about = home.run(expand(file)[0]) / "models" / "best.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"corpus": "0" * 64}))  # of the text as it was then
    for go in (lambda: sweep(file, [], home.path, None, Silent()), lambda: module.dry_run(file, [], home.path)):
        with pytest.raises(RunError, match=r"was trained on another corpus than .*store holds now, .*out away$"):
            go()


def test_a_point_begun_on_a_gpu_goes_on_without(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    point = next(point for point in expand(file) if point.arm == "bptt")
    short = point.config.model_copy(update={"run": point.config.run.model_copy(update={"epochs": 1})})
    run = RunDirectory(tmp_path / "run")
    assert tasks._run(short, str(run.path), 1) is None
    run.result_file.unlink()
    begun = yaml.safe_load(run.config_file.read_text())
    begun["run"] |= {"epochs": 2, "device": "cuda", "cuda_graph": True}
    begun["cluster"] = {"gpus_per_worker": 0.25}
    run.config_file.write_text(yaml.safe_dump(begun))
    assert tasks._run(point.config, str(run.path), 1) is None
    result = json.loads(run.result_file.read_text())
    assert (result["epochs"], result["device"]) == (2, "cpu")


def test_a_point_made_on_a_gpu_is_tested_without(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    home = SweepDirectory(tmp_path / "out")
    for point in (point for point in expand(file) if point.arm == "bptt"):
        assert tasks._run(point.config, str(home.run(point)), 1) is None
        written = home.run(point) / "config.yaml"
        written.write_text(written.read_text().replace("device: cpu", "device: cuda"))
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert [row["test_perplexity"] is not None for row in rows if row["chosen"]] == [True, True]


def test_what_will_fail_is_seen_beforehand(file: Path, tmp_path: Path):
    lines = module.dry_run(file, [], tmp_path / "out")
    assert [line.split()[0] for line in lines[:4]] == ["bptt", "bptt", "broken", "broken"]
    assert ["would fail: " in line and ": optimizer.options" in line for line in lines[:4]] == [
        False,
        False,
        True,
        True,
    ]
    too_long = ["batching.blocks=500"]
    assert not any("would fail: batching" in line for line in module.dry_run(file, too_long, tmp_path / "out"))
    open_or_prepare(expand(file)[0].config.data)
    lines = module.dry_run(file, too_long, tmp_path / "out")
    assert "would fail: --set: batching.blocks: a window of 500 blocks is longer than a stream" in lines[0]
    with pytest.raises(ConfigError, match=r"^--set: batching\.blocks: a window of 500 blocks"):  # no setting could run
        sweep(file, [*too_long, "sweep.arms={bptt: {set: {method.name: bptt}}}"], tmp_path / "out", None, Silent())
    assert not (tmp_path / "out" / "failed").exists()
    if not torch.cuda.is_available():
        lines = module.dry_run(file, ["run.device=cuda"], tmp_path / "out")
        assert all("would fail: --set: run.device: torch sees no CUDA device" in line for line in lines[:4])
        lines = module.dry_run(file, ["run.device=cuda"], tmp_path / "out", address="10.0.0.1:6379")
        assert "would fail" not in lines[0]


def test_an_arm_without_a_figure_says_why():
    rows = [{"arm": arm, "state": state, "error": error} for arm, state, error in (
        ("early", "waiting", None), ("bad", "failed", "too few tokens"), ("bad", "waiting", None)
    )]  # fmt: skip
    assert summary(rows) == [
        "early: none is done; 1 point is waiting",
        "bad: none is done; 1 of 2 points failed, --retry runs them again: too few tokens",
    ]


def test_the_test_figure_is_that_of_the_best_setting():
    """Another may have been evaluated while it was the best."""
    figures = ((0.001, 7.0, 70.0), (0.05, 6.0, 60.0))
    rows = [
        {"arm": "a", "seed": 0, "state": "done", "error": None, "set.lr": lr, "valid_perplexity": valid,
         "test_perplexity": test} for lr, valid, test in figures
    ]  # fmt: skip
    assert summary(rows) == [
        "a: 2 settings tried, best lr=0.05: validation perplexity 6.00 over 1 seed, test perplexity 60.00 over 1"
    ]


def test_a_summary_counts_settings_and_spreads_over_seeds():
    values = [(0.1, 0, 6.0), (0.1, 1, 8.0), (0.2, 0, None)]
    rows = [
        {"arm": "a", "seed": seed, "state": "done" if valid else "waiting", "error": None, "set.lr": lr,
         "valid_perplexity": valid, "test_perplexity": None} for lr, seed, valid in values
    ]  # fmt: skip
    assert summary(rows) == [
        "a: 1 of 2 settings tried, best lr=0.1: validation perplexity 7.00 (standard deviation 1.41) over 2 seeds"
    ]


def test_the_table_shows_what_runs_first_and_no_test_figure(file: Path, tmp_path: Path):
    home = SweepDirectory(tmp_path / "out")
    points = [p for p in expand(file) if p.arm == "bptt"]
    _done(home, points[0], 9.25)
    home.run(points[1]).mkdir(parents=True)
    epoch = {"kind": "epoch", "epoch": 1, "step": 40, "valid_perplexity": 8.5}
    (home.run(points[1]) / "metrics.jsonl").write_text(json.dumps(epoch) + '\n{"kind": "step", "step": 50}\n')
    console = Console(width=100, record=True)
    console.print(draw([home.row(p) for p in points], [home.run(p) for p in points]))
    lines = [line.split() for line in console.export_text().splitlines() if "lr=" in line]
    states = [next(word for word in line if word in ("running", "done", "waiting")) for line in lines]
    assert states == ["running", "done", "waiting", "waiting"]
    assert "8.50" in lines[0]
    assert "9.25" in lines[1]


def test_a_dry_run_sees_that_there_are_too_few_gpus(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    lines = module.dry_run(file, ["cluster.gpus_per_worker=0.25"], tmp_path / "out")
    why = "would fail: --set: cluster.gpus_per_worker: this machine has 0 GPUs, where a worker with 0.25 does not fit"
    assert [why in line for line in lines if "seed 0" in line] == [True] * 4
