"""The figures of a run, or of several side by side, from their metrics.jsonl; `tpdist plot` writes them as files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpdist.errors import RunError
from tpdist.experiments.results import Row
from tpdist.experiments.svg import bars, chart, heat, standalone
from tpdist.experiments.table import described
from tpdist.training.files import write_text
from tpdist.training.run_dir import RunDirectory

ROUNDING = 1e-5  # a residual of no more comes from float32 alone
CURVES = {  # title, column of an epoch's row, whether its axis is logarithmic, caption
    "validation": ("Validation perplexity", "valid_perplexity", False,
                   "exp of the mean loss in nats per token, θ frozen, rolled out exactly."),
    "training": ("Training perplexity", "perplexity", False, "The same over the epoch's updates, while θ moved."),
    "primal": ("Primal residual ‖r‖", "primal", True,
               "‖h - ĥ‖ over all boundaries of an epoch: how far the constraint is from holding; where H-steps leave "
               "starts where they were (starts: held), how far they move the targets, about the costates over λ."),
    "dual": ("Dual residual ‖s‖", "dual", True, "λ‖Δĥ‖ over the passes of a visit."),
    "speed": ("Training tokens a second, all workers", "tokens_per_second", False,
              "Training alone, without evaluation."),
}  # fmt: skip
NEEDED = ("epoch", "valid_loss", "valid_perplexity", "tokens_per_second", "seconds")  # of an epoch's row
WORKERS = {
    "workers-speed": ("Tokens a second, by worker", "worker_tokens_per_second",
                      "Of each worker's own blocks, since the run was last started."),
    "workers-waiting": ("Share of the time waited, by worker", "worker_waiting",
                        "For neighbours and for the sum of gradients. The others wait for who waits least."),
}  # fmt: skip


def plot(runs: Sequence[str], out: Path) -> list[Path]:
    """Write every figure of `runs` to `out`/<figure>.svg, over those of that name; the files.

    Raises RunError for what is no run or has not ended an epoch, or where it cannot write.
    """
    drawn = figures(read_runs(runs_of(runs)))
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: is a file; give a directory")
    files = {out / f"{name}.svg": standalone(drawing) for name, drawing in drawn.items()}
    for file, text in files.items():
        save(file, text)
    return list(files)


def figures(epochs: Mapping[str, list[Row]]) -> dict[str, str]:
    """SVG text by the figure's name, without those that have nothing to show. epochs: the epoch rows of every run."""

    def curve(key: str) -> dict[str, list[tuple[float, float | None]]]:
        return {run: [(row["epoch"], row.get(key)) for row in rows] for run, rows in epochs.items()}

    found = {name: chart(title, "epoch", curve(key), log) for name, (title, key, log, _) in CURVES.items()}
    for run, rows in epochs.items():
        cells = [(row["epoch"], row.get("residuals", [])) for row in rows]
        if any(value is not None and value > ROUNDING for _, column in cells for value in column):
            name = "residuals" if len(epochs) == 1 else f"residuals-{'-'.join(run.replace('/', '-').split())}"
            found[name] = heat(f"Residual by place in the window: {run}", "epoch", cells)
    for name, (title, key, _) in WORKERS.items():
        last = {run: list(enumerate(rows[-1].get(key, []))) for run, rows in epochs.items()}
        found[name] = bars(title, "rank", last)
    return {name: drawing for name, drawing in found.items() if drawing.startswith("<svg")}


def runs_of(paths: Sequence[str]) -> list[str]:
    """The runs at `paths`; a sweep's directory stands for those of its points that are done, in its table's order."""
    found: list[str] = []
    for path in paths:
        points = Path(path) / "points"
        if not points.is_dir():
            found.append(path)
            continue
        done = sorted(str(file.parent) for file in points.glob("*/result.json"))
        if not done:
            raise RunError(f"{path}: none of the sweep's points is done")
        order = {point: number for number, point in enumerate(described(Path(path)))}
        found += sorted(done, key=lambda run: order.get(Path(run).name, len(order)))
    return found


def read_runs(runs: Sequence[str]) -> dict[str, list[Row]]:
    """Epoch rows by the run's name: the last part of its path, or all of it where that is not enough.

    A sweep's point is called what the sweep calls it, by arm, settings and seed.
    """
    twice = next((run for run in runs if runs.count(run) > 1), None)
    if twice is not None:
        raise RunError(f"{twice}: is given twice; give every run once")
    opened = [RunDirectory.open(run) for run in runs]
    paths = [run.path.resolve() for run in opened]
    points = {home: described(home) for home in {path.parent.parent for path in paths if path.parent.name == "points"}}
    short = [points.get(path.parent.parent, {}).get(path.name, path.name) for path in paths]
    names = [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]
    return {name: _epochs(run) for name, run in zip(names, opened, strict=True)}


def _epochs(run: RunDirectory) -> list[Row]:
    try:
        rows = [row for row in run.rows() if row["kind"] == "epoch"]
    except OSError as error:
        raise RunError(f"{run.metrics_file}: cannot be read: {error.strerror}") from error
    if not rows:
        raise RunError(f"{run.path}: has not ended an epoch yet; leave it out")
    for name in NEEDED:
        if any(row.get(name) is None for row in rows):
            raise RunError(f"{run.metrics_file}: an epoch's row is without {name}; the file is damaged, leave it out")
    return rows


def save(file: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises RunError where the system refuses.

    A link stays one, and its target is written; what is no regular file, such as a FIFO, is written into as it is.
    """
    try:
        if file.is_dir():
            raise RunError(f"{file}: is a directory; name a file in it")
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        target = Path(os.path.realpath(file))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror}") from error
