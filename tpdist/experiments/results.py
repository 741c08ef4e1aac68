"""Kept results: from the rows of a sweep to a JSON file, and from JSON files to the tables of RESULTS.md.

Intervals are 95 % t-intervals of the mean over seeds. A table stands in RESULTS.md between two markers:

    <!-- results: NAME -->
    …
    <!-- end -->
"""

import json
import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tpdist.errors import TpdistError
from tpdist.training.progress import clock

Row = dict[str, Any]
Kept = dict[str, Any]
# two-sided 95 % quantiles of Student's t, by the number of values
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
MARKED = re.compile(r"<!-- results: (?P<name>[\w./-]+) -->\n.*?<!-- end -->", re.DOTALL)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    return T95.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))


def summarise(rows: Sequence[Row], command: str, paper: Mapping[str, float]) -> Kept:
    """The best setting of every arm, on validation, among those that have the most seeds done.

    paper: the paper's figure of an arm, where it has one. Failed points are counted, and the error of one is kept.
    """
    arms = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        settings: dict[str, list[Row]] = {}
        for row in own:
            settings.setdefault(_setting(row), []).append(row)
        done = {name: [row for row in group if row["state"] == "done"] for name, group in settings.items()}
        failed = [row for row in own if row["state"] == "failed"]
        tried = sum(map(bool, done.values()))
        entry: Kept = {"arm": arm, "tried": tried, "failed": len(failed), "paper": paper.get(arm)}
        if failed:
            entry["error"] = failed[0]["error"]
        most = max(map(len, done.values()))
        if most:
            full = [name for name in done if len(done[name]) == most]
            entry |= _figures(min(full, key=lambda name: _mean(done[name])), done)
            entry["others"] = [
                {"setting": name, "seeds": [r["seed"] for r in group], "valid": round(_mean(group), 3)}
                for name, group in done.items()
                if group and name != entry["setting"]
            ]
        arms.append(entry)
    return {"command": command, "versions": versions(), "arms": arms}


def versions() -> dict[str, str]:
    """Of what a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def _figures(setting: str, done: Mapping[str, list[Row]]) -> Kept:
    group = done[setting]
    values = [row["valid_perplexity"] for row in group]
    tests = [row["test_perplexity"] for row in group if row["test_perplexity"] is not None]
    return {
        "setting": setting,
        "seeds": [row["seed"] for row in group],
        "valid": [round(value, 3) for value in values],
        "mean": round(statistics.fmean(values), 3),
        "interval": _rounded(interval(values)),
        "test": round(statistics.fmean(tests), 3) if len(tests) == len(values) else None,
        "best_epochs": [row["best_epoch"] for row in group],
        "tokens": group[0]["tokens"],
        "seconds": round(statistics.fmean(row["seconds"] for row in group), 1),
        "device": group[0]["device"],
    }


def _mean(rows: Sequence[Row]) -> float:
    return statistics.fmean(row["valid_perplexity"] for row in rows)


def _setting(row: Row) -> str:
    return ", ".join(f"{key[4:]}={json.dumps(row[key])}" for key in row if key.startswith("set."))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def ratio_row(block: int, sweep: Kept, window: Kept, config: str) -> Kept | None:
    """Ours over tuned BPTT of window B, and over BPTT through the same window; None before both are there.

    Means over the seeds that `ours` and `bptt` of `sweep` share; `bptt-window` of `window` counts where it has them
    all. Intervals are those of the ratio within a seed.
    """
    found = {arm["arm"]: arm for arm in [*(a for a in window["arms"] if a["arm"] == "bptt-window"), *sweep["arms"]]}
    by_seed = {
        name: dict(zip(found[name]["seeds"], found[name]["valid"], strict=True))
        if "mean" in found.get(name, {})
        else {}
        for name in ("ours", "bptt", "bptt-window")
    }
    seeds = sorted(by_seed["ours"].keys() & by_seed["bptt"].keys())
    if not seeds:
        return None
    ours, bptt = ([by_seed[name][seed] for seed in seeds] for name in ("ours", "bptt"))
    full = [by_seed["bptt-window"][seed] for seed in seeds] if set(seeds) <= by_seed["bptt-window"].keys() else None
    return {
        "block": block,
        "seeds": seeds,
        "ours": round(statistics.fmean(ours), 3),
        "bptt": round(statistics.fmean(bptt), 3),
        "bptt_full_window": None if full is None else round(statistics.fmean(full), 3),
        **_ratio("ratio", ours, bptt),
        **_ratio("ratio_full_window", ours, full),
        "config": config,
        "device": found["ours"]["device"],
    }


def _ratio(name: str, above: Sequence[float], below: Sequence[float] | None) -> Kept:
    if below is None:
        return {name: None, f"{name}_interval": None}
    half = interval([a / b for a, b in zip(above, below, strict=True)])
    return {name: round(statistics.fmean(above) / statistics.fmean(below), 4), f"{name}_interval": _rounded(half)}


def table(kept: Kept) -> str:
    """A kept result as Markdown."""
    if "rows" in kept:
        lines = ["| B | ours | BPTT, K = B | BPTT, same window | ours / BPTT | ours / same window | seeds |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in kept["rows"]:
            full = row["bptt_full_window"]
            cells = [
                str(row["block"]),
                f"{row['ours']:.2f}",
                f"{row['bptt']:.2f}",
                "" if full is None else f"{full:.2f}",
            ]
            cells += [
                _spread(row[name], row[f"{name}_interval"], 3) if row[name] is not None else "*not yet measured*"
                for name in ("ratio", "ratio_full_window")
            ]
            lines.append("| " + " | ".join([*cells, ", ".join(map(str, row["seeds"]))]) + " |")
        return "\n".join(lines)
    if "cosines" in kept:
        lines = ["| visit | " + " | ".join(kept["cosines"]) + " |", "| --- |" + " --- |" * len(kept["cosines"])]
        first = next(iter(kept["cosines"].values()))
        for name in first:
            values = [column.get(name) for column in kept["cosines"].values()]
            cells = ["" if value is None else _spread(statistics.fmean(value), interval(value), 4) for value in values]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)
    if "theta_steps" in kept:
        arms = kept["theta_steps"]
        steps = list(next(iter(arms.values()))["losses"])
        lines = ["| θ-steps | " + " | ".join([*steps, "seeds"]) + " |", "| --- |" + " --- |" * (len(steps) + 1)]
        for name, arm in arms.items():
            cells = [_spread(statistics.fmean(arm["losses"][step]), interval(arm["losses"][step]), 3) for step in steps]
            lines.append("| " + " | ".join([name, *cells, ", ".join(map(str, arm["seeds"]))]) + " |")
        return "\n".join(lines)
    if "adding" in kept:
        lines = ["| arm | solved | seeds | error | updates | seconds of a core |", "| --- |" + " --- |" * 5]
        for arm, runs in kept["adding"].items():
            columns = ("seed", "error", "updates", "seconds")
            seeds, errors, updates, seconds = ([run[name] for run in runs] for name in columns)
            cells = [arm, f"{sum(run['solved'] for run in runs)} of {len(runs)}", ", ".join(map(str, seeds))]
            cells += [", ".join(f"{value:.4f}" for value in errors), ", ".join(map(str, updates))]
            lines.append("| " + " | ".join([*cells, ", ".join(f"{value:.0f}" for value in seconds)]) + " |")
        return "\n".join(lines)
    return _arms_table(kept)


def _arms_table(kept: Kept) -> str:
    columns = ["", "validation", "paper", "test", "seeds", "best setting", "tried", "tokens", "device", "wall time"]
    lines = [dict(zip(columns, _cells(arm), strict=True)) for arm in kept["arms"]]
    shown = [name for name in columns if name in ("", "validation") or any(line[name] for line in lines)]
    text = ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    return "\n".join([*text, *("| " + " | ".join(line[name] for name in shown) + " |" for line in lines)])


def _cells(arm: Kept) -> list[str]:
    paper = "" if arm["paper"] is None else f"{arm['paper']:.2f}"
    if "mean" not in arm:
        return [arm["arm"], arm.get("error", "*not run*"), paper, *[""] * 7]
    return [
        arm["arm"],
        _spread(arm["mean"], arm["interval"], 2),
        paper,
        "" if arm["test"] is None else f"{arm['test']:.2f}",
        ", ".join(map(str, arm["seeds"])),
        arm["setting"],
        str(arm["tried"]),
        f"{arm['tokens']:,}",
        arm["device"],
        clock(arm["seconds"]) if "seconds" in arm else "",
    ]


def _spread(value: float, half: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def render(text: str, results: Path) -> str:
    """A document with every marked table made anew from `results`/NAME.json. Raises TpdistError for a missing one."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        try:
            kept = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise TpdistError(f"a marked table: {results / name}.json: cannot be read: {error.strerror}") from error
        return f"<!-- results: {name} -->\n{table(kept)}\n<!-- end -->"

    return MARKED.sub(fill, text)
