"""What is learnt at test time, by steps on past h (Section 4.1) or on θ (dynamic evaluation), arm by arm of a sweep.

`python -m tpdist.experiments.testtime SWEEP`: every arm's best setting, on validation. Both kinds take STEPS gradient
steps a block, and every arm may try as many sizes of them, chosen on its first seed.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpdist.errors import NonFiniteError, TpdistError
from tpdist.experiments.modules import ended, json_file, write_json_file
from tpdist.experiments.results import Row, best_runs, versions
from tpdist.launch.trained import evaluate

STEPS = 2
SIZES = {"h": (0.02, 0.05, 0.1), "theta": (0.02, 0.05, 0.1)}


def at_test_time(sweep: Path, arms: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Of every arm: seeds, and validation perplexities over seeds, plain and with either kind of step at its size."""
    found: dict[str, Any] = {}
    for arm, rows in chosen_runs(sweep, arms).items():
        points = [sweep / "points" / row["point"] for row in rows]
        entry: dict[str, Any] = {"seeds": [row["seed"] for row in rows]}
        entry["plain"] = [round(row["valid_perplexity"], 3) for row in rows]
        for kind, sizes in SIZES.items():
            tried = {size: _with(kind, size, points[0], overrides) for size in sizes}
            size = min(tried, key=lambda one: tried[one])
            values = [tried[size], *(_with(kind, size, point, overrides) for point in points[1:])]
            entry[kind] = {"size": size, "valid": values, "tried": {str(one): value for one, value in tried.items()}}
        found[arm] = entry
    given = {"--arms": arms, "--set": overrides}
    options = [word for option, words in given.items() if words for word in (option, *words)]
    command = shlex.join(["python", "-m", "tpdist.experiments.testtime", str(sweep), *options])
    return {"command": command, "versions": versions(), "steps": STEPS, "test_time": found}


def chosen_runs(sweep: Path, arms: Sequence[str]) -> dict[str, list[Row]]:
    """By arm, the rows of the setting that the sweep in that directory has chosen. arms: none for all.

    Raises TpdistError where the sweep, or an arm's run, is not there.
    """
    file = sweep / "results.parquet"
    if not file.is_file():
        raise TpdistError(f"{file}: is not there: run the sweep first")
    try:
        runs = best_runs(pq.read_table(file).to_pylist())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise TpdistError(f"{file}: cannot be read; run the sweep again, which writes it anew") from error
    if not runs:
        raise TpdistError(f"{sweep}: no run of the sweep has ended")
    missing = [arm for arm in arms if arm not in runs]
    if missing:
        raise TpdistError(f"{sweep}: no run of {missing[0]!r} has ended; choose from {', '.join(runs)}")
    return {arm: runs[arm] for arm in arms or runs}


def _with(kind: str, size: float, run: Path, overrides: Sequence[str]) -> float:
    """A perplexity; inf where steps of this size blow up."""
    options: dict[str, Any] = {f"{kind}_steps": STEPS, f"{kind}_lr": size}
    with suppress(NonFiniteError):
        return round(evaluate(run, overrides=overrides, **options).perplexity, 3)
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tpdist.experiments.testtime", description=__doc__)
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's directory, such as runs/reproduce-small-b20")
    parser.add_argument("--arms", nargs="+", action="extend", default=[], metavar="ARM", help="default: all")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as data.store=DIR"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write it here")
    options = parser.parse_args()
    found = at_test_time(Path(options.sweep), options.arms, options.set)
    for arm, entry in found["test_time"].items():
        for kind in ("plain", *SIZES):
            values = entry[kind] if kind == "plain" else entry[kind]["valid"]
            size = "" if kind == "plain" else f" of {entry[kind]['size']:g}"
            print(f"{arm:<20} {kind + size:<14} " + "  ".join(f"{value:.2f}" for value in values))
    write_json_file(options.json, found)


if __name__ == "__main__":
    raise SystemExit(ended(main))
