"""`tpdist sweep`: run every point of a `sweep:` section, keep what each reached in one table, choose on validation.

DIR/points/<point>/       the run of a point, with its config.yaml and result.json
DIR/failed/<point>.json   what a point failed of
DIR/test/<point>.json     test perplexity of a chosen point, once somebody has asked for it
DIR/results.parquet       a row for every point; follows from the files above
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpdist import __version__
from tpdist.config import Data
from tpdist.data import default_store, is_missing, open_or_prepare
from tpdist.data import foresee as foresee_store
from tpdist.errors import NonFiniteError, RunError, TpdistError
from tpdist.experiments.points import Point, expand, expand_all, load_sweep
from tpdist.experiments.results import versions
from tpdist.experiments.table import AGAIN, Table, describe, summary
from tpdist.launch.local import check_gpus, evaluate
from tpdist.launch.tasks import Task, run_tasks
from tpdist.training.files import write_atomic, write_json
from tpdist.training.progress import Reporter

Row = dict[str, Any]
FIGURES = ("valid_perplexity", "best_epoch", "epochs", "steps", "seconds", "device", "parameters", "method")


class NothingDoneError(TpdistError):
    """Every point has failed; what each failed of is in the table."""

    exit_code = 1


@dataclass(frozen=True)
class Sweeping:
    """A sweep's directory."""

    path: Path

    def run(self, point: Point) -> Path:
        return self.path / "points" / point.name

    def failure(self, point: Point) -> Path:
        return self.path / "failed" / f"{point.name}.json"

    def test(self, point: Point) -> Path:
        return self.path / "test" / f"{point.name}.json"

    def row(self, point: Point) -> Row:
        """What is known of a point. state: waiting, done, failed. Test figures are there for chosen points alone."""
        result = _read(self.run(point) / "result.json")
        failed = _read(self.failure(point))
        row: Row = {"point": point.name, "arm": point.arm, "seed": point.seed}
        row["state"] = "done" if result else "failed" if failed else "waiting"
        row |= {f"set.{key}": value for key, value in point.tried.items()}
        row |= {name: result.get(name) for name in FIGURES}
        row["tokens"] = round(result["tokens_per_second"] * result["seconds"]) if result else None
        row["error"] = failed.get("error") if not result else None
        row["test_perplexity"] = _read(self.test(point)).get("perplexity")
        made = _read(self.run(point) / "versions.json") or {"python": None, "torch": None, "tpdist": None}
        return row | made

    def write(self, rows: Sequence[Row]) -> None:
        """results.parquet, whole or not at all. A column whose values are of several kinds holds them as JSON."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        write_atomic(self.path / "results.parquet", lambda file: pq.write_table(pa.table(columns), file))


def sweep(
    path: str | Path,
    overrides: Sequence[str],
    directory: str | Path | None,
    address: str | None,
    reporter: Reporter,
    retry: bool = False,
    test: bool = False,
    arms: Sequence[str] = (),
    limit_s: float | None = None,
) -> list[Row]:
    """Run the points that have not been run, and return all rows; the same call goes on with an interrupted sweep.

    directory: default runs/<run.name>-sweep, or after the file where no name is set. retry: run failed points again.
    test: at the end, evaluate the setting of every arm that is best on validation on the test split, where that has not
    been done and no setting waits that might be better. arms: patterns of the arms to run, whose rows are returned;
    none: all. limit_s: end after so many seconds with what is done then.

    Raises ConfigError for a point that cannot be, DataError where a corpus is not there; a point that fails while it
    runs is a row, and stops nothing. Raises NothingDoneError where all have failed.
    """
    points, section = expand(path, overrides, arms), load_sweep(path, overrides)
    everything = expand_all(path, overrides) if arms else points
    home = _home(path, points, directory)
    try:
        home.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--dir {home.path}: cannot be made: {error.strerror}") from error
    if retry:
        for point in points:
            home.failure(point).unlink(missing_ok=True)
    tuning = section.seeds[: section.tuning_seeds]
    corpora = _corpora(home, points, tuning)
    if corpora and address is None:
        check_gpus(points[0].config)
    for data in corpora:
        open_or_prepare(data)  # once, before many points want it

    def write() -> list[Row]:
        rows = wanted_rows(home, everything, tuning)
        home.write(rows)
        return rows

    _run_missing(home, points, tuning, write, Table(reporter), address, reporter, limit_s)
    if test:
        best = choose(home, points, tuning)
        open_arms = {point.arm for point in points if point.seed in tuning and home.row(point)["state"] == "waiting"}
        for point in points:
            done = home.row(point)["state"] == "done" and point.arm not in open_arms
            if done and point.setting in best and not home.test(point).exists():
                try:
                    reached: dict[str, Any] = {"perplexity": evaluate(home.run(point), "test").perplexity}
                except NonFiniteError as error:
                    reached = {"error": str(error)}
                home.test(point).parent.mkdir(exist_ok=True)
                write_atomic(home.test(point), lambda file, reached=reached: write_json(file, reached))
    asked = {point.arm for point in points}
    rows = [row for row in write() if row["arm"] in asked]
    for line in summary(rows):
        reporter.say(line)
    reporter.say(f"every point is a row of {home.path / 'results.parquet'}")
    errors = [row["error"] for row in rows if row["state"] == "failed"]
    if rows and len(errors) == len(rows):
        raise NothingDoneError(f"{home.path}: all {len(errors)} points failed; {AGAIN}: {errors[0]}")
    return rows


def _corpora(home: Sweeping, points: Sequence[Point], tuning: Sequence[int]) -> list[Data]:
    """Each corpus once, of the points that are to run next."""
    waiting = (point.config.data for point in _wanted(home, points, tuning) if home.row(point)["state"] == "waiting")
    return list({data.model_dump_json(): data for data in waiting}.values())


def wanted_rows(home: Sweeping, points: Sequence[Point], tuning: Sequence[int]) -> list[Row]:
    """What was run, and what shall be. chosen: of the setting that is its arm's best so far."""
    best = choose(home, points, tuning)
    rows = [(point, home.row(point) | {"chosen": point.setting in best}) for point in points]
    return [row for point, row in rows if row["chosen"] or point.seed in tuning or row["state"] == "done"]


def foresee(
    path: str | Path,
    overrides: Sequence[str],
    directory: str | Path | None,
    arms: Sequence[str] = (),
    retry: bool = False,
) -> list[str]:
    """The points that `sweep` would run, a line each, and what it would write. Runs and writes nothing."""
    points, section = expand(path, overrides, arms), load_sweep(path, overrides)
    home = _home(path, points, directory)
    tuning = section.seeds[: section.tuning_seeds]
    rows = [home.row(point) for point in points if point.seed in tuning]
    if retry:
        rows = [row | {"state": "waiting"} if row["state"] == "failed" else row for row in rows]
    count = {state: sum(row["state"] == state for row in rows) for state in ("waiting", "done", "failed")}
    lines = [describe(row) for row in rows if row["state"] == "waiting"]
    for data in _corpora(home, points, tuning):
        if is_missing(data):
            lines += ["a store is missing and would be prepared first:", *foresee_store(data, default_store(data))]
        else:
            open_or_prepare(data)
    lines.append(
        f"{home.path}: {count['waiting']} points to run, {count['done']} done, {count['failed']} failed"
        + (f"; {AGAIN}" if count["failed"] else "")
    )
    if more := len(section.seeds) - len(tuning):
        lines.append(f"then the best of every arm with {more} more seed{'s' if more > 1 else ''}")
    return lines


def _home(path: str | Path, points: Sequence[Point], directory: str | Path | None) -> Sweeping:
    run = points[0].config.run
    name = run.name if "name" in run.model_fields_set else Path(path).stem
    return Sweeping(Path(directory or f"runs/{name}-sweep"))


def _wanted(home: Sweeping, points: Sequence[Point], tuning: Sequence[int]) -> list[Point]:
    """All settings with the seeds of `tuning`; once these have ended, the best of every arm with the others too."""
    first = [point for point in points if point.seed in tuning]
    if any(home.row(point)["state"] == "waiting" for point in first):
        return first
    best = choose(home, points, tuning)
    return [point for point in points if point.seed in tuning or point.setting in best]


def _run_missing(
    home: Sweeping,
    points: Sequence[Point],
    tuning: Sequence[int],
    write: Callable[[], object],
    table: Table,
    address: str | None,
    reporter: Reporter,
    limit_s: float | None,
) -> None:
    """All settings with the seeds of `tuning`, then the best of every arm with the others. write: what is known."""
    by_run = {home.run(point): point for point in points}

    def next_tasks() -> list[Task]:
        waiting = [point for point in _wanted(home, points, tuning) if home.row(point)["state"] == "waiting"]
        return [Task(point.config, home.run(point)) for point in waiting]

    def look() -> None:
        now = _wanted(home, points, tuning)
        table.show([home.row(point) for point in now], [home.run(point) for point in now])

    def ended(task: Task, error: str | None) -> None:
        point = by_run[task.run]
        if error is not None or home.row(point)["state"] == "waiting":
            home.failure(point).parent.mkdir(exist_ok=True)
            what = {"error": error or "ended without a result"}
            write_atomic(home.failure(point), lambda file: write_json(file, what))
        else:
            made_by = versions() | {"tpdist": __version__}
            write_atomic(task.run / "versions.json", lambda file: write_json(file, made_by))
        write()
        table.ended(home.row(point))

    try:
        if next_tasks():
            look()  # Ray takes a while to start
        run_tasks(next_tasks, address, reporter, ended, look, limit_s)
    finally:
        table.close()


def choose(home: Sweeping, points: Iterable[Point], seeds: Sequence[int]) -> set[tuple[str, str]]:
    """Of every arm the setting with the lowest mean validation perplexity over `seeds`; failed settings are out."""
    reached: dict[tuple[str, str], list[float]] = {}
    for point in points:
        if point.seed in seeds:
            row = home.row(point)
            value = row["valid_perplexity"] if row["state"] == "done" else float("inf")
            reached.setdefault(point.setting, []).append(value)
    means = {setting: statistics.fmean(values) for setting, values in reached.items()}
    best: dict[str, tuple[str, str]] = {}
    for setting, mean in means.items():
        if mean < means.get(best.get(setting[0], ("", "")), float("inf")):
            best[setting[0]] = setting
    return set(best.values())


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values] if float in kinds else values)
    if kinds <= {str} or kinds <= {bool}:
        return pa.array(values)
    return pa.array([None if value is None else json.dumps(value) for value in values])
