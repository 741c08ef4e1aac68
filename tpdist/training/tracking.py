"""metrics.jsonl and TensorBoard events."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from tpdist.training.files import finite, write_atomic
from tpdist.training.run_dir import RunDirectory


class Tracker:
    """Appends rows; a row has `kind` (`step` or `epoch`), `epoch`, `step`, and numbers.

    Rows that a resumed run writes again are dropped first: those of later updates than `step`, and the epoch rows
    from `epoch` on. The TensorBoard events are then made anew from the rows that stay, so both say the same.
    """

    def __init__(self, run: RunDirectory, step: int, epoch: int):
        rows = [row for row in _read(run.metrics_file) if row["step"] <= step]
        rows = [row for row in rows if row["kind"] != "epoch" or row["epoch"] < epoch]
        write_atomic(run.metrics_file, lambda file: _write(file, rows))
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        self._events = Events(run.tensorboard)
        for row in rows:
            self._events.add(row)
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Add a row. Whatever happens after this, it is in the file."""
        row = finite(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._events.add(row)

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._events.close()


class Events:
    """A TensorBoard event file. Written in this thread: torch's writer has one of its own, whose errors are lost."""

    def __init__(self, directory: Path):
        directory.mkdir()
        now = time.time()
        self._file = (directory / f"events.out.tfevents.{int(now)}.tpdist").open("wb")
        self._records = RecordWriter(self._file)
        self._put(Event(wall_time=now, file_version="brain.Event:2"))
        # a TensorBoard that watches drops what it has read of the run before
        self._put(Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: dict[str, Any]) -> None:
        """The numbers of a row, as `kind/name`."""
        values = [
            Summary.Value(tag=f"{row['kind']}/{name}", simple_value=value)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value) and name not in ("step", "epoch")
        ]
        self._put(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _put(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def _read(file: Path) -> list[dict[str, Any]]:
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
            if row["kind"] and row["step"] >= 0 and row["epoch"] >= 0:
                rows.append(row)
        except (ValueError, TypeError, KeyError):
            continue  # the line that was being written when the run was killed
    return rows


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
