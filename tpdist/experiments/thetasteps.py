"""Training loss against the number of θ-steps, arm by arm: Section 2.1's condition for a speed-up.

`python -m tpdist.experiments.thetasteps SWEEP`: the runs of a sweep's directory, from what they logged. H-steps cost
time, and blocks in parallel save it, so the method is faster only if H-steps leave fewer θ-steps to do.
"""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tpdist.errors import TpdistError
from tpdist.experiments.modules import ended, json_file, write_json_file
from tpdist.experiments.testtime import chosen_runs
from tpdist.training.run_dir import RunDirectory

STEPS = (100, 200, 400, 700, 1000, 1500)


def losses(rows: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Mean training loss, in nats a token, of the updates up to every θ-step that was logged since the one before.

    rows: of metrics.jsonl. Each has the mean since its epoch began.
    """
    found: dict[int, float] = {}
    epoch = begin = last = 0
    total = 0.0
    for row in rows:
        if row["kind"] not in ("step", "epoch") or row["loss"] is None:  # all of the epoch was skipped until then
            continue
        if row["epoch"] != epoch:
            epoch, begin, total = row["epoch"], last, 0.0
        if row["step"] > last:
            now = row["loss"] * (row["step"] - begin)
            found[row["step"]] = (now - total) / (row["step"] - last)
            last, total = row["step"], now
    return found


def theta_steps(sweep: Path, steps: Sequence[int] = STEPS) -> dict[str, Any]:
    """Of the setting that every arm has chosen: the seeds whose runs have ended, and their losses at `steps`."""
    arms: dict[str, dict[str, Any]] = {}
    for name, rows in sorted(chosen_runs(sweep, []).items()):
        arm = arms[name] = {"seeds": [], "losses": {str(step): [] for step in steps}}
        for row in sorted(rows, key=lambda row: row["seed"]):
            run = sweep / "points" / row["point"]
            reached = losses(RunDirectory(run).rows())
            arm["seeds"].append(row["seed"])
            for step in steps:
                if step not in reached:
                    raise TpdistError(f"{run}: logged no loss at θ-step {step}; choose {', '.join(map(str, reached))}")
                arm["losses"][str(step)].append(round(reached[step], 4))
    options = [] if tuple(steps) == STEPS else ["--steps", *map(str, steps)]
    command = shlex.join(["python", "-m", "tpdist.experiments.thetasteps", str(sweep), *options])
    return {"command": command, "theta_steps": arms}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tpdist.experiments.thetasteps", description=__doc__)
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's directory, such as runs/reproduce-small-why")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, metavar="N")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write it here")
    options = parser.parse_args()
    found = theta_steps(Path(options.sweep), options.steps)
    for name, arm in found["theta_steps"].items():
        means = (sum(values) / len(values) for values in arm["losses"].values())
        print(f"{name:<40} " + "  ".join(f"{mean:.3f}" for mean in means))
    write_json_file(options.json, found)


if __name__ == "__main__":
    raise SystemExit(ended(main))
