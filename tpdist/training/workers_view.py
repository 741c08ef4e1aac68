"""What each of several workers does, for a person: a table beneath the run's bar, or lines in a pipe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from rich.filesize import decimal
from rich.table import Column, Table

ROWS = 16
LINES = 8


@dataclass(frozen=True)
class WorkerFigures:
    """One worker's figures since the run was last started, over the seconds of training.

    tokens_per_second: of its own blocks. neighbours, reduction: the share of time that it waited for neighbours' states
    and for the sum of gradients, transfers included. sent: bytes.
    """

    rank: int
    host: str
    tokens_per_second: float
    neighbours: float
    reduction: float
    sent: int

    @property
    def waiting(self) -> float:
        return self.neighbours + self.reduction


def table(workers: Sequence[WorkerFigures]) -> Table:
    """A row a worker, or a row a host where there are many workers on several; else those that the others wait for."""
    hosts = _by_host(workers)
    names = ["worker", "host", "tokens/s", "waits: neighbours", "gradients", "sent"]
    if len(workers) > ROWS and 1 < len(hosts) <= ROWS:
        grid = _grid(["workers", *names[1:]])
        for group in hosts:
            rate, sent = sum(work.tokens_per_second for work in group), sum(work.sent for work in group)
            neighbours, reduction = (_span(group, attrgetter(name), _percent) for name in ("neighbours", "reduction"))
            grid.add_row(_ranks(group), group[0].host, f"{rate:,.0f}", neighbours, reduction, decimal(sent))
        return grid
    grid, shown = _grid(names), workers
    if len(workers) > ROWS:
        shown = sorted(workers, key=lambda work: work.waiting)[:ROWS]  # who waits least is who the others wait for
        grid.caption = f"the {ROWS} of {len(workers)} workers that wait least: the others wait for them"
        grid.caption_justify = "left"
    for work in sorted(shown, key=lambda work: work.rank):
        grid.add_row(
            str(work.rank),
            work.host,
            f"{work.tokens_per_second:,.0f}",
            _percent(work.neighbours),
            _percent(work.reduction),
            decimal(work.sent),
        )
    return grid


def lines(workers: Sequence[WorkerFigures]) -> list[str]:
    """A line a worker; one with the ranges of all where there are many."""
    workers = sorted(workers, key=lambda work: work.rank)
    if len(workers) > LINES:
        return [_line(f"{len(workers)} workers on {len(_by_host(workers))} hosts", workers, each=" each")]
    return [_line(f"worker {work.rank} on {work.host}", [work]) for work in workers]


def _line(name: str, group: Sequence[WorkerFigures], each: str = "") -> str:
    rate = _span(group, attrgetter("tokens_per_second"), lambda value: f"{value:,.0f}")
    neighbours, reduction = (_span(group, attrgetter(name), _percent) for name in ("neighbours", "reduction"))
    sent = decimal(sum(work.sent for work in group))
    return f"{name}: {rate} tok/s{each}; waits {neighbours} for neighbours, {reduction} for gradients; sent {sent}"


def _grid(names: Sequence[str]) -> Table:
    columns = [
        Column(name, justify="left" if name == "host" else "right", no_wrap=name != "host", overflow="ellipsis")
        for name in names
    ]
    return Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")


def _by_host(workers: Sequence[WorkerFigures]) -> list[list[WorkerFigures]]:
    ordered = sorted(workers, key=lambda work: (work.host, work.rank))
    groups = [list(group) for _, group in groupby(ordered, key=lambda work: work.host)]
    return sorted(groups, key=lambda group: group[0].rank)


def _ranks(group: Sequence[WorkerFigures]) -> str:
    """[0, 1, 2, 5] -> 0-2, 5."""
    runs = [[work.rank for _, work in run] for _, run in groupby(enumerate(group), key=lambda x: x[1].rank - x[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _span(group: Sequence[WorkerFigures], value: Callable[[WorkerFigures], float], text: Callable[[float], str]) -> str:
    """The least to the greatest, once where they read the same."""
    least, greatest = text(min(map(value, group))), text(max(map(value, group)))
    return least if least == greatest else f"{least} to {greatest}"


def _percent(share: float) -> str:
    return f"{share:.1%}"
