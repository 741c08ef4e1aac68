"""What a person sees of a sweep: a live table on a terminal, a line for every point in a pipe, a summary at the end."""

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from tpdist.experiments.results import Row, best_setting, by_setting, tried
from tpdist.training.progress import Reporter, Silent, can_be_redrawn
from tpdist.training.run_dir import RunDirectory

AGAIN = "--retry runs them again"
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
        if not can_be_redrawn() or isinstance(self._reporter, Silent):
            if not self._said:
                self._reporter.say(f"{sum(row['state'] == 'waiting' for row in rows)} of {len(rows)} points to run")
                self._said = True
            return
        with suppress(OSError):  # a terminal that is gone takes nothing more
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
            with suppress(OSError):
                self._live.stop()
            self._live = None


def draw(rows: Sequence[Row], runs: Sequence[Path]) -> RichTable:
    """Points that run first, then those done, then those that wait; as many as fit on a screen."""
    count = Counter(row["state"] for row in rows)
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
    values = [f"{key.split('.')[-1]}={value}" for key, value in tried(row).items()]
    return "  ".join([row["arm"], *values, f"seed {row['seed']}"])


def described(sweep: Path) -> dict[str, str]:
    """What a sweep's table calls its points, by the names of their directories; nothing where it has none."""
    with suppress(pa.ArrowException, OSError, KeyError):
        rows = pq.read_table(sweep / "results.parquet").to_pylist()  # where an arm has no such key, None
        return {row["point"]: describe({key: value for key, value in row.items() if value is not None}) for row in rows}
    return {}


def last_rows(run: Path) -> tuple[Row, Row]:
    """The newest row of a run's metrics.jsonl, and the newest of an epoch that has ended; empty where there is none."""
    newest: Row = {}
    with suppress(OSError):
        for row in RunDirectory(run).newest_rows():
            newest = newest or row
            if row["kind"] == "epoch":
                return newest, row
    return newest, {}


def summary(rows: Sequence[Row]) -> list[str]:
    """A line an arm: how many settings it tried, the best one, its validation perplexity over the seeds."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        settings, done = by_setting(own), by_setting(row for row in own if row["state"] == "done")
        failed = sum(row["state"] == "failed" for row in own)
        if not done:
            error = next((row["error"] for row in own if row["error"]), None)
            why = f"{len(own)} point{'s are' if len(own) > 1 else ' is'} waiting"
            if error:
                why = f"{failed} of {len(own)} points failed, {AGAIN}: {error}"
            lines.append(f"{arm}: none is done; {why}")
            continue
        name = best_setting(done)
        best = ", ".join(f"{key}={value}" for key, value in tried(done[name][0]).items()) or "as it is"
        values = [row["valid_perplexity"] for row in done[name]]
        tests = [row["test_perplexity"] for row in settings[name] if row["test_perplexity"] is not None]
        spread = f" (standard deviation {statistics.stdev(values):.2f})" if len(values) > 1 else ""
        lines.append(
            f"{arm}: {_tried(len(done), len(settings))} tried, best {best}: validation perplexity "
            f"{statistics.fmean(values):.2f}{spread} over {len(values)} seed{'s' if len(values) > 1 else ''}"
            + (f", test perplexity {statistics.fmean(tests):.2f} over {len(tests)}" if tests else "")
            + (f"; {failed} point{'s' if failed > 1 else ''} failed; {AGAIN}" if failed else "")
        )
    return lines


def _tried(ended: int, settings: int) -> str:
    """`3 settings`, or of how many."""
    return f"{ended} of {settings} settings" if ended < settings else f"{settings} setting{'s' if settings > 1 else ''}"
