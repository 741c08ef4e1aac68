"""`tpdist sweep`: run every point of a `sweep:` section, keep what each reached, choose on validation.

Where: `sweep_dir.py`.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tpdist import __version__
from tpdist.config import Data, unread_by_all
from tpdist.data import default_store, is_missing, open_or_prepare
from tpdist.data import dry_run as dry_run_of_store
from tpdist.data.disk import unwritable
from tpdist.data.manifest import MANIFEST_FILE, read_manifest
from tpdist.errors import NonFiniteError, RunError, TpdistError
from tpdist.experiments.points import Point, expand, expand_all, load_sweep
from tpdist.experiments.precheck import faults
from tpdist.experiments.results import Row, versions
from tpdist.experiments.sweep_dir import SweepDirectory, choose, open_arms, waiting, wanted, wanted_rows
from tpdist.experiments.table import AGAIN, Table, describe, summary
from tpdist.launch.local import check_gpus
from tpdist.launch.tasks import Task, place_of, run_tasks
from tpdist.launch.trained import evaluate
from tpdist.training.files import write_json
from tpdist.training.progress import Reporter


class NothingDoneError(TpdistError):
    """Every point has failed; why each failed is in the table."""

    exit_code = 1


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

    Raises ConfigError for a point that cannot be, or where `faults` finds something in every setting, DataError where a
    corpus is not there, RunError where another sweep is at work in the directory, or another's table lies there. A
    point that fails while it runs is a row, and stops nothing. Raises NothingDoneError where all have failed.
    """
    until = math.inf if limit_s is None else time.monotonic() + limit_s
    points, section = expand(path, overrides, arms), load_sweep(path, overrides)
    for line in unread_by_all([point.config for point in points]):
        reporter.say(line)
    everything = expand_all(path, overrides) if arms else points
    home = _home(path, points, directory)
    with home.held():
        home.refuse_another(everything)
        if retry:
            for point in points:
                home.failure(point).unlink(missing_ok=True)
        tuning = section.seeds[: section.tuning_seeds]
        to_run = waiting(home.known(points), tuning)
        if address is None:
            for point in to_run:
                check_gpus(point.config)
        corpora = _corpora(to_run)
        if any(is_missing(data) for data in corpora):  # to prepare it may take long
            _refuse_if_none_would_run(points, to_run, address is None)
        for data in corpora:
            open_or_prepare(data)  # once, before many points want it
        _refuse_other_corpora(home, points)
        _refuse_if_none_would_run(points, to_run, address is None)

        def write() -> list[Row]:
            rows = wanted_rows(home.known(everything), tuning)
            home.write(rows)
            return rows

        _run_missing(home, points, tuning, write, Table(reporter), address, reporter, until)
        if test:
            _test_chosen(home, points, tuning, until, reporter)
        asked = {point.arm for point in points}
        rows = [row for row in write() if row["arm"] in asked]
        for line in summary(rows):
            reporter.say(line)
        reporter.say(f"every point is a row of {home.path / 'results.parquet'}")
        errors = [row["error"] for row in rows if row["state"] == "failed"]
        if rows and len(errors) == len(rows):
            raise NothingDoneError(f"{home.path}: all {len(errors)} points failed; {AGAIN}: {errors[0]}")
        return rows


def _test_chosen(
    home: SweepDirectory, points: Sequence[Point], tuning: Sequence[int], until: float, reporter: Reporter
) -> None:
    """Evaluate what each arm has chosen on the test split, where that has not been done and no setting waits.

    until: by the monotonic clock, the time after which no evaluation begins.
    """
    known = home.known(points)
    best, undecided = choose(known, tuning), open_arms(known, tuning)
    for point, row in known:
        done = row["state"] == "done" and point.arm not in undecided
        if done and point.setting in best and not home.test(point).exists():
            if time.monotonic() > until:
                reporter.say("time is up before the test split; the same command goes on")
                return
            _test(home, point)


def _test(home: SweepDirectory, point: Point) -> None:
    try:
        evaluation = evaluate(home.run(point), "test", overrides=place_of(point.config))
        reached: dict[str, Any] = {"perplexity": evaluation.perplexity}
    except NonFiniteError as error:
        reached = {"error": str(error)}
    home.test(point).parent.mkdir(exist_ok=True)
    write_json(home.test(point), reached)


def _refuse_if_none_would_run(points: Sequence[Point], to_run: Sequence[Point], here: bool) -> None:
    """Raise the first of `faults` where none has run, and none would."""
    wrong = faults(to_run, here)
    if len(wrong) == len({point.setting for point in points}):
        raise next(iter(wrong.values()))


def _corpora(points: Sequence[Point]) -> list[Data]:
    """Each corpus once."""
    return list({point.config.data.model_dump_json(): point.config.data for point in points}.values())


def _refuse_other_corpora(home: SweepDirectory, points: Sequence[Point]) -> None:
    """Raise RunError where a point was trained on another text than its store holds now: its figures are no peers."""
    stores = {default_store(point.config.data) for point in points}
    now = {store: read_manifest(store).checksum for store in stores if (store / MANIFEST_FILE).is_file()}
    for point in points:
        made_on, directory = home.corpus(point), default_store(point.config.data)
        if made_on is not None and made_on != now.get(directory, made_on):
            raise RunError(
                f"{home.run(point)}: was trained on another corpus than {directory} holds now, and its figures do not "
                f"compare; delete the old points, or move {home.path} away"
            )


def dry_run(
    path: str | Path,
    overrides: Sequence[str],
    directory: str | Path | None,
    arms: Sequence[str] = (),
    retry: bool = False,
    address: str | None = None,
) -> list[str]:
    """The points that `sweep` would run, a line each, with what they would fail on. Runs and writes nothing."""
    points, section = expand(path, overrides, arms), load_sweep(path, overrides)
    home = _home(path, points, directory)
    home.refuse_unfit()
    if why := unwritable(home.path):
        raise RunError(f"{home.path}: cannot be written: {why}")
    home.refuse_another(expand_all(path, overrides) if arms else points)
    _refuse_other_corpora(home, points)
    tuning = section.seeds[: section.tuning_seeds]
    known = home.known(points)
    if retry:
        known = [(point, row | {"state": "waiting"} if row["state"] == "failed" else row) for point, row in known]
    shown = wanted(known, tuning)
    count = Counter(row["state"] for _, row in shown)
    to_run = waiting(known, tuning)
    wrong = faults(to_run, address is None)
    lines = [*unread_by_all([point.config for point in points])]
    for point, row in shown:
        if row["state"] == "waiting":
            fault = wrong.get(point.setting)
            lines.append(describe(row) + (f"  would fail: {fault}" if fault else ""))
    for data in _corpora(to_run):
        if is_missing(data):
            lines += ["a store is missing and would be prepared first:", *dry_run_of_store(data, default_store(data))]
        else:
            open_or_prepare(data)
    lines.append(
        f"{home.path}: {count['waiting']} points to run, {count['done']} done, {count['failed']} failed"
        + (f"; {AGAIN}" if count["failed"] else "")
    )
    more = len(section.seeds) - len(tuning)
    if more and open_arms(known, tuning):
        lines.append(f"then the best of every arm with {more} more seed{'s' if more > 1 else ''}")
    return lines


def _home(path: str | Path, points: Sequence[Point], directory: str | Path | None) -> SweepDirectory:
    run = points[0].config.run
    name = run.name if "name" in run.model_fields_set else Path(path).stem
    return SweepDirectory(Path(directory or f"runs/{name}-sweep"))


def _run_missing(
    home: SweepDirectory,
    points: Sequence[Point],
    tuning: Sequence[int],
    write: Callable[[], object],
    table: Table,
    address: str | None,
    reporter: Reporter,
    until: float,
) -> None:
    """The seeds of `tuning`; as soon as an arm has its best, that with the other seeds. write: what is known.

    until: as `run_tasks` takes it.
    """
    by_run = {home.run(point): point for point in points}

    def next_tasks() -> list[Task]:
        return [Task(point.config, home.run(point)) for point in waiting(home.known(points), tuning)]

    def look() -> None:
        now = wanted(home.known(points), tuning)
        table.show([row for _, row in now], [home.run(point) for point, _ in now])

    def ended(task: Task, error: str | None) -> None:
        point = by_run[task.run]
        if error is not None or home.row(point)["state"] == "waiting":
            home.failure(point).parent.mkdir(exist_ok=True)
            write_json(home.failure(point), {"error": error or "ended without a result"})
        else:
            write_json(task.run / "versions.json", versions() | {"tpdist": __version__})
        write()
        table.ended(home.row(point))

    try:
        if next_tasks():
            look()  # Ray takes a while to start
        run_tasks(next_tasks, address, reporter, ended, look, until)
    finally:
        table.close()
