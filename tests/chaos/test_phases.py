"""Every phase × every worker × SIGKILL, SIGSTOP in two phases, every file operation of a checkpoint.

    pytest -m slow tests/chaos -s

The run goes on by itself, recovers once, and ends with the bits of one that nobody disturbed.
"""

from pathlib import Path
from signal import SIGSTOP

import pytest
from trials import EVERY, PHASES, UPDATES, WORKERS, Chaos, Trial, assert_undisturbed, checkpoint_operations, run_trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]  # far more than it takes: a hang says where it stands


def all_trials(chaos: Chaos) -> list[Trial]:
    ranks = range(WORKERS)
    steps = {phase: UPDATES if phase == "evaluation" else EVERY + 1 for phase in PHASES}
    killed = [Trial(phase, rank, steps[phase]) for phase in PHASES for rank in ranks]
    stopped = [Trial(phase, rank, steps[phase], SIGSTOP) for phase in ("H-step send", "evaluation") for rank in ranks]
    return killed + stopped + checkpoint_operations(chaos.home, "step-00000006", "step-00000008")


def test_every_phase_every_worker(chaos: Chaos, tmp_path: Path) -> None:
    """One test, so that one line at its end counts all trials."""
    trials, failures = all_trials(chaos), []
    for number, trial in enumerate(trials, 1):
        run, said = tmp_path / f"{number}", "ok"
        try:
            result, listener = run_trial(trial, chaos.home, chaos.store, run)
            assert result.recoveries == 1, listener.text
            assert_undisturbed(run, chaos.reference)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            failures.append(f"{trial}: {said}")
        print(f"{number}/{len(trials)} {trial}: {said}", flush=True)
    print(f"chaos: {len(trials)} trials, {len(failures)} failures")
    assert len(trials) > 3 * len(PHASES) + 6 + 20
    assert failures == []
