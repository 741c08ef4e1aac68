"""A run goes on with fewer workers while there is no room, takes more in when there is, and computes the same."""

import os
import re
import time
from pathlib import Path
from signal import SIGKILL

import pytest
import ray
import torch
from safetensors.torch import load_file
from small_runs import Listener
from trials import WORKERS, Chaos, Trial, run_trial, worker_processes

EPOCHS = 30
SLOW = Trial(None, pace=0.15)  # an epoch takes a second

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]  # far more than it takes: a hang says where it stands


class Squatter(Listener):
    """Kills a worker after the third update and takes its room, until the run has gone on with fewer."""

    def __init__(self, home: Path):
        super().__init__(dict.fromkeys(range(3, 100), self._squat))
        self._home, self._room = home, None

    def _squat(self) -> None:
        if self._room is None:
            self._room = ray.util.placement_group([{"CPU": 1}])  # waits in line
            os.kill(worker_processes(self._home)[0], SIGKILL)

    def say(self, text: str) -> None:
        super().say(text)
        if " 2 workers went on" in text:
            ray.util.remove_placement_group(self._room)


def test_fewer_and_more(chaos: Chaos, tmp_path: Path) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    run_trial(Trial(None), chaos.home, chaos.store, reference, EPOCHS)
    while ray.available_resources().get("CPU", 0) < WORKERS:  # a run takes what it finds, and this one shall find all
        time.sleep(0.1)
    elastic = {"workers": {"min": 2, "max": WORKERS}, "mesh": None, "rejoin_s": 0.0}
    result, listener = run_trial(SLOW, chaos.home, chaos.store, run, EPOCHS, Squatter(chaos.home), **elastic)
    assert result.recoveries == 1, listener.text
    # a survivor that hangs in a message is replaced too, in its own room
    assert re.search(r"died.*, 2 workers went on from step", listener.text), listener.text
    assert "the cluster has room for more: 1 new, 2 kept, 3 workers went on from step" in listener.text
    assert result.workers == WORKERS
    wanted = load_file(reference / "models/last.safetensors")
    for name, value in load_file(run / "models/last.safetensors").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-9)
