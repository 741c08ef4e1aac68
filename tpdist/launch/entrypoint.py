"""What a job runs on the cluster, as one line of `sh`; what its log says at the end."""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from ray.job_submission import JobDetails

RESULT_MARK = "TPDIST_RESULT "
SHARED = "$TPDIST_SHARED"  # the cluster's directory for runs and stores, which the cluster fills in
# what Ray's job manager and the job's command write for others than the user
NOT_SHOWN = re.compile(rf"{RESULT_MARK}|Running entrypoint for job |[-0-9]+ [0-9:,]+\tINFO job_manager\.py:")
ERROR_LINES = 20


def entrypoint_of(config: str | None, overrides: Sequence[str], run_dir: str, command: str = "tpdist train") -> str:
    """The job as one line of `sh`. A leading `$TPDIST_SHARED` in `run_dir` or a value is the cluster's to fill in.

    config: None for the run in `run_dir`, which goes on.
    """
    sets = " ".join(["--set", *map(_quote, overrides)]) if overrides else ""
    run = '--resume "$run"' if config is None else f'{shlex.quote(config)} --run-dir "$run"'
    # Ray ends a job by SIGTERM to every process: the shell waits for the training, which saves everything first
    return (
        'trap : TERM; export TPDIST_SHARED="${TPDIST_SHARED:-$HOME/tpdist}"; mkdir -p "$TPDIST_SHARED/runs"; '
        f"run={_quote(run_dir)}; {command} {run} --address auto {sets}; code=$?; "
        '[ $code -eq 0 ] && [ -f "$run/result.json" ] && '
        f'printf "\\n{RESULT_MARK}%s\\n" "$(tr -d "\\n" < "$run/result.json")"; '
        '[ -d "$run" ] && echo "run: $run"; exit $code'
    )


def find_result(log: str) -> dict[str, Any] | None:
    """What the job's last result line holds; None where there is none, or not a run's."""
    lines = [line.removeprefix(RESULT_MARK) for line in log.splitlines() if line.startswith(RESULT_MARK)]
    try:
        result = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return result if isinstance(result, dict) and "run" in result else None


def failure(log: str, details: JobDetails) -> str:
    """What to tell of a job that failed: its own error first."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    lines = [line for line in lines if not NOT_SHOWN.match(line) and not line.startswith("run: ")]
    starts = [i for i, line in enumerate(lines) if line.startswith(("tpdist: ", "Traceback (most recent call last)"))]
    told = lines[starts[-1] :] if starts else lines
    code = details.driver_exit_code
    ended = f"job {details.submission_id} failed" + (f" with exit code {code}" if code is not None else "")
    if code == 127:
        ended += ": tpdist is not installed on the cluster's head, or not on the PATH of its `ray start`"
    elif code is None and details.message:
        ended += f": {details.message.strip()}"
    return "\n".join([*told[-ERROR_LINES:], ended])


def _quote(value: str) -> str:
    """For `sh`; only a `$TPDIST_SHARED` that begins the value, or what follows its first `=`, is filled in there."""
    head, equals, tail = value.partition("=")
    if not value.startswith(SHARED) and equals and tail.startswith(SHARED):
        return shlex.quote(f"{head}=") + _quote(tail)
    if value.startswith(SHARED):
        return f'"{SHARED}"' + shlex.quote(value.removeprefix(SHARED))
    return shlex.quote(value)
