"""What a person sees of a sweep: a live table on a terminal, a line for every point in a pipe."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from tpdist.training.progress import Reporter, Silent

Row = dict[str, Any]
MOST_ROWS = 30  # of a table that fits on a screen


class Table:
    """Rows of a sweep. It shows validation figures alone: what is seen is what is chosen by."""

    def __init__(self, reporter: Reporter, console: Console | None = None):
        self._reporter = reporter
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        self._ended = 0
        self._said = False

    def show(self, rows: Sequence[Row], runs: Sequence[Path]) -> None:
        """Draw anew, on a terminal; in a pipe say once what there is to do."""
        if not sys.stdout.isatty() or isinstance(self._reporter, Silent):
            if not self._said:
                self._reporter.say(f"{sum(row['state'] == 'waiting' for row in rows)} of {len(rows)} points to run")
                self._said = True
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(draw(rows, runs), refresh=True)

    def ended(self, row: Row) -> None:
        """A point is done or has failed."""
        self._ended += 1
        what = f"failed: {row['error']}" if row["state"] == "failed" else f"valid ppl {row['valid_perplexity']:.2f}"
        if self._live is None:
            self._reporter.say(f"{self._ended:>4}  {describe(row)}  {what}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def draw(rows: Sequence[Row], runs: Sequence[Path]) -> RichTable:
    """Points that run first, then those done, then those that wait; as many as fit on a screen."""
    count = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "waiting")}
    title = f"{count['done']} of {len(rows)} points done" + (f", {count['failed']} failed" if count["failed"] else "")
    table = RichTable("point", "state", "update", "epoch", "valid ppl", title=title, title_justify="left")
    shown = []
    for row, run in zip(rows, runs, strict=True):
        running = row["state"] == "waiting" and run.is_dir()
        state = "running" if running else row["state"]
        newest, ended = last_rows(run) if running else ({}, {})
        value = row["valid_perplexity"] or ended.get("valid_perplexity")
        cells = (
            describe(row),
            state,
            f"{newest['step']:,}" if newest else "",
            str(row["best_epoch"] or ended.get("epoch") or ""),
            "" if value is None else f"{value:.2f}",
        )
        order = ("running", "done", "failed", "waiting").index(state)
        shown.append((order, cells))
    for _, cells in sorted(shown, key=lambda pair: pair[0])[:MOST_ROWS]:
        table.add_row(*cells)
    return table


def describe(row: Row) -> str:
    """`ours  lr=0.003  seed 1`."""
    tried = [f"{key.split('.')[-1]}={value}" for key, value in row.items() if key.startswith("set.")]
    return "  ".join([row["arm"], *tried, f"seed {row['seed']}"])


def last_rows(run: Path) -> tuple[Row, Row]:
    """The newest row of a run's metrics.jsonl, and the newest of an epoch that has ended; empty where there is none."""
    newest: Row = {}
    with suppress(OSError, ValueError):
        for line in reversed((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            newest = newest or row
            if row["kind"] == "epoch":
                return newest, row
    return newest, {}
