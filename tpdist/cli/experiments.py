"""Commands of many runs: sweeps, the paper's tables, reports, benchmarks, plans."""

import argparse
from pathlib import Path
from typing import Any

from tpdist.cli.options import (
    above,
    add_address,
    add_config,
    add_dry_run,
    add_json_file,
    add_quiet,
    add_set,
    name,
    number,
    print_json,
    print_lines,
    say,
)
from tpdist.errors import Setting, TpdistError
from tpdist.experiments.bench import BENCHES
from tpdist.experiments.modules import write_json_file


def add(commands: Any) -> None:
    """Add them to the subcommands of `tpdist`."""
    sweep = commands.add_parser("sweep", help="try many settings, side by side")
    sweep.add_argument("config", metavar="CONFIG", help="a YAML file with a sweep: section")
    sweep.add_argument(
        "--dir",
        type=name,
        metavar="DIR",
        help="the sweep's directory, default runs/<name>-sweep; the same command resumes there",
    )
    add_address(sweep)
    sweep.add_argument("--retry", action="store_true", help="run failed points again")
    sweep.add_argument("--test", action="store_true", help="then evaluate the best of every arm on the test split")
    add_dry_run(sweep, "which points would run")
    add_quiet(sweep, "the rows")
    add_set(sweep)
    sweep.set_defaults(command=_sweep)

    reproduce = commands.add_parser("reproduce", help="the paper's tables and figures, and ours")
    reproduce.add_argument("what", metavar="WHAT", help="table1, table2, table4, figure3, or another of configs/paper")
    reproduce.add_argument(
        "--cells",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="some cells, such as 'ptb-*-block20'",
    )
    reproduce.add_argument("--device", choices=("auto", "cpu", "cuda"), help="run.device; default the file's")
    reproduce.add_argument(
        "--budget", metavar="TIME", help="end after this time, such as 30m or 8h; the same command resumes"
    )
    reproduce.add_argument("--retry", action="store_true", help="run failed cells again")
    reproduce.add_argument(
        "--test", action="store_true", help="evaluate on the test split what was chosen on validation"
    )
    reproduce.add_argument(
        "--keep", action="store_true", help="write the results into configs/paper/results and the documents"
    )
    add_address(reproduce)
    add_dry_run(reproduce, "which points would run")
    add_quiet(reproduce, "the cells")
    add_set(reproduce)
    reproduce.set_defaults(command=_reproduce)

    report = commands.add_parser("report", help="runs side by side, as one HTML file")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    report.add_argument(
        "--out", type=name, default="report.html", metavar="FILE", help="the file to write; default report.html"
    )
    report.set_defaults(command=_report)

    plot = commands.add_parser("plot", help="the figures of runs as SVG files: curves, residuals, a heat map")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    plot.add_argument(
        "--out",
        type=name,
        default="figures",
        metavar="DIR",
        help="the directory to write into, over files of the same names; default figures",
    )
    plot.set_defaults(command=_plot)

    bench = commands.add_parser("bench", help="measure speed, as ratios").add_subparsers(required=True, metavar="WHAT")
    for what, about in BENCHES.items():
        one = bench.add_parser(what, help=about)
        one.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure on; default cpu")
        add_json_file(one, "ratios, timings, machine and configuration")
        if what == "timeparallel":
            one.add_argument("--longest", type=int, metavar="N", help="tokens of the longest text; default 131072")
        one.set_defaults(command=_bench, what=what)
    scaling = bench.add_parser("scaling", help="weak and strong scaling over workers, bare and under Ray")
    scaling.add_argument("--workers", default="1,2", metavar="N,N", help="numbers of workers; default 1,2")
    add_address(scaling)
    add_json_file(scaling, "ratios, rows, machine and configuration")
    scaling.set_defaults(command=_scaling)

    plan = commands.add_parser("plan", help="what a configuration would cost on many workers")
    add_config(plan)
    plan.add_argument("--workers", type=int, metavar="N", help="default: the configuration's")
    plan.add_argument("--gpu", metavar="NAME", help="a100, h100 or h200; default: this machine, measured")
    plan.add_argument("--link", default="400Gb", metavar="RATE", help="bits a second between workers; default 400Gb")
    plan.add_argument(
        "--latency-us", type=number, default=10.0, metavar="US", help="latency of a message in microseconds; default 10"
    )
    plan.add_argument("--tokens", type=number, metavar="N", help="training tokens; default: those of the store")
    plan.add_argument("--types", type=int, metavar="N", help="token types; default: those of the store")
    plan.add_argument(
        "--share", type=number, default=0.4, help="share of the GPU's peak rate that is reached; default 0.4"
    )
    plan.add_argument("--mtbf-hours", type=number, default=50_000, metavar="H", help="between two failures of a worker")
    plan.add_argument("--price", type=number, metavar="PRICE", help="of an hour of one worker")
    plan.add_argument(
        "--validate", action="store_true", help="forecast against measurement on this machine, and no more"
    )
    add_json_file(plan, "all of it")
    add_set(plan)
    plan.set_defaults(command=_plan)


def _sweep(options: argparse.Namespace) -> None:
    from tpdist.experiments.sweep import dry_run, sweep
    from tpdist.training.progress import Plain, Silent

    if options.dry_run:
        known = {"retry": options.retry, "address": options.address}
        print_lines(dry_run(options.config, options.set, options.dir, **known), options)
        return
    reporter = Silent() if options.quiet or options.json else Plain()
    rows = sweep(options.config, options.set, options.dir, options.address, reporter, options.retry, options.test)
    if options.json:
        print_json(rows)


def _reproduce(options: argparse.Namespace) -> None:
    from tpdist.experiments.reproduce import dry_run, reproduce
    from tpdist.training.progress import Plain, Silent

    changes = above(
        options.set, [] if options.device is None else [Setting(f"run.device={options.device}", "--device")]
    )
    if options.dry_run:
        known = {"retry": options.retry, "test": options.test, "address": options.address}
        print_lines(dry_run(options.what, options.cells, options.budget, changes, **known), options)
        return
    kept = reproduce(
        options.what,
        options.cells,
        options.budget,
        options.keep,
        options.retry,
        options.test,
        changes,
        options.address,
        Silent() if options.quiet or options.json else Plain(),
    )
    if options.json:
        print_json(kept)


def _report(options: argparse.Namespace) -> None:
    from tpdist.experiments.report import report

    report(options.runs, Path(options.out))
    say(options.out)


def _plot(options: argparse.Namespace) -> None:
    from tpdist.experiments.figures import plot

    for file in plot(options.runs, Path(options.out)):
        say(str(file))


def _bench(options: argparse.Namespace) -> None:
    from tpdist.experiments.measure import run
    from tpdist.training.progress import Plain

    longest = getattr(options, "longest", None)
    found = run(options.what, options.device, Plain().say, **({} if longest is None else {"longest": longest}))
    write_json_file(options.json, found)


def _scaling(options: argparse.Namespace) -> None:
    try:
        workers = sorted({int(text) for text in options.workers.split(",")})
    except ValueError:
        workers = []
    if not workers or workers[0] < 1:
        raise TpdistError(f"--workers: must be whole numbers of at least 1, such as 1,2; got {options.workers!r}")
    from tpdist.experiments.bench.scaling import scaling
    from tpdist.training.progress import Plain

    found = scaling(workers, options.address, Plain().say)
    write_json_file(options.json, found)


def _plan(options: argparse.Namespace) -> None:
    from tpdist.config import load_config

    workers = [] if options.workers is None else [Setting(f"cluster.workers={options.workers}", "--workers")]
    overrides = above(options.set, workers)
    config = load_config(options.config, overrides)
    from tpdist.experiments import calibration
    from tpdist.experiments import plan as planner
    from tpdist.training.progress import Plain

    if options.validate:
        found = calibration.validate(Plain().say)
    else:
        link = planner.link_of(options.link, options.latency_us)
        tokens, types = planner.corpus_of(config, options.tokens, options.types)
        assumed = planner.assumed_of(options.share, options.mtbf_hours, options.price)
        found = planner.plan(config, tokens, types, options.gpu, link, assumed, Plain().say)
    write_json_file(options.json, found)
