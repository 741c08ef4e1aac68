"""metrics.jsonl, and the same rows to whoever tracks the run."""

import shutil
from collections.abc import Callable
from typing import Any

from tpdist.config import Experiment
from tpdist.training.files import json_lines, write_text
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trackers import Events, External, open_trackers, refusal


class Tracker:
    """Appends rows; a row has `kind` (`step` or `epoch`), `epoch`, `step`, and numbers.

    Rows that a resumed run writes again are dropped first: those of later updates than `step`, and the epoch rows
    from `epoch` on. The TensorBoard events are then made anew from the rows that stay, so both say the same. MLflow
    and W&B take nothing back: there, rows that are written again stand twice.

    A server that fails does not end a run: `notice` is told, and the rows are in the file.
    """

    def __init__(self, run: RunDirectory, step: int, epoch: int, config: Experiment, notice: Callable[[str], None]):
        rows = [row for row in run.rows() if row["step"] <= step]
        rows = [row for row in rows if row["kind"] != "epoch" or row["epoch"] < epoch]
        self._notice = notice
        self._others: dict[str, External] = open_trackers(config, run, notice)
        write_text(run.metrics_file, json_lines(rows))
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        self._events = Events(run.tensorboard) if "tensorboard" in config.run.track else None
        if self._events is not None:
            for row in rows:
                self._events.add(row)
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Add a row. Whatever happens after this, it is in the file."""
        self._file.write(json_lines([row]))
        self._file.flush()
        if self._events is not None:
            self._events.add(row)
        for name in list(self._others):
            self._try(name, lambda other: other.add(row))

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            if self._events is not None:
                self._events.close()
            for name in list(self._others):
                self._try(name, lambda other: other.close())

    def _try(self, name: str, do: Callable[[External], None]) -> None:
        try:
            do(self._others[name])
        except Exception as error:  # whatever a library that talks to a server may raise
            del self._others[name]
            self._notice(refusal(name, error))
