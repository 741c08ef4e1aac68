"""Training loss against the number of θ-steps, arm by arm: Section 2.1's condition for a speed-up.

`python -m tpdist.experiments.thetasteps SWEEP`: the runs of a sweep's directory, from what they logged. H-steps cost
time, and blocks in parallel save it, so the method is faster only if H-steps leave fewer θ-steps to do.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tpdist.errors import TpdistError
from tpdist.experiments.modules import ended, json_file
from tpdist.training.files import write_json

STEPS = (100, 200, 400, 700, 1000, 1500)


def losses(rows: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Mean training loss, in nats a token, of the updates up to every θ-step that was logged since the one before.

    rows: of metrics.jsonl. Each has the mean since its epoch began.
    """
    found: dict[int, float] = {}
    epoch = begin = last = 0
    total = 0.0
    for row in rows:
        if row["kind"] not in ("step", "epoch"):
            continue
        if row["epoch"] != epoch:
            epoch, begin, total = row["epoch"], last, 0.0
        if row["step"] > last:
            now = row["loss"] * (row["step"] - begin)
            found[row["step"]] = (now - total) / (row["step"] - last)
            last, total = row["step"], now
    return found


def theta_steps(sweep: Path, steps: Sequence[int] = STEPS) -> dict[str, Any]:
    """Of every arm whose runs have ended: seeds, and the losses at `steps`, a list over seeds each."""
    arms: dict[str, dict[str, Any]] = {}
    for run in sorted((sweep / "points").glob("*-seed*")):
        name = re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]+", run.name)
        if name is None or not (run / "result.json").is_file():
            continue
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        reached = losses(map(json.loads, lines))
        arm = arms.setdefault(name[1], {"seeds": [], "losses": {str(step): [] for step in steps}})
        arm["seeds"].append(int(name[2]))
        for step in steps:
            if step not in reached:
                raise TpdistError(f"{run}: logged no loss at θ-step {step}; choose {', '.join(map(str, reached))}")
            arm["losses"][str(step)].append(round(reached[step], 4))
    if not arms:
        raise TpdistError(f"{sweep}: holds no run of a sweep that has ended")
    return {"command": f"python -m tpdist.experiments.thetasteps {sweep}", "theta_steps": arms}


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
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    raise SystemExit(ended(main))
