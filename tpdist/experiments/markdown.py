"""From kept results to the tables of RESULTS.md and README.md.

A table stands in a document between two markers:

    <!-- results: NAME -->
    …
    <!-- end -->
"""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tpdist.errors import TpdistError
from tpdist.experiments.results import Kept, interval
from tpdist.training.files import read_json
from tpdist.training.progress import clock

MARKED = re.compile(r"<!-- results: (?P<name>[\w./-]+) -->\n.*?<!-- end -->", re.DOTALL)


def table(kept: Kept) -> str:
    """A kept result as Markdown; what it holds says which kind it is."""
    return next((write(kept) for kind, write in KINDS.items() if kind in kept), "")


def _ratios(kept: Kept) -> str:
    names = ("ratio", "ratio_full_window")
    rows = []
    for row in kept["rows"]:
        full = row["bptt_full_window"]
        cells = [f"{row['ours']:.2f}", f"{row['bptt']:.2f}", "" if full is None else f"{full:.2f}"]
        cells += [
            "*not yet measured*" if row[name] is None else _spread(row[name], row[f"{name}_interval"], 3)
            for name in names
        ]
        rows.append([str(row["block"]), *cells, _listed(row["seeds"])])
    columns = ["B", "ours", "BPTT, truncated at B", "BPTT, same window", "ours / BPTT", "ours / same window", "seeds"]
    return _lines(columns, rows)


def _cosines(kept: Kept) -> str:
    columns = kept["cosines"]
    rows = []
    for name in next(iter(columns.values())):
        values = (column.get(name) for column in columns.values())
        rows.append([name, *("" if value is None else _mean(value, 4) for value in values)])
    return _lines(["visit", *columns], rows)


def _theta_steps(kept: Kept) -> str:
    arms = kept["theta_steps"]
    steps = list(next(iter(arms.values()))["losses"])
    rows = [
        [name, *(_mean(arm["losses"][step], 3) for step in steps), _listed(arm["seeds"])] for name, arm in arms.items()
    ]
    return _lines(["θ-steps", *steps, "seeds"], rows)


def _test_time(kept: Kept) -> str:
    rows = []
    for arm, entry in kept["test_time"].items():
        tried = [entry[kind] for kind in ("h", "theta")]  # where the numbers blew up JSON has null
        means = ["*diverged*" if None in one["valid"] else _mean(one["valid"], 2) for one in tried]
        cells = [f"{mean} (of {one['size']:g})" for mean, one in zip(means, tried, strict=True)]
        rows.append([arm, _mean(entry["plain"], 2), *cells, _listed(entry["seeds"])])
    steps = kept["steps"]
    return _lines(["", "frozen", f"{steps} H-steps a block", f"{steps} θ-steps a block", "seeds"], rows)


def _long_memory(kept: Kept) -> str:
    rows = []
    for problem, arm, runs in ((name, *each) for name in kept["trivial"] for each in kept[name].items()):
        columns = ("seed", "error", "updates", "seconds", "wall")
        seeds, errors, updates, *times = ([run[name] for run in runs] for name in columns)
        solved = f"{sum(run['solved'] for run in runs)} of {len(runs)}"
        cells = [arm, f"{runs[0]['lag']:,}", solved, _listed(seeds), f"{kept['trivial'][problem]:.4f}"]
        cells.append(_listed("*diverged*" if value is None else f"{value:.4f}" for value in errors))
        rows.append([*cells, _listed(updates), *(_listed(f"{value:.0f}" for value in spent) for spent in times)])
    columns = ["arm", "lag", "solved", "seeds", "trivial error", "error", "updates", "seconds of a core"]
    return _lines([*columns, "wall time, s"], rows)


def _on_gpu(kept: Kept) -> str:
    """What `tests/gpu/run.py` has found."""
    rows = [[f"`{name}`", f"{value:.3g}"] for name, value in kept["ratios"].items()]
    return _lines(["", kept["machine"]["device"]], rows)


def _arms(kept: Kept) -> str:
    columns = ["", "validation", "each run", "paper", "test", "train", "seeds", "best setting", "tried"]
    columns += ["tokens", "device", "wall time"]
    lines = [dict(zip(columns, _cells(arm), strict=True)) for arm in kept["arms"]]
    shown = [name for name in columns if name in ("", "validation") or any(line[name] for line in lines)]
    return _lines(shown, [[line[name] for name in shown] for line in lines])


def _cells(arm: Kept) -> list[str]:
    paper = "" if arm["paper"] is None else f"{arm['paper']:.2f}"  # of how many runs it does not say
    if "mean" not in arm:
        return [arm["arm"], arm.get("error", "*not run*"), "", paper, *[""] * 8]
    return [
        arm["arm"],
        _spread(arm["mean"], arm["interval"], 2),
        _listed(f"{value:.2f}" for value in arm["valid"]) if paper and len(arm["valid"]) > 1 else "",
        paper,
        "" if arm["test"] is None else f"{arm['test']:.2f}",
        "" if arm.get("train") is None else f"{arm['train']:.2f}",
        _listed(arm["seeds"]) + (f"; {arm['failed']} runs failed" if arm["failed"] else ""),
        arm["setting"],
        str(arm["tried"]),
        "" if arm["tokens"] is None else f"{arm['tokens']:,}",
        arm["device"],
        clock(arm["seconds"]) if "seconds" in arm else "",
    ]


KINDS: dict[str, Callable[[Kept], str]] = {
    "rows": _ratios,
    "cosines": _cosines,
    "theta_steps": _theta_steps,
    "test_time": _test_time,
    "adding": _long_memory,
    "checks": _on_gpu,
    "arms": _arms,
}


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*text, *("| " + " | ".join(row) + " |" for row in rows)])


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _mean(values: Sequence[float], digits: int) -> str:
    return _spread(statistics.fmean(values), interval(values), digits)


def _spread(value: float, half: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def render(text: str, results: Path) -> str:
    """A document with every marked table made anew from `results`/NAME.json. Raises TpdistError for a missing one."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        try:
            kept = read_json(results / f"{name}.json")
        except OSError as error:
            raise TpdistError(f"a marked table: {results / name}.json: cannot be read: {error.strerror}") from error
        return f"<!-- results: {name} -->\n{table(kept)}\n<!-- end -->"

    return MARKED.sub(fill, text)
