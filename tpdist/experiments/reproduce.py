"""`tpdist reproduce WHAT`: a table or a figure of the paper, cell by cell, beside the paper's own figures.

WHAT is a sweep in `configs/paper/`; its arms are the cells. `configs/paper/paper.json` holds what the paper reports.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpdist.config import Sweep
from tpdist.errors import TpdistError, key_of, of_variable
from tpdist.experiments import longmemory
from tpdist.experiments import sweep as sweeps
from tpdist.experiments.markdown import render, table
from tpdist.experiments.points import arms_of, load_sweep
from tpdist.experiments.results import Row, ratio_row, summarise, versions_of
from tpdist.experiments.svg import chart, standalone
from tpdist.training.files import read_json, write_json, write_text
from tpdist.training.progress import Reporter

HOME = Path("configs/paper")
DOCUMENTS = (Path("RESULTS.md"), Path("README.md"))  # their tables follow from what is kept
# ours over BPTT: the file of its ratios; by B the sweep with the runs, at B = 20 those of BPTT through the window too;
# behind a colon the cell of a sweep that has several
CONTESTS = {
    "ptb_small_ratio": {5: "small/b5", 10: "small/b10", 20: "small/b20"},
    "ptb_small_adamw_ratio": {5: "small/b5-adamw", 20: "small/b20-adamw"},
    "ptb_adam_ratio": {5: "ptb/b5", 10: "ptb/b10", 20: "ptb/b20"},
    "ptb_annealed_ratio": {20: "ptb/b20-annealed"},
    "ptb_ratio": {5: "ptb/b5-adamw", 10: "ptb/b10-adamw", 20: "ptb/b20-adamw"},
    "ptb_8epochs_ratio": {20: "ptb/b20-adamw-8epochs"},
    "ptb_hidden400_ratio": {20: "ptb/b20-hidden400"},
    "ptb_hidden512_ratio": {20: "ptb/hidden-adamw:hidden512"},
    "wikitext2_ratio": {20: "wikitext2"},
    "wikitext2_adamw_ratio": {20: "wikitext2-adamw"},
}
LONG_MEMORY = "long-memory"
UNITS_S = {"s": 1, "m": 60, "h": 3600}


def reproduce(
    what: str,
    cells: Sequence[str],
    budget: str | None,
    keep: bool,
    retry: bool,
    test: bool,
    overrides: Sequence[str],
    address: str | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run the cells that have not been run, print the table, and write it with its JSON to `runs/reproduce-WHAT`.

    A figure is drawn beside its table, as figure.svg.

    cells: patterns of their names; none: all. budget: such as 30m or 8h; an arm that has settings left to try then is
    not in the table.
    keep: write the JSON to configs/paper/results, too, and the documents' tables anew. retry: run failed points again.
    test: evaluate the settings chosen on validation on the test split.
    """
    file, home = _sweep_of(what)
    limit_s = None if budget is None else _seconds(budget)
    command = _command(what, cells, test, overrides)
    if what == LONG_MEMORY:
        _refuse_for_long_memory(retry, test, address, overrides)
        kept = {"command": command, **longmemory.long_memory(file, overrides, cells, home, reporter, limit_s)}
    else:
        rows = sweeps.sweep(file, overrides, home, address, reporter, retry, test, cells, limit_s)
        paper = read_json(HOME / "paper.json").get(what, {})
        kept = summarise(decided(rows), command, paper)
    write_json(home / "results.json", kept)
    write_text(home / "table.md", table(kept) + "\n")
    section = load_sweep(file, overrides)
    if what.startswith("figure") and (drawn := figure(what, section, kept["arms"])):
        write_text(home / "figure.svg", drawn)
    for line in table(kept).splitlines():
        reporter.say(line)
    if keep:
        for arm in keep_result(what, kept, section):
            reporter.say(f"kept as it was, with more seeds than have ended here: {arm}")
    return kept


def dry_run(
    what: str,
    cells: Sequence[str],
    budget: str | None,
    overrides: Sequence[str],
    retry: bool = False,
    test: bool = False,
    address: str | None = None,
) -> list[str]:
    """The points that `reproduce` would run, a line each."""
    file, home = _sweep_of(what)
    within = [] if budget is None else [f"within {_seconds(budget):,.0f} s, then it ends with what is done"]
    if what == LONG_MEMORY:
        _refuse_for_long_memory(retry, test, address, overrides)
        return [*longmemory.dry_run(file, overrides, cells, home), *within]
    return [*sweeps.dry_run(file, overrides, home, cells, retry, address), *within]


def _refuse_for_long_memory(retry: bool, test: bool, address: str | None, overrides: Sequence[str]) -> None:
    keys = {key_of(text) for text in overrides if not of_variable(text)}
    given = {"--retry": retry, "--test": test, "--address": address, "--set run.test": "run.test" in keys}
    for option in (name for name, value in given.items() if value):
        raise TpdistError(f"reproduce {LONG_MEMORY}: takes no {option}: it trains in this process, without a corpus")


def decided(rows: Sequence[Row]) -> list[Row]:
    """What has ended, of the arms that have tried all their settings: another one may yet be the best of the rest."""
    undecided = {row["arm"] for row in rows if row["state"] == "waiting" and not row["chosen"]}
    return [row for row in rows if row["state"] != "waiting" and row["arm"] not in undecided]


def _command(what: str, cells: Sequence[str], test: bool, overrides: Sequence[str]) -> str:
    """As somebody may type it who has none of the runs."""
    words = ["tpdist", "reproduce", what]
    words += ["--cells", *cells] if cells else []
    words += ["--set", *overrides] if overrides else []
    return shlex.join([*words, "--test"] if test else words)


def _sweep_of(what: str) -> tuple[Path, Path]:
    """Its file, and where it goes."""
    file = HOME / f"{what}.yaml"
    if not file.is_file():
        there = sorted(str(path.relative_to(HOME).with_suffix("")) for path in HOME.rglob("*.yaml"))
        known = f"there is {', '.join(there)}" if there else f"{HOME} is not here: run it in a clone of the repository"
        raise TpdistError(f"reproduce: no {file}; {known}")
    return file, Path("runs") / f"reproduce-{what.replace('/', '-')}"


def figure(what: str, section: Sweep, arms: Sequence[dict[str, Any]]) -> str | None:
    """Validation perplexity across the one key of `cells`, a curve an arm, as SVG; the paper's where known.

    None where there is nothing to draw. arms: as they are kept.
    """
    if len(section.cells) != 1:
        return None
    ((key, values),) = section.cells.items()
    label = key.split(".")[-1]
    by_name = {arm["arm"]: arm for arm in arms}

    def curve(arm: str, figure: str) -> list[tuple[float, float]]:
        found = [(value, by_name.get(f"{arm}-{label}{value}", {}).get(figure)) for value in values]
        return [(x, y) for x, y in found if y is not None]

    curves = {arm: curve(arm, "mean") for arm in section.arms}
    curves |= {f"{arm}, paper": curve(arm, "paper") for arm in section.arms}
    found = {name: points for name, points in curves.items() if points}
    if not found:
        return None
    heights = [y for points in found.values() for _, y in points]
    far = max(heights) > 10 * min(heights)  # what diverged would flatten all others
    return standalone(chart(what, label, found, log=far))


def keep_result(what: str, kept: dict[str, Any], section: Sweep) -> list[str]:
    """Into configs/paper/results, without wall times, which mean little on another machine; the documents follow.

    Arms of `section` that the command left out stay as they were kept before. So do those of which not all seeds that
    were kept have ended yet: their names.
    """
    results = HOME / "results"
    results.mkdir(exist_ok=True)
    own = results / f"{what.replace('/', '_')}.json"
    before = read_json(own) if own.is_file() else None
    short = []
    if "arms" in kept:
        short = _short_of_seeds(kept, before)
        lasting = [
            {name: value for name, value in arm.items() if name != "seconds"}
            for arm in kept["arms"]
            if arm["arm"] not in short
        ]
        if not lasting:
            return short
        arms = lasting if before is None else _with_other_arms(lasting, kept, before, list(arms_of(section)))
        kept = {**kept, "arms": arms}
        if what.startswith("figure") and (drawn := figure(what, section, arms)):
            write_text(results / f"{what}.svg", drawn)
    elif before is not None:
        kept = longmemory.with_others(kept, before)
    write_json(own, kept)
    for name, contest in CONTESTS.items():
        if any(what == one.partition(":")[0] for one in contest.values()):
            _keep_ratios(results, name, contest)
    for document in filter(Path.is_file, DOCUMENTS):
        write_text(document, render(document.read_text(encoding="utf-8"), results))
    return short


def _short_of_seeds(kept: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """The arms that had all of their seeds before, and more."""
    seeds = {arm["arm"]: set(arm.get("seeds", ())) for arm in (before or kept)["arms"]}
    return [arm["arm"] for arm in kept["arms"] if set(arm.get("seeds", ())) < seeds.get(arm["arm"], set())]


def _with_other_arms(
    own: list[dict[str, Any]], kept: dict[str, Any], before: dict[str, Any], names: Sequence[str]
) -> list[dict[str, Any]]:
    """`own`, and what of `before` is not in it, in the file's order; an arm that others made says what did."""
    made_by = {name: before[name] for name in ("versions", "command") if before[name] != kept[name]}
    found = {arm["arm"]: {**made_by, **arm} for arm in before["arms"]} | {arm["arm"]: arm for arm in own}
    return [found[name] for name in names if name in found]


def _keep_ratios(results: Path, name: str, contest: dict[int, str]) -> None:
    parts = {block: one.partition(":")[::2] for block, one in contest.items()}
    files = {block: results / f"{what.replace('/', '_')}.json" for block, (what, _) in parts.items()}
    there = {block: read_json(path) for block, path in files.items() if path.is_file()}
    found = [
        ratio_row(block, one, there.get(20, one), f"{HOME}/{parts[block][0]}.yaml", parts[block][1])
        for block, one in there.items()
    ]
    if any(found):
        commands = (f"{what} --cells '*-{cell}'" if cell else what for what, cell in map(parts.__getitem__, there))
        ratios = {"command": "; ".join(f"tpdist reproduce {command} --keep" for command in commands)}
        made_by = [
            arm.get("versions", one["versions"])
            for block, one in there.items()
            for arm in one["arms"]
            if arm["arm"].startswith(("ours", "bptt")) and arm["arm"].endswith(parts[block][1])
        ]
        ratios |= {"versions": versions_of(made_by)}
        ratios |= {"rows": [row for row in found if row is not None]}
        write_json(results / f"{name}.json", ratios)


def _seconds(budget: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if match is None:
        raise TpdistError(f"--budget: must be a number with s, m or h, such as 30m or 8h; got {budget!r}")
    return float(match[1]) * UNITS_S[match[2]]
