"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe."""

import errno
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from tpdist.data import Progress as Preparation
from tpdist.errors import OutputError
from tpdist.training.workers_view import WorkerFigures, lines, table

PLAIN_EVERY_S = 10.0
WIDE = 120


@dataclass(frozen=True)
class Status:
    """Where a run is. loss: mean nats per token of the epoch so far. primal, dual: residuals' norms so far.

    workers: the figures of each of several workers, as far as they are known; empty where one trains alone.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    perplexity: float
    primal: float
    dual: float
    tokens_per_second: float
    seconds_left: float
    workers: tuple[WorkerFigures, ...] = ()

    def text(self, width: int = WIDE) -> str:
        """On one line; on two where `width` characters do not hold it beside a bar."""
        epoch = f"epoch {self.epoch}/{self.epochs}"
        figures = f"loss {self.loss:.3f}  ppl {self.perplexity:.1f}  |r| {self.primal:.3g}  |s| {self.dual:.3g}"
        speed = f"{self.tokens_per_second:,.0f} tok/s  {clock(self.seconds_left)} left"
        return f"{epoch}  {figures}  {speed}" if width >= WIDE else f"{epoch}  {speed}\n{figures}"


def together(statuses: Sequence[Status | None]) -> Status | None:
    """The leader's status, which is the first, with the figures of all workers."""
    if not statuses or statuses[0] is None:
        return None
    return replace(statuses[0], workers=tuple(work for status in statuses if status for work in status.workers))


class Reporter(Protocol):
    """Takes what a run has to say."""

    def say(self, text: str) -> None:
        """One line that stays."""
        ...

    def step(self, status: Status) -> None:
        """Called after every update; shows as many as a person can read."""
        ...

    def close(self) -> None: ...


class Silent:
    """Says nothing: for the Python API."""

    def say(self, text: str) -> None: ...

    def step(self, status: Status) -> None: ...

    def close(self) -> None: ...


class Plain:
    """A line now and then, for pipes and logs."""

    def __init__(self) -> None:
        self._last: float | None = None

    def say(self, text: str) -> None:
        _print(text)

    def step(self, status: Status) -> None:
        if self._last is None:  # its first lines may still be on their way from a worker
            self._last = time.monotonic()
        if time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            _print(f"  step {status.step}/{status.steps}  {status.text()}")
            for line in lines(status.workers):
                _print(f"    {line}")

    def close(self) -> None: ...


class Live:
    """A moving bar, above a table of the workers where there are several; what is said scrolls above it.

    A terminal that is gone takes nothing more, and its signal ends the run, which shall come to save.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = RunBar(console or Console(highlight=False))
        self._task = self._progress.add_task("", total=None)

    def say(self, text: str) -> None:
        with suppress(OSError):
            self._progress.console.print(text, markup=False, soft_wrap=True)

    def step(self, status: Status) -> None:
        self._progress.workers = status.workers
        with suppress(OSError):
            self._progress.start()  # does nothing once started
        text = status.text(self._progress.console.width)
        self._progress.update(self._task, description=text, completed=status.step, total=status.steps)

    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()


def can_be_redrawn() -> bool:
    """Whether standard output is a terminal on which lines move: not one of TERM=dumb, as an editor's is."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def reporter(quiet: bool = False) -> Reporter:
    """`Live` on a terminal, else `Plain`; `Silent` where nobody wants to hear."""
    if quiet:
        return Silent()
    return Live() if can_be_redrawn() else Plain()


class RunBar(Progress):
    """The bar of a run, and its workers beneath it."""

    workers: Sequence[WorkerFigures] = ()

    def __init__(self, console: Console) -> None:
        bar = BarColumn(bar_width=24 if console.width >= WIDE else 16)
        super().__init__(
            bar, TextColumn("{task.percentage:>3.0f}% "), TextColumn("{task.description}"), console=console
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.workers:
            yield table(self.workers)


def _print(text: str) -> None:
    """Print a line. Where nobody reads any more, training goes on in silence. Else raises OutputError.

    So it is behind `| head`, and on a terminal that is gone, whose signal ends the run, which shall come to save.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
            raise OutputError.of(error) from error
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the rest of the process)


def clock(seconds: float) -> str:
    """65 -> 1:05; 3725 -> 1:02:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class DataBar:
    """Progress of a preparation: a bar on a terminal, a line every 10 s in a pipe; nothing where it is to be quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._last = time.monotonic()

    def __enter__(self) -> "DataBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(OSError):  # the terminal may be gone
                self._bar.stop()

    def __call__(self, at: Preparation) -> None:
        if self._quiet:
            return
        text = f"{at.phase} {at.split}"
        if can_be_redrawn():
            if self._bar is None:
                self._bar = Progress(
                    BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%  {task.description}")
                )
                self._bar.add_task("", total=at.total)
                self._bar.start()
            self._bar.update(self._bar.tasks[0].id, description=text, completed=at.done)
            if at.done >= at.total:
                self._bar.stop()
        elif time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            _print(f"  {text}: {at.done:,}/{at.total:,} {at.unit}")
