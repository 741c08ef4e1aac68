"""What was changed of a run's settings where it went on: RUN/changes.jsonl, a line for each. None is taken back."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tpdist.config import Experiment
from tpdist.data.disk import parse_json
from tpdist.training.files import json_lines, write_text
from tpdist.training.run_dir import RunDirectory, with_absolute_paths
from tpdist.training.trackers import flat

Change = dict[str, Any]


def differences(run: RunDirectory, config: Experiment, epoch: int, step: int) -> list[Change]:
    """What `config` has otherwise than the run had, to hold from `step` on: keys `setting`, `was`, `now`.

    Whether it was set for this once or edited in the run's file.
    """
    before = dict(flat(run.written_config().model_dump(mode="json")))
    now = dict(flat(with_absolute_paths(config, Path.cwd()).model_dump(mode="json")))
    return [
        {"step": step, "epoch": epoch, "setting": key, "was": before.get(key), "now": now.get(key)}
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def note_changes(run: RunDirectory, config: Experiment, epoch: int, step: int) -> list[Change]:
    """Add the differences to what the run has noted: all of them or none, whatever ends the process."""
    found = differences(run, config, epoch, step)
    if found:
        write_text(_file(run), json_lines([*changes(run), *found]))
    return found


def changes(run: RunDirectory) -> list[Change]:
    """All that were noted, in their order; none for a run that went on as it was. A damaged line is left out."""
    found = []
    with suppress(OSError):
        for line in _file(run).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                change = parse_json(line)
                if _is_change(change):
                    found.append(change)
    return found


def text(change: Change) -> str:
    return f"{change['setting']} {json.dumps(change['was'])} -> {json.dumps(change['now'])}"


def _is_change(value: Any) -> bool:
    """Whether those who show changes find in it what they need."""
    whole = isinstance(value, dict) and {"step", "setting", "was", "now"} <= value.keys()
    return whole and isinstance(value["step"], int) and isinstance(value["setting"], str)


def _file(run: RunDirectory) -> Path:
    return run.path / "changes.jsonl"
