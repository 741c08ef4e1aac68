"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe."""

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tpdist.data import Progress as Preparation

PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class Status:
    """Where a run is. loss: mean nats per token of the epoch so far. primal, dual: residuals' norms so far."""

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

    def text(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.3f}  ppl {self.perplexity:.1f}  "
            f"|r| {self.primal:.3g}  |s| {self.dual:.3g}  {self.tokens_per_second:,.0f} tok/s  "
            f"{clock(self.seconds_left)} left"
        )


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
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        _print(text)

    def step(self, status: Status) -> None:
        if time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            _print(f"  step {status.step}/{status.steps}  {status.text()}")

    def close(self) -> None: ...


class Live:
    """One moving line with a bar, from the first update on; what is said scrolls above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = _bar(console or Console(highlight=False))
        self._task = self._progress.add_task("", total=None)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def step(self, status: Status) -> None:
        self._progress.start()  # does nothing once started
        self._progress.update(self._task, description=status.text(), completed=status.step, total=status.steps)

    def close(self) -> None:
        self._progress.stop()


def reporter() -> Reporter:
    """`Live` on a terminal, else `Plain`."""
    return Live() if sys.stdout.isatty() else Plain()


def _bar(console: Console) -> Progress:
    percent = TextColumn("{task.percentage:>3.0f}%  {task.description}")
    return Progress(BarColumn(bar_width=24), percent, console=console)


def _print(text: str) -> None:
    """Print a line. Where nobody reads any more (`| head`), training goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def clock(seconds: float) -> str:
    """65 -> 1:05; 3725 -> 1:02:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class DataBar:
    """Progress of a preparation: a bar on a terminal, a line every 10 s in a pipe."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last = time.monotonic()

    def __enter__(self) -> "DataBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, at: Preparation) -> None:
        text = f"{at.phase} {at.split}"
        if sys.stdout.isatty():
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
