"""Kept results: from the rows of a sweep to a JSON file, of which `markdown.py` makes the tables of RESULTS.md.

Intervals are 95 % t-intervals of the mean over seeds.
"""

import json
import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

Row = dict[str, Any]
Kept = dict[str, Any]
# two-sided 95 % quantiles of Student's t for 2, 3, … values
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


def t95(count: int) -> float:
    """The two-sided 95 % quantile of Student's t for the mean of `count` values.

    Beyond the table by the first terms of its expansion about the normal one (Abramowitz and Stegun, 26.7.5).
    """
    if count - 2 < len(T95):
        return T95[count - 2]
    z, free = statistics.NormalDist().inv_cdf(0.975), count - 1
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    return t95(len(values)) * statistics.stdev(values) / math.sqrt(len(values))


def summarise(rows: Sequence[Row], command: str, paper: Mapping[str, float]) -> Kept:
    """The setting of every arm that the sweep chose on validation, and what the others reached.

    paper: the paper's figure of an arm, where it has one. Failed points are counted, and the error of one is kept.
    """
    arms = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        done = by_setting(_done(own))
        failed = [row for row in own if row["state"] == "failed"]
        entry: Kept = {"arm": arm, "tried": len(done), "failed": len(failed), "paper": paper.get(arm)}
        if failed:
            entry["error"] = failed[0]["error"]
        if done:
            entry |= _figures(best_setting(done), done)
            entry["others"] = [
                {"setting": name, "seeds": [r["seed"] for r in group], "valid": round(_mean(group), 3)}
                for name, group in done.items()
                if name != entry["setting"]
            ]
        arms.append(entry)
    return {"command": command, "versions": versions_of(rows), "arms": arms}


def best_runs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By arm, the runs of that setting; arms of which none has ended are left out."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    found = {arm: by_setting(_done(row for row in rows if row["arm"] == arm)) for arm in arms}
    return {arm: done[best_setting(done)] for arm, done in found.items() if done}


def by_setting(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """By the text of a setting, as it is kept: its runs."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        text = ", ".join(f"{key}={json.dumps(value)}" for key, value in tried(row).items())
        found.setdefault(text, []).append(row)
    return found


def tried(row: Row) -> dict[str, Any]:
    """The keys of the grid, and their values here."""
    return {key.removeprefix("set."): value for key, value in row.items() if key.startswith("set.")}


def _done(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["state"] == "done"]


def best_setting(done: Mapping[str, Sequence[Row]]) -> str:
    """Of settings and their runs that have ended: the one that the sweep chose, else the best of those with most."""
    chosen = [name for name, group in done.items() if any(row.get("chosen") for row in group)]
    if chosen:
        return chosen[0]
    most = max(map(len, done.values()))
    return min((name for name in done if len(done[name]) == most), key=lambda name: _mean(done[name]))


def versions() -> dict[str, str]:
    """Of what a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def versions_of(notes: Iterable[Row]) -> dict[str, str]:
    """As sweeps have noted them, beside their runs or in what is kept; else this process's."""
    notes = list(notes)
    return {name: _distinct(note.get(name) for note in notes) or own for name, own in versions().items()}


def joined_commands(before: str | None, own: str) -> str:
    """The commands behind what is kept, each once. before: those of what was kept already."""
    return "; ".join(dict.fromkeys([*(before.split("; ") if before else ()), own]))


def _distinct(values: Iterable[str | None]) -> str:
    """Of several lists too, such as `2.12, 2.13`, each once."""
    return ", ".join(dict.fromkeys(one for value in values if value for one in value.split(", ")))


def _figures(setting: str, done: Mapping[str, list[Row]]) -> Kept:
    group = done[setting]
    values = [row["valid_perplexity"] for row in group]
    return {
        "setting": setting,
        "seeds": [row["seed"] for row in group],
        "valid": [round(value, 3) for value in values],
        "mean": round(statistics.fmean(values), 3),
        "interval": _rounded(interval(values)),
        "test": _mean_of("test_perplexity", group),
        "train": _mean_of("train_perplexity", group),
        "best_epochs": [row["best_epoch"] for row in group],
        "tokens": group[0]["tokens"],
        "seconds": round(statistics.fmean(row["seconds"] for row in group), 1),
        "device": _distinct(row["device"] for row in group),
    }


def _mean_of(figure: str, group: Sequence[Row]) -> float | None:
    """None where a run does not have it."""
    values = [row[figure] for row in group if row.get(figure) is not None]
    return round(statistics.fmean(values), 3) if len(values) == len(group) else None


def _mean(rows: Sequence[Row]) -> float:
    return statistics.fmean(row["valid_perplexity"] for row in rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def ratio_row(block: int, sweep: Kept, window: Kept, config: str, cell: str = "") -> Kept | None:
    """Ours over tuned BPTT of window B, and over BPTT through the same window; None before both are there.

    Means over the seeds that `ours` and `bptt` of `sweep` share; `bptt-window` of `window` counts where it has them
    all. Intervals are those of the ratio within a seed. cell: of the sweeps' arms those whose names end with it.
    """
    of_window, own = (
        {arm["arm"].removesuffix(f"-{cell}"): arm for arm in kept["arms"] if arm["arm"].endswith(cell)}
        for kept in (window, sweep)
    )
    found = {name: arm for name, arm in of_window.items() if name == "bptt-window"} | own
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
