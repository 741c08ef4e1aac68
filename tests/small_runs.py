"""Runs that take a second: helpers of the tests of training, launch and the command line."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tpdist import Interrupted
from tpdist.config import Experiment
from tpdist.training import epoch_end
from tpdist.training.depots import Directory
from tpdist.training.progress import Silent, Status

TIMES = ("seconds", "tokens_per_second", "worker_tokens_per_second", "worker_waiting")
SOURCE = {"types": 12, "states": 4, "branching": 2, "tokens": 200}
Parts = dict[str, Any]


def small(store: Path | str, **parts: Parts) -> Experiment:
    """Two epochs of 9 updates over 200 synthetic tokens; `parts` lie over it."""
    base: dict[str, Parts] = {
        "data": {"recipe": "synthetic", "store": str(store), "synthetic": SOURCE},
        "model": {"hidden": 6},
        "objective": {"block": 4, "weight": 0.2},
        "batching": {"streams": 2, "blocks": 3},
        "optimizer": {"lr": 0.02},
        "run": {"epochs": 2, "log_every": 2, "device": "cpu"},
    }
    for part, values in parts.items():
        base[part] = {**base.get(part, {}), **values}
    return Experiment.model_validate(base)


class Listener(Silent):
    """Keeps what is said; `at[n]` is called after update n."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None):
        self.said: list[str] = []
        self.statuses: list[Status] = []
        self.closed = False
        self._at = at or {}

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, status: Status) -> None:
        self.statuses.append(status)
        self._at.get(status.step, lambda: None)()

    def close(self) -> None:
        self.closed = True

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def control_c() -> None:
    """What the kernel does when the user types Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def stop_at(*steps: int) -> Listener:
    """Ctrl-C after these updates."""
    return Listener(dict.fromkeys(steps, control_c))


def during_evaluation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C in the middle of the evaluation number `number`, from 1; the test split's is the last."""
    evaluate, calls = epoch_end.evaluate_tokens, iter(range(1, 99))

    def evaluated(*arguments: Any, tick: Any, **options: Any) -> Any:
        if next(calls) == number:
            control_c()
        return evaluate(*arguments, tick=tick, **options)

    monkeypatch.setattr(epoch_end, "evaluate_tokens", evaluated)


def interrupted(work: Callable[[], object]) -> str:
    """Run `work`, which must be interrupted; the message."""
    try:
        work()
    except Interrupted as error:
        return str(error)
    raise AssertionError("was not interrupted")


def rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines if kind in (None, row["kind"])]


def figures(run: Path) -> dict[str, Any]:
    """result.json without its times and place."""
    values = json.loads((run / "result.json").read_text())
    return {name: value for name, value in values.items() if name not in (*TIMES, "run")}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """θ, H, U, optimisers' states and what is carried, of all workers, in the newest checkpoint."""
    files = sorted(list_checkpoints(run / "checkpoints")[-1].glob("*.safetensors"))
    return {f"{file.stem}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_runs(one: Path, other: Path) -> None:
    """Two finished runs took the same steps: every bit of every state, every row, every figure."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    assert rows(one) == rows(other)
    assert figures(one) == figures(other)
    for name in ("best", "last"):
        for ending in ("safetensors", "json"):
            assert (one / f"models/{name}.{ending}").read_bytes() == (other / f"models/{name}.{ending}").read_bytes()
    states = [
        json.loads((list_checkpoints(run / "checkpoints")[-1] / "state.json").read_text()) for run in (one, other)
    ]
    for state in states:
        del state["seconds"], state["sums"]
    assert states[0] == states[1]


def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """What is synced and renamed from here on: which of the two, the name (a rename's old one), a file's bytes."""
    done: list[tuple[str, str, int]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(handle: int) -> None:
        fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append(("synced", path.name, path.stat().st_size if path.is_file() else 0))

    def note_rename(old: Path, new: Path) -> None:
        rename(old, new)
        done.append(("renamed", Path(old).name, 0))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    return done


def list_checkpoints(directory: Path) -> list[Path]:
    """Those of a directory, oldest first."""
    return [directory / name for name in Directory(directory).names()]
