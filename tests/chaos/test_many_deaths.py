"""All workers at once; more deaths than are mended; a disk that fails; a hundred kills in one run."""

import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest
from small_runs import Listener
from trials import UPDATES, WORKERS, Chaos, Trial, assert_undisturbed, run_trial, worker_processes

import tpdist
from tpdist.launch.crew import WorkerFailedError

KILLS = 100
UPDATES_PER_KILL = 25
SEED = 7
SOAK = Trial(None, pace=0.02)  # nobody fires, and there are moments enough to be killed at
SLOW = Trial(None, pace=0.4)  # every update is seen from outside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]  # far more than it takes: a hang says where it stands


def test_the_loss_of_all_workers(chaos: Chaos, tmp_path: Path) -> None:
    def kill_all() -> None:
        pids = worker_processes(chaos.home)
        assert len(pids) == WORKERS
        for pid in pids:
            os.kill(pid, SIGKILL)

    once = Listener(dict.fromkeys(range(3, 8), _once(kill_all)))
    result, listener = run_trial(SLOW, chaos.home, chaos.store, tmp_path / "run", listener=once)
    assert result.recoveries == 1, listener.text
    assert ": 3 new, 0 kept, 3 workers went on from step" in listener.text
    assert_undisturbed(tmp_path / "run", chaos.reference)


def test_a_death_while_the_workers_start(chaos: Chaos, tmp_path: Path) -> None:
    over = threading.Event()

    def kill() -> None:
        while not (pids := worker_processes(chaos.home)):
            if over.wait(0.005):
                return
        os.kill(pids[0], SIGKILL)

    while worker_processes(chaos.home):  # of the run before
        time.sleep(0.1)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        _, listener = run_trial(SLOW, chaos.home, chaos.store, tmp_path / "run")
    finally:
        over.set()
        killer.join()
    assert "3 workers went on from step 0 " in listener.text
    assert_undisturbed(tmp_path / "run", chaos.reference)


def test_a_disk_that_fails_is_a_worker_that_is_replaced(chaos: Chaos, tmp_path: Path) -> None:
    trial = Trial("optimiser step", 2, raises="disk")
    result, listener = run_trial(trial, chaos.home, chaos.store, tmp_path / "run")
    assert result.recoveries == 1, listener.text
    assert "failed: OSError: [Errno 5]" in listener.text
    assert_undisturbed(tmp_path / "run", chaos.reference)


def test_more_deaths_than_are_mended_end_the_run_and_it_can_be_resumed(chaos: Chaos, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(WorkerFailedError) as caught:
        run_trial(Trial("backward", 1, step=4, pace=0.5), chaos.home, chaos.store, run, max_restarts=0)
    assert "died. Not mended: 1 failures within 3600 s, and cluster.max_restarts is 0." in str(caught.value)
    assert f"Continue with: tpdist train --resume {run}" in str(caught.value)
    tpdist.resume(run)
    assert_undisturbed(run, chaos.reference)


def test_soak(chaos: Chaos, tmp_path: Path) -> None:
    """A hundred kills of a random worker at random times: some in the middle of a recovery, a joining, a start."""
    epochs = KILLS * UPDATES_PER_KILL // UPDATES
    reference, run = tmp_path / "reference", tmp_path / "run"
    run_trial(Trial(None), chaos.home, chaos.store, reference, epochs)
    listener, kills = Listener(), []
    over = threading.Event()

    def kill() -> None:
        chance = random.Random(SEED)
        for number in range(KILLS):
            if number % 5:
                while listener.statuses[-1:] == [] or listener.statuses[-1].step < number * UPDATES_PER_KILL:
                    if over.wait(0.05):
                        return
                time.sleep(chance.uniform(0, 0.5))
            else:
                time.sleep(chance.uniform(0, 6))  # wherever the workers stand
            while not (pids := worker_processes(chaos.home)):
                if over.wait(0.05):
                    return
            victim = chance.choice(pids)
            os.kill(victim, SIGKILL)
            kills.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result, _ = run_trial(
            SOAK, chaos.home, chaos.store, run, epochs, listener, max_restarts=10 * KILLS, rejoin_s=300.0
        )
    finally:
        over.set()
        killer.join()
    took = sorted(map(float, re.findall(r"after ([\d.]+) s", listener.text)))
    hung = listener.text.count("hung for")
    print(
        f"soak: {len(kills)} kills, {result.recoveries} recoveries, {result.steps} updates; a recovery took "
        f"{took[len(took) // 2]:.1f} s, {took[0]:.1f} to {took[-1]:.1f}; {hung} survivors hung",
        flush=True,
    )
    assert len(kills) == KILLS
    assert_undisturbed(run, reference)


def _once(work: Callable[[], None]) -> Callable[[], None]:
    done = []

    def call() -> None:
        if not done:
            done.append(True)
            work()

    return call
