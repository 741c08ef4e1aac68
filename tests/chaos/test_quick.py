"""A worker dies, and the run goes on by itself to the bits of one that nobody disturbed. All cases: test_phases.py."""

import json
import re
from pathlib import Path

import pytest
from trials import Chaos, Trial, assert_undisturbed, run_trial

from tpdist.launch.crew import WorkerFailedError


@pytest.mark.parametrize(
    ("trial", "began"),
    [
        (Trial("H-step receive", 1, step=1), {0}),  # nothing is saved yet: from the beginning
        # a checkpoint may still be on its way to the disk: then the one before it counts
        (Trial("all-reduce", 0, step=4), {0, 2}),  # the leader
        (Trial("evaluation", 2, step=5), {2, 4}),
    ],
    ids=str,
)
def test_a_worker_is_killed(trial: Trial, began: set[int], chaos: Chaos, tmp_path: Path) -> None:
    result, listener = run_trial(trial, chaos.home, chaos.store, tmp_path / "run")
    assert result.recoveries == 1
    assert json.loads((tmp_path / "run/result.json").read_text())["recoveries"] == 1
    told = [line for line in listener.said if " died" in line]
    assert len(told) == 1
    assert f"worker {trial.rank} (" in told[0]
    # on a busy machine a survivor may hang in Gloo for longer than it is waited for: then it is replaced too
    went_on = re.search(r": (\d) new, (\d) kept, 3 workers went on from step (\d+) after ", told[0])
    assert went_on, told[0]
    assert int(went_on[1]) >= 1
    assert int(went_on[1]) + int(went_on[2]) == 3
    assert int(went_on[3]) in began
    assert_undisturbed(tmp_path / "run", chaos.reference)


def test_the_users_own_error_is_not_retried(chaos: Chaos, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError, match=r"a worker failed; its log is in \S+/logs\n.*(?s:.*)KeyError: 'own'"):
        run_trial(Trial("dual update", 1, raises="own"), chaos.home, chaos.store, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run/checkpoints").glob("step-*")} <= {"step-00000002"}
