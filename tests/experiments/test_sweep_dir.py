"""What a sweep's directory knows of its points, what is chosen by it, and whose it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpdist.data import open_or_prepare
from tpdist.errors import RunError
from tpdist.experiments import sweep as module
from tpdist.experiments.points import Point, expand
from tpdist.experiments.sweep import dry_run, sweep
from tpdist.experiments.sweep_dir import Known, SweepDirectory, choose, waiting
from tpdist.launch import tasks
from tpdist.training.progress import Silent


def known(points: list[Point], *perplexities: float | None) -> list[Known]:
    """Of the first points what they have reached; those without a figure, and all others, wait."""
    figures = [*perplexities, *[None] * len(points)]
    states = ["waiting" if figure is None else "done" for figure in figures]
    rows = [{"state": state, "valid_perplexity": figure} for state, figure in zip(states, figures, strict=True)]
    return list(zip(points, rows, strict=False))


@pytest.mark.parametrize("text", ["{", "[1]", '{"steps": 3}'])
def test_a_point_whose_result_is_damaged_is_not_done(text: str, file: Path, home: SweepDirectory, done: Callable):
    """Its run goes on from its last checkpoint, which writes the result anew."""
    point = expand(file)[0]
    done(point, 7.0)
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


def test_an_arm_that_has_chosen_does_not_wait_for_the_others(file: Path):
    points = expand(file)
    by_arm = {arm: [p for p in points if p.arm == arm] for arm in ("bptt", "broken")}
    assert points == [*by_arm["bptt"], *by_arm["broken"]]
    assert waiting(known(points), [0]) == [p for p in points if p.seed == 0]
    # its other setting may be better
    assert waiting(known(points, 9.0), [0]) == [p for p in points if p.seed == 0][1:]
    untried = [p for p in by_arm["broken"] if p.seed == 0]
    assert waiting(known(points, 9.0, None, 8.0), [0]) == [*untried, by_arm["bptt"][3]]


def test_a_directory_that_cannot_be_made_is_said(file: Path, tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match=r"^/.*taken: is no directory; move it away"):
        sweep(file, [], tmp_path / "taken", None, Silent())
    with pytest.raises(RunError, match=r"bad\\udcff: holds bytes that are not UTF-8; give --dir another name$"):
        sweep(file, [], tmp_path / "bad\udcff", None, Silent())


def test_the_table_has_a_column_for_every_key_that_some_arm_tries(home: SweepDirectory):
    home.path.mkdir()
    home.write([
        {"point": "a", "set.model.hidden": 5},
        {"point": "b", "set.optimizer.lr": 1, "set.optimizer.options.foreach": True},
        {"point": "c", "set.optimizer.lr": 0.5, "set.optimizer.options.foreach": 2},
    ])  # fmt: skip
    assert pq.read_table(home.path / "results.parquet").to_pydict() == {
        "point": ["a", "b", "c"],
        "set.model.hidden": [5, None, None],
        "set.optimizer.lr": [None, 1.0, 0.5],
        "set.optimizer.options.foreach": [None, "true", "2"],
    }


def test_two_sweeps_do_not_share_a_directory(file: Path, home: SweepDirectory):
    with home.held(), pytest.raises(RunError, match=r"out: another sweep is at work in it; wait for its end"):
        sweep(file, [], home.path, None, Silent())


def test_another_sweep_does_not_take_the_directory(file: Path, home: SweepDirectory):
    home.path.mkdir()
    home.write([home.row(point) for point in expand(file)])
    before = (home.path / "results.parquet").read_bytes()
    for go in (
        lambda: sweep(file, ["model.hidden=5"], home.path, None, Silent()),
        lambda: dry_run(file, ["model.hidden=5"], home.path),
    ):
        with pytest.raises(RunError, match="out: holds another sweep, 8 points of other settings; move it away"):
            go()
    assert (home.path / "results.parquet").read_bytes() == before
    dry_run(file, ["sweep.grid={optimizer.lr: [0.001, 0.7]}"], home.path)  # it may grow and shrink


def test_a_table_of_somebody_elses_is_not_written_over(file: Path, home: SweepDirectory):
    home.path.mkdir()
    pq.write_table(pa.table({"mine": [1]}), home.path / "results.parquet")
    with pytest.raises(RunError, match=r"results\.parquet: is no table of a sweep; move it away, or give"):
        home.refuse_another(expand(file))


def test_a_torn_table_is_made_anew(file: Path, home: SweepDirectory):
    home.path.mkdir()
    (home.path / "results.parquet").write_bytes(b"PAR1, and no more")
    home.refuse_another(expand(file))


def test_points_of_another_corpus_are_no_peers(
    file: Path, tmp_path: Path, home: SweepDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    for point in (point for point in expand(file) if point.arm == "bptt"):
        assert tasks._run(point.config, str(home.run(point)), 1) is None
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    assert len(sweep(file, [], home.path, None, Silent(), arms=["bptt"])) == 4
    shutil.rmtree(tmp_path / "store")
    assert len(sweep(file, [], home.path, None, Silent(), arms=["bptt"])) == 4  # it is not asked for
    open_or_prepare(expand(file)[0].config.data)
    about = home.run(expand(file)[0]) / "models" / "best.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"corpus": "0" * 64}))  # of the text as it was then
    for go in (lambda: sweep(file, [], home.path, None, Silent()), lambda: dry_run(file, [], home.path)):
        with pytest.raises(RunError, match=r"was trained on another corpus than .*store holds now, .*out away$"):
            go()
