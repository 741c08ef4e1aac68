"""metrics.jsonl and TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from tpdist.training.run_dir import RunDirectory


class Tracker:
    """Appends rows; a row has `kind` (`step` or `epoch`), `step`, and numbers.

    Rows of later steps than `from_step`, which a resumed run takes again, are dropped first.
    """

    def __init__(self, run: RunDirectory, from_step: int):
        self._keep_until(run.metrics_file, from_step)
        self._file = run.metrics_file.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.tensorboard), purge_step=from_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self._events.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._events.close()

    @staticmethod
    def _keep_until(file: Path, step: int) -> None:
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the line that was being written when the run was killed
        file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
