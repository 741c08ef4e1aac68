"""A sweep's directory: what is known of every point, and which settings are chosen by it.

DIR/points/<point>/       the run of a point, with its config.yaml and result.json
DIR/failed/<point>.json   why a point failed
DIR/test/<point>.json     test perplexity of a chosen point, once somebody has asked for it
DIR/results.parquet       a row for every point; follows from the files above
DIR/.lock                 held by the sweep that is at work
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpdist.errors import RunError
from tpdist.experiments.points import Point
from tpdist.experiments.results import Row
from tpdist.training.files import read_json, write_atomic
from tpdist.training.locks import locked
from tpdist.training.run_dir import refuse_bytes

FIGURES = (
    "valid_perplexity", "train_perplexity", "best_epoch", "epochs", "steps", "seconds", "device", "parameters", "method"
)  # fmt: skip
ELSEWHERE = "move it away, or give `tpdist sweep` a new name by --dir"  # `tpdist reproduce` has no such option


Known = tuple[Point, Row]  # a point, and what is known of it


@dataclass(frozen=True)
class SweepDirectory:
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
        result = _read(self.run(point) / "result.json", "valid_perplexity", "tokens_per_second", "seconds")
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

    def known(self, points: Iterable[Point]) -> list[Known]:
        """Of all of them, read now: several files each."""
        return [(point, self.row(point)) for point in points]

    def corpus(self, point: Point) -> str | None:
        """Of what a point's model was trained on, as a store's manifest has it; None where there is no model."""
        return _read(self.run(point) / "models" / "best.json").get("corpus")

    def refuse_another(self, points: Iterable[Point]) -> None:
        """Raise RunError where the table is of none of `points`: another sweep's, which stays as it is."""
        table = self.path / "results.parquet"
        if table.is_file():
            try:
                found = pq.read_table(table)
            except (pa.ArrowException, OSError):
                return  # it follows from the points, and is made anew
            if "point" not in found.column_names:
                raise RunError(f"{table}: is no table of a sweep; {ELSEWHERE}")
            known = found.column("point").to_pylist()
            if not {point.name for point in points} & set(known):
                raise RunError(f"{self.path}: holds another sweep, {len(known)} points of other settings; {ELSEWHERE}")

    def refuse_unfit(self) -> None:
        """Raise RunError where a file or a run has its name, or none could be read there."""
        refuse_bytes(self.path, "--dir")
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is no directory; {ELSEWHERE}")
        if (self.path / "config.yaml").is_file():
            raise RunError(f"{self.path}: is the directory of a run; {ELSEWHERE}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory, and keep other sweeps out of it. Raises RunError where that cannot be."""
        self.refuse_unfit()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made: {error.strerror}") from error
        refusal = f"{self.path}: another sweep is at work in it; wait for its end, or end it"
        with locked(self.path / ".lock", refusal):
            yield

    def write(self, rows: Sequence[Row]) -> None:
        """results.parquet, whole or not at all. A column whose values are of several kinds holds them as JSON."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        write_atomic(self.path / "results.parquet", lambda file: pq.write_table(pa.table(columns), file))


def choose(known: Iterable[Known], seeds: Sequence[int]) -> set[tuple[str, str]]:
    """Of every arm the setting with the lowest mean validation perplexity over `seeds`; failed settings are out."""
    reached: dict[tuple[str, str], list[float]] = {}
    for point, row in known:
        if point.seed in seeds:
            value = row["valid_perplexity"] if row["state"] == "done" else float("inf")
            reached.setdefault(point.setting, []).append(value)
    means = {setting: statistics.fmean(values) for setting, values in reached.items()}
    best: dict[str, tuple[str, str]] = {}
    for setting in sorted(means, key=lambda one: means[one]):
        if means[setting] < float("inf"):
            best.setdefault(setting[0], setting)
    return set(best.values())


def wanted(known: Sequence[Known], tuning: Sequence[int]) -> list[Known]:
    """All settings with the seeds of `tuning`, and the best of every arm that has ended them with the others too."""
    undecided = open_arms(known, tuning)
    best = choose(((point, row) for point, row in known if point.arm not in undecided), tuning)
    first = [(point, row) for point, row in known if point.seed in tuning]  # what decides comes before what follows
    return first + [(point, row) for point, row in known if point.seed not in tuning and point.setting in best]


def open_arms(known: Iterable[Known], tuning: Sequence[int]) -> set[str]:
    """Arms of which a setting waits that may come to be the best."""
    return {point.arm for point, row in known if point.seed in tuning and row["state"] == "waiting"}


def waiting(known: Sequence[Known], tuning: Sequence[int]) -> list[Point]:
    """Of the wanted ones those that have neither ended nor failed."""
    return [point for point, row in wanted(known, tuning) if row["state"] == "waiting"]


def wanted_rows(known: Sequence[Known], tuning: Sequence[int]) -> list[Row]:
    """What was run, and what shall be. chosen: of the setting that is its arm's best so far."""
    best = choose(known, tuning)
    rows = [(point, row | {"chosen": point.setting in best}) for point, row in known]
    return [row for point, row in rows if row["chosen"] or point.seed in tuning or row["state"] == "done"]


def _read(path: Path, *needed: str) -> dict[str, Any]:
    """What a file of ours holds; nothing where it is not there, or damaged."""
    with suppress(OSError, ValueError):
        found = read_json(path)
        if isinstance(found, dict) and found.keys() >= set(needed):
            return found
    return {}


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values] if float in kinds else values)
    if kinds <= {str} or kinds <= {bool}:
        return pa.array(values)
    return pa.array([None if value is None else json.dumps(value) for value in values])
