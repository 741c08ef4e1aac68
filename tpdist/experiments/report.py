"""`tpdist report RUN…`: one HTML file that shows runs side by side. It needs no network and no script.

A table; perplexities and residuals by epoch; the reach of the gradient: how much of a block's loss gradient is left
after it has been pulled back through one block, two blocks, … by the transposed Jacobians, on rolled-out states.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tpdist.config import load_config
from tpdist.data import Store, default_store
from tpdist.errors import RunError
from tpdist.experiments.angles import entered_windows, roll
from tpdist.experiments.svg import chart
from tpdist.parallel import Workers
from tpdist.tprop import plan_epoch
from tpdist.tprop.costate import transpose_product
from tpdist.tprop.objective import blocks_pass, frozen
from tpdist.training.batches import Batches
from tpdist.training.files import write_atomic
from tpdist.training.progress import clock
from tpdist.training.run_dir import RunDirectory

BLOCKS = 8  # that the reach is followed through
WINDOWS = 4
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } svg { max-width: 100%; margin: .5rem 1rem .5rem 0 }
"""


def report(runs: Sequence[str], out: Path) -> None:
    """Write the report of `runs` to `out`. Raises RunError for what is no run or has not ended an epoch."""
    names = _names(runs)
    epochs = {name: _epochs(RunDirectory.open(run)) for name, run in zip(names, runs, strict=True)}
    reached = {name: reach(run) for name, run in zip(names, runs, strict=True)}

    def curve(key: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(row["epoch"], row[key]) for row in rows] for name, rows in epochs.items()}

    charts = [
        chart("Validation perplexity", "epoch", curve("valid_perplexity")),
        chart("Training perplexity", "epoch", curve("perplexity")),
        chart("Primal residual |r|, all boundaries of an epoch", "epoch", curve("primal"), log=True),
        chart("Dual residual |s|", "epoch", curve("dual"), log=True),
        chart("Reach: share of the gradient left", "blocks back", _numbered(reached), log=True),
        chart("Training tokens a second, all workers", "epoch", curve("tokens_per_second")),
    ]
    body = "\n".join(["<h1>tpdist report</h1>", _table(names, runs, epochs), *charts])
    head = f'<meta charset="utf-8"><title>tpdist report</title><style>{STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    write_atomic(out, lambda path: _write(path, page))


def reach(run: str | Path, windows: int = WINDOWS, blocks: int = BLOCKS) -> list[float]:
    """Mean norm of ∂CE_i/∂h_i pulled back through 0, 1, 2, … blocks, as a share of the first; the run's best model."""
    directory = RunDirectory.open(run)
    changes = ["method.name=costate", "objective.weight=0.0", "method.first=forward", "batching.order=sequential"]
    changes += ["batching.mode=minibatch", f"batching.blocks={blocks}", "cluster.workers=1", "cluster.mesh=null"]
    config = load_config(directory.config_file, [*changes, "method.closing=false", "run.device=cpu"])
    store = Store.open(default_store(config.data))
    model = directory.load_model(config, "best", store.manifest)
    batches = Batches(config, store.tokens("train"), Workers.alone().place, torch.device("cpu"), model.bias.dtype)
    plan = plan_epoch(config, 1, batches.per_window)
    sums = torch.zeros(blocks)
    with frozen(model):
        for batch, carried in entered_windows(model, batches, windows):
            window = batch.window
            assert window is not None
            states = roll(model, batch, carried)
            start, nothing = states[:, :-1], torch.zeros_like(states)
            one = blocks_pass(model, plan.loss_alone, window, start, states, nothing, plan.chunk_blocks, to_start=True)
            back = one.start_gradient
            assert back is not None
            for n in range(window.blocks):
                sums[n] += back[:, : window.blocks - n].norm(dim=-1).mean()
                right = torch.cat([back, nothing[:, :1]], 1)
                back = transpose_product(model, window, start, right, plan.chunk_blocks)
    return (sums / sums[0]).tolist()


def _numbered(values: Mapping[str, list[float]]) -> dict[str, list[tuple[float, float]]]:
    return {name: [(float(i), value) for i, value in enumerate(each)] for name, each in values.items()}


def _names(runs: Sequence[str]) -> list[str]:
    """The last part of every path, or the whole path where that is not enough."""
    short = [Path(run).resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def _epochs(run: RunDirectory) -> list[dict[str, Any]]:
    try:
        lines = run.metrics_file.read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run.metrics_file}: cannot be read; did the run begin?") from error
    if not rows:
        raise RunError(f"{run.path}: has not ended an epoch yet")
    return rows


def _table(names: Sequence[str], runs: Sequence[str], epochs: Mapping[str, list[dict[str, Any]]]) -> str:
    head = ["run", "method", "B", "S x K", "λ", "seed", "best validation", "best epoch", "test", "tokens/s", "time"]
    lines = ["".join(f"<th>{name}</th>" for name in head)]
    for name, run in zip(names, runs, strict=True):
        directory = RunDirectory.open(run)
        config, rows = directory.load_config(), epochs[name]
        best = min(rows, key=lambda row: row["valid_loss"])
        test = None
        if directory.result_file.is_file():
            test = json.loads(directory.result_file.read_text(encoding="utf-8"))["test_perplexity"]
        cells = [
            html.escape(name),
            config.method.name,
            str(config.objective.block),
            f"{config.batching.streams} x {'all' if config.batching.mode == 'batch' else config.batching.blocks}",
            f"{config.objective.weight:g}",
            str(config.run.seed),
            f"{best['valid_perplexity']:.2f}",
            str(best["epoch"]),
            "" if test is None else f"{test:.2f}",
            f"{rows[-1]['tokens_per_second']:,.0f}",
            clock(rows[-1]["seconds"]),
        ]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
