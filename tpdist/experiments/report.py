"""`tpdist report RUN…`: one HTML file that shows runs side by side. It needs no network and no script.

A table; the figures of `figures.py`; the reach of the gradient: how much of a block's loss gradient is left after it
has been pulled back through one block, two blocks, … by the transposed Jacobians, on rolled-out states.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tpdist.config import Experiment
from tpdist.errors import RunError, TpdistError
from tpdist.experiments.angles import entered_windows, opened, roll
from tpdist.experiments.figures import CURVES, WORKERS, Row, figures, read_runs, runs_of, save
from tpdist.experiments.svg import chart, style
from tpdist.tprop import Alone, plan_epoch
from tpdist.tprop.costate import sweep
from tpdist.tprop.objective import blocks_pass, frozen
from tpdist.training.changes import changes
from tpdist.training.files import read_json
from tpdist.training.progress import clock
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trackers import flat

BLOCKS = 8  # that the reach is followed through
WINDOWS = 4
CAPTIONS = {
    **{name: caption for name, (*_, caption) in (CURVES | WORKERS).items()},
    "residuals": "‖h - ĥ‖ by place in the window, its first boundary at the bottom. In long windows neighbours share a "
    "place.",
    "reach": "The share of a block's loss gradient that is left, pulled back through so many blocks.",
}
STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #5a5a5a; --line: #ddd; --ground: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --faint: #a8a8a8; --line: #3a3f47; --ground: #16181d } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 1.5rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--ground) }
h1 { font-size: 1.4rem; margin: 0 0 .5rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { font-weight: 600 } td:first-child, th:first-child { text-align: left; padding-left: 0; color: var(--faint);
       position: sticky; left: 0; background: var(--ground) }
.figures { display: grid; gap: 1.2rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
figure { margin: 0 } svg { width: 100%; height: auto } figcaption { color: var(--faint); font-size: .85rem }
"""


def report(runs: Sequence[str], out: Path) -> None:
    """Write the report of `runs` to `out`; a sweep's directory stands for its points.

    Raises RunError for what is no run or has not ended an epoch, or where it cannot write. A run whose model or corpus
    is not at hand has its curves all the same.
    """
    runs = runs_of(runs)
    epochs = read_runs(runs)
    homes = dict(zip(epochs, map(RunDirectory.open, runs), strict=True))
    configs = {name: home.load_config() for name, home in homes.items()}
    reached, missing = {}, []
    for name, home in homes.items():
        try:
            reached[name] = list(enumerate(reach(home.path)))
        except TpdistError as error:
            missing.append(f"<p>Not in the reach of the gradient: {html.escape(f'{name}: {error}')}</p>\n")
    drawn = figures(epochs) | {"reach": chart("Reach of the gradient", "blocks back", reached, log=True)}
    title = ", ".join(epochs) if len(epochs) < 4 else f"{len(epochs)} runs"
    shown = "".join(
        f"<figure>{drawing}<figcaption>{html.escape(_caption(name))}</figcaption></figure>\n"
        for name, drawing in drawn.items()
    )
    body = [f"<h1>{html.escape(title)}</h1>", _table(homes, epochs, configs), _differences(configs), _changed(homes)]
    body.append(f'<h2>Figures</h2>\n<div class="figures">\n{shown}</div>\n{"".join(missing)}')
    sizes = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{sizes}<title>{html.escape(title)} - tpdist</title><style>{STYLE}{style()}</style>"
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{"".join(body)}\n</body></html>\n'
    save(out, page)


def reach(run: str | Path, windows: int = WINDOWS, blocks: int = BLOCKS) -> list[float]:
    """Mean norm of ∂CE_i/∂h_i pulled back through 0, 1, 2, … blocks, as a share of the first; the run's best model."""
    fixed = ["method.name=costate", "objective.weight=0.0", "method.first=forward", "batching.order=sequential"]
    fixed += ["batching.mode=minibatch", f"batching.blocks={blocks}", "cluster.workers=1", "cluster.mesh=null"]
    fixed += ["batching.recompute=false", "method.closing=false", "method.edge_costate=zero", "run.device=cpu"]
    # a block's own loss, all of it; and no penalty, whose code may not be here
    fixed += ["objective.loss_on=prediction", "objective.penalty=l2"]
    config, model, batches = opened(RunDirectory.open(run), fixed)
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
                own = torch.zeros_like(back)
                back = sweep(model, window, start, right, own, plan.chunk_blocks, Alone())[:, :-1]
    return (sums / sums[0]).tolist()


def _caption(name: str) -> str:
    return CAPTIONS["residuals" if name.startswith("residuals") else name]


def _table(
    homes: Mapping[str, RunDirectory], epochs: Mapping[str, list[Row]], configs: Mapping[str, Experiment]
) -> str:
    columns = []
    for name, home in homes.items():
        config, rows = configs[name], epochs[name]
        best = min(rows, key=lambda row: row["valid_loss"])
        test, file = None, home.result_file
        if file.is_file():
            try:
                test = read_json(file)["test_perplexity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RunError(f"{file}: is damaged; leave the run out, or go on with it to write it anew") from error
        columns.append(
            {
                "method": config.method.known_as,
                "B": str(config.objective.block),
                "S x K": f"{config.batching.streams} x "
                f"{'all' if config.batching.mode == 'batch' else config.batching.blocks}",
                "λ": f"{config.objective.weight:g}",
                "seed": str(config.run.seed),
                "valid ppl": f"{best['valid_perplexity']:.2f}",
                "of epoch": f"{best['epoch']} of {rows[-1]['epoch']}",
                "test ppl": "" if test is None else f"{test:.2f}",
                "tokens/s": f"{rows[-1]['tokens_per_second']:,.0f}",
                "time": clock(rows[-1]["seconds"]),
            }
        )
    return _rows(["run", *configs], [[name, *(column[name] for column in columns)] for name in columns[0]])


def _differences(configs: Mapping[str, Experiment]) -> str:
    """The settings in which the runs differ, if there are several runs and any."""
    settings = [dict(flat(config.model_dump(mode="json"))) for config in configs.values()]
    every = dict.fromkeys(key for one in settings for key in one)
    keys = [key for key in every if len({str(one.get(key)) for one in settings}) > 1]
    if not keys:
        return ""
    lines = [[key, *("" if key not in one else _text(one[key]) for one in settings)] for key in keys]
    return f"<h2>Settings that differ</h2>\n{_rows(['setting', *configs], lines)}"


def _changed(homes: Mapping[str, RunDirectory]) -> str:
    """The settings that were changed where runs went on, which their other rows know as they are now."""
    lines = [
        [name, f"{change['step']:,}", change["setting"], _text(change["was"]), _text(change["now"])]
        for name, home in homes.items()
        for change in changes(home)
    ]
    if not lines:
        return ""
    return f"<h2>Settings changed on the way</h2>\n{_rows(['run', 'from step', 'setting', 'was', 'now'], lines)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{row("th", head)}{"".join(row("td", line) for line in lines)}</table></div>\n'
