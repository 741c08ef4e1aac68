"""metrics.jsonl and the TensorBoard events say the same."""

import json
import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import interrupted, rows, small, stop_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tpdist
from tpdist.parallel import Traffic
from tpdist.training.figures import live_status, metrics_row, own_work
from tpdist.training.run_dir import RunDirectory
from tpdist.training.state import EpochSums, RunState
from tpdist.training.tracking import Tracker
from tpdist.training.workers_view import WorkerFigures


def events(run: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value, as TensorBoard reads them."""
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    scalars = [(tag, event) for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)]
    values = {(tag, event.step): event.value for tag, event in scalars}
    assert len(values) == len(scalars), "a number was written twice"
    return values


def as_events(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (f"{row['kind']}/{name}", row["step"]): value
        for row in lines
        for name, value in row.items()
        if name not in ("kind", "step", "epoch") and not isinstance(value, list)
    }


@pytest.mark.parametrize("stops", [(), (5,), (5, 13)])
def test_events_hold_the_numbers_of_the_rows(stops: tuple[int, ...], small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    for i, stop in enumerate(stops):
        work = (lambda s=stop: tpdist.resume(run, reporter=stop_at(s))) if i else None
        interrupted(work or (lambda s=stop: tpdist.train(small(small_corpus), run, stop_at(s))))
    tpdist.resume(run) if stops else tpdist.train(small(small_corpus), run)
    assert events(run) == pytest.approx(as_events(run), rel=1e-6)


def test_events_that_stay_open_end_no_run(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system keeps a removed file under another name while a TensorBoard reads it."""
    config = small(small_corpus)
    run = RunDirectory.create(config, tmp_path / "run")
    run.tensorboard.mkdir()
    (run.tensorboard / ".nfs0001").touch()
    monkeypatch.setattr("tpdist.training.tracking.shutil.rmtree", lambda *_, **__: None)
    Tracker(run, 0, 1, config, print).close()
    assert len(list(run.tensorboard.glob("events*"))) == 1


def test_the_content_of_the_rows(small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, objective={"weight_growth": 2.0})
    tpdist.train(config, tmp_path / "run")
    steps, epochs = rows(tmp_path / "run", "step"), rows(tmp_path / "run", "epoch")
    common = ["kind", "epoch", "step", "loss", "perplexity", "penalty", "primal", "dual", "weight"]
    assert [list(row) for row in steps] == [common] * 9
    assert [list(row) for row in epochs] == [[*common, "valid_loss", "valid_perplexity", "lr", "residuals"]] * 2
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 9), (2, 18)]
    assert [row["epoch"] for row in steps] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [row["weight"] for row in epochs] == [0.2, 0.4]
    for row in steps + epochs:
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert row["primal"] > 0
        assert row["dual"] > 0
        assert row["penalty"] > 0
    for row in epochs:  # windows of 3 blocks: two constraints
        assert len(row["residuals"]) == 2
        assert math.hypot(*row["residuals"]) == pytest.approx(row["primal"])
    assert epochs[1]["valid_perplexity"] == pytest.approx(math.exp(epochs[1]["valid_loss"]))


def test_the_figures_of_an_epoch_so_far():
    """Means over its tokens, its own speed; what is left follows from the speed of the whole run."""
    sums = EpochSums(loss=600.0, penalty=30.0, primal=16.0, dual=9.0, tokens=300, seconds=10.0)
    trainer: Any = SimpleNamespace(
        state=RunState(epoch=2, position=3, step=12, tokens=1000, seconds=48.0, sums=sums),
        seconds=20.0,
        batches=range(9),
        config=SimpleNamespace(run=SimpleNamespace(epochs=4)),
        plan=SimpleNamespace(terms=SimpleNamespace(weight=0.2)),
        workers=SimpleNamespace(count=1),
    )
    assert metrics_row(trainer, "step") == {
        "kind": "step", "epoch": 2, "step": 12, "loss": 2.0, "perplexity": math.exp(2.0), "penalty": 0.1,
        "primal": 4.0, "dual": 3.0, "weight": 0.2, "tokens_per_second": 30.0, "seconds": 48.0,
    }  # fmt: skip
    status = live_status(trainer)
    assert (status.steps, status.seconds_left) == (12 + 6 + 2 * 9, 4.0 * (6 + 2 * 9))


def test_what_a_worker_did_since_the_run_was_last_started():
    traffic = Traffic(exchange=1, carried=20, gradient=300, neighbours_s=1.0, reduction_s=2.0)
    workers = SimpleNamespace(rank=3, traffic=traffic)
    trainer: Any = SimpleNamespace(
        workers=workers, seconds=4.0, own_tokens=100, state=RunState(tokens=900, seconds=8.0)
    )
    assert own_work(trainer) == WorkerFigures(
        rank=3, host=socket.gethostname(), tokens_per_second=25.0, neighbours=0.25, reduction=0.5, sent=321
    )


def test_what_json_cannot_hold_is_null(tmp_path: Path):
    run = RunDirectory(tmp_path)
    tracker = Tracker(run, 0, 1, small("store"), print)
    tracker.write({"kind": "step", "epoch": 1, "step": 1, "loss": 800.0, "perplexity": math.inf, "primal": math.nan})
    tracker.close()
    (line,) = run.metrics_file.read_text().splitlines()
    assert '"perplexity": null, "primal": null' in line
    assert events(tmp_path) == {("step/loss", 1): 800.0}


@pytest.mark.parametrize("damage", ["{", "[]", "3", '{"kind": "step"}', "\x00", '{"kind": 1, "step": "a", "epoch": 1}'])
def test_lines_that_are_no_rows_are_dropped(damage: str, tmp_path: Path):
    run = RunDirectory(tmp_path)
    good: dict[str, Any] = {"kind": "step", "epoch": 1, "step": 1, "loss": 1.0}
    run.metrics_file.write_text(json.dumps(good) + "\n" + damage)
    tracker = Tracker(run, 5, 1, small("store"), print)
    tracker.write(good | {"step": 6})
    tracker.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 6]
    assert events(tmp_path) == {("step/loss", 1): 1.0, ("step/loss", 6): 1.0}
