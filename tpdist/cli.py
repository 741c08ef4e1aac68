"""The front door: `tpdist COMMAND`. Reads the command line, calls the rooms below, prints. No logic."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tpdist import __version__
from tpdist.cli_runs import add_run_commands
from tpdist.errors import TpdistError
from tpdist.examples import examples_of

BENCHES = {
    "step": "an update against that of a plain loop of nn.GRU, nn.Linear, cross_entropy",
    "head": "the output head against linear + cross_entropy, time and memory",
    "batch": "batch mode against the machine's own matrix products; how its memory grows",
    "overlap": "the share of a step that 2 workers wait for each other",
    "timeparallel": "one gradient over a long text, all blocks at once, against BPTT",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 something to mend, 2 bad input, 3 a number that is not finite, 130 stopped by the user."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        from tpdist.completion import complete

        complete(parser)
    options = parser.parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except TpdistError as error:
        print(f"tpdist: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # nobody reads any more (`| head`); what else is printed at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("tpdist: interrupted", file=sys.stderr)
        return 130
    return code or 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; help ends with examples."""

    def format_help(self) -> str:
        return super().format_help() + examples_of(self.prog)

    def error(self, message: str) -> NoReturn:
        print(f"tpdist: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tpdist", description="Train recurrent language models by target propagation.")
    parser.add_argument("--version", action="version", version=f"tpdist {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a model", description="Train from a YAML file, or go on with a run."
    )
    train.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    train.add_argument("--resume", metavar="RUN", help="continue the run in this directory")
    train.add_argument("--run-dir", metavar="DIR", help="where the run goes; default runs/<name>-<time>")
    train.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster: auto, or host:port; default an embedded one"
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="write a timeline of 5 updates to the run's profile/, for ui.perfetto.dev",
    )
    _add_set(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="perplexity of a run's model")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="valid")
    evaluate.add_argument(
        "--h-steps", type=int, default=0, metavar="N", help="steps on past h at test time (Section 4.1)"
    )
    evaluate.add_argument("--h-lr", type=float, default=0.1, metavar="LR", help="their size; default 0.1")
    evaluate.add_argument("--by-position", action="store_true", help="perplexity at every position of a block too")
    evaluate.add_argument("--model", choices=("best", "last"), default="best")
    _add_set(evaluate)
    evaluate.set_defaults(command=_evaluate)

    sample = commands.add_parser("sample", help="text from a run's model")
    sample.add_argument("run", metavar="RUN")
    sample.add_argument("--prompt", default="")
    sample.add_argument("--tokens", type=int, default=100, metavar="N")
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest types")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--model", choices=("best", "last"), default="best")
    _add_set(sample)
    sample.set_defaults(command=_sample)

    add_run_commands(commands, _add_set)

    submit = commands.add_parser("submit", help="train on a cluster, as a Ray job")
    submit.add_argument("config", metavar="CONFIG")
    submit.add_argument("--address", metavar="URL", help="the cluster's dashboard; default http://127.0.0.1:8265")
    submit.add_argument("--working-dir", default=".", metavar="DIR", help="what travels to the cluster; default .")
    submit.add_argument("--run-dir", metavar="DIR", help="the run there; default $TPDIST_SHARED/runs/<job>")
    submit.add_argument("--fetch-to", default="runs/fetched", metavar="DIR", help="where result.json goes here")
    submit.add_argument("--no-follow", action="store_true", help="hand over and return")
    _add_set(submit)
    submit.set_defaults(command=_submit)

    jobs = commands.add_parser("jobs", help="the runs submitted to a cluster")
    jobs.add_argument("--address", metavar="URL", help="the cluster's dashboard; default http://127.0.0.1:8265")
    jobs.set_defaults(command=_jobs)

    stop = commands.add_parser("stop", help="save a submitted run and end it")
    stop.add_argument("job", metavar="JOB")
    stop.add_argument("--address", metavar="URL", help="the cluster's dashboard; default http://127.0.0.1:8265")
    stop.set_defaults(command=_stop)

    sweep = commands.add_parser("sweep", help="try many settings, side by side")
    sweep.add_argument("config", metavar="CONFIG", help="a YAML file with a sweep: section")
    sweep.add_argument("--dir", metavar="DIR", help="where it goes and is gone on with; default runs/<name>-sweep")
    sweep.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster: auto, or host:port; default an embedded one"
    )
    sweep.add_argument("--retry", action="store_true", help="run points again that have failed")
    sweep.add_argument("--test", action="store_true", help="then evaluate the best of every arm on the test split")
    _add_set(sweep)
    sweep.set_defaults(command=_sweep)

    reproduce = commands.add_parser("reproduce", help="the paper's tables and figures, and ours")
    reproduce.add_argument("what", metavar="WHAT", help="table1, table2, table4, figure3, or another of configs/paper")
    reproduce.add_argument(
        "--cells", nargs="+", default=[], metavar="PATTERN", help="some cells, such as 'ptb-*-block20'"
    )
    reproduce.add_argument("--device", choices=("auto", "cpu", "cuda"))
    reproduce.add_argument("--budget", metavar="TIME", help="end after this time, such as 30m or 8h; goes on next time")
    reproduce.add_argument("--test", action="store_true", help="evaluate what was chosen on the test split")
    reproduce.add_argument("--keep", action="store_true", help="into configs/paper/results and RESULTS.md")
    reproduce.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster: auto, or host:port; default an embedded one"
    )
    _add_set(reproduce)
    reproduce.set_defaults(command=_reproduce)

    report = commands.add_parser("report", help="runs side by side, as one HTML file")
    report.add_argument("runs", nargs="+", metavar="RUN")
    report.add_argument("--out", default="report.html", metavar="FILE", help="default report.html")
    report.set_defaults(command=_report)

    bench = commands.add_parser("bench", help="measure speed, as ratios").add_subparsers(required=True, metavar="WHAT")
    for what, about in BENCHES.items():
        one = bench.add_parser(what, help=about)
        one.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        one.add_argument("--json", metavar="FILE", help="write ratios, timings, machine and configuration here")
        one.set_defaults(command=_bench, what=what)
    scaling = bench.add_parser("scaling", help="weak and strong scaling over workers, bare and under Ray")
    scaling.add_argument("--workers", default="1,2", metavar="N,N", help="numbers of workers; default 1,2")
    scaling.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster: auto, or host:port; default embedded ones"
    )
    scaling.add_argument("--json", metavar="FILE", help="write ratios, rows, machine and configuration here")
    scaling.set_defaults(command=_scaling)

    plan = commands.add_parser("plan", help="what a configuration would cost on many workers")
    plan.add_argument("config", nargs="?", metavar="CONFIG")
    plan.add_argument("--workers", type=int, metavar="N", help="default: the configuration's")
    plan.add_argument("--gpu", metavar="NAME", help="a100, h100 or h200; default: this machine, measured")
    plan.add_argument("--link", default="400Gb", metavar="RATE", help="bits a second between workers; default 400Gb")
    plan.add_argument("--latency-us", type=float, default=10.0, metavar="US", help="of a message; default 10")
    plan.add_argument("--tokens", type=float, metavar="N", help="training tokens; default: those of the store")
    plan.add_argument("--types", type=int, metavar="N", help="token types; default: those of the store")
    plan.add_argument("--share", type=float, default=0.4, help="of the GPU's peak that is reached; default 0.4")
    plan.add_argument("--mtbf-hours", type=float, default=50_000, metavar="H", help="a worker's, between two failures")
    plan.add_argument("--price", type=float, metavar="PRICE", help="of a worker's hour")
    plan.add_argument(
        "--validate", action="store_true", help="forecast against measurement on this machine, and no more"
    )
    plan.add_argument("--json", metavar="FILE", help="write all of it here")
    _add_set(plan)
    plan.set_defaults(command=_plan)

    data = commands.add_parser("data", help="prepare a corpus").add_subparsers(required=True, metavar="COMMAND")
    prepare = data.add_parser("prepare", help="turn text into a store")
    prepare.add_argument("recipe", choices=("ptb", "wikitext", "text8", "text", "python-docs", "synthetic"))
    prepare.add_argument("--out", required=True, metavar="DIR", help="the store's directory; must not exist")
    prepare.add_argument("--source", metavar="PATH", help="ptb, wikitext: the directory; text8: the file")
    for split in ("train", "valid", "test"):
        prepare.add_argument(f"--{split}", metavar="FILE", help=f"recipe text: the {split} file, text or Parquet")
    prepare.add_argument("--level", choices=("word", "char"))
    prepare.add_argument("--max-types", metavar="N", help="keep the N most frequent types")
    prepare.add_argument("--min-count", metavar="N", help="drop types rarer than N")
    prepare.add_argument("--max-tokens", metavar="N", help="keep the first N tokens of the training split")
    prepare.add_argument("--column", help="the text column of Parquet files; default text")
    _add_set(prepare)
    prepare.set_defaults(command=_prepare)
    verify = data.add_parser("verify", help="read a store through and check it")
    verify.add_argument("store", metavar="DIR")
    verify.set_defaults(command=_verify)

    config = commands.add_parser("config", help="look at configurations").add_subparsers(
        required=True, metavar="COMMAND"
    )
    show = config.add_parser("show", help="print the resolved configuration")
    show.add_argument("config", nargs="?", metavar="CONFIG")
    _add_set(show)
    show.set_defaults(command=_show)
    schema = config.add_parser("schema", help="print a JSON Schema for editors")
    schema.set_defaults(command=_schema)
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the file")


def _train(options: argparse.Namespace) -> None:
    if (options.config is None) == (options.resume is None):
        raise TpdistError("train: give a configuration file (before --set), or --resume RUN, and not both")
    if options.resume is not None and options.run_dir is not None:
        raise TpdistError("train: --resume goes on in the run's own directory; leave --run-dir out")
    from tpdist.config import load_config

    overrides = [*options.set, "run.profile=5"] if options.profile else options.set
    config = load_config(options.config, overrides) if options.resume is None else None
    from tpdist.launch.local import resume, train
    from tpdist.training.progress import DataBar, reporter

    with DataBar() as bar:
        if config is not None:
            train(config, options.run_dir, reporter(), bar, options.address)
        else:
            resume(str(options.resume), overrides, reporter(), bar, options.address)


def _evaluate(options: argparse.Namespace) -> None:
    from tpdist.launch.local import evaluate

    result = evaluate(
        options.run,
        options.split,
        h_steps=options.h_steps,
        h_lr=options.h_lr,
        by_position=options.by_position,
        which=options.model,
        overrides=options.set,
    )
    print(f"{options.split} perplexity {result.perplexity:.2f} over {result.tokens:,} tokens")
    for position, value in enumerate(result.by_position or []):
        print(f"  position {position:>3}  {value:.2f}")


def _sample(options: argparse.Namespace) -> None:
    from tpdist.launch.local import sample

    print(
        sample(
            options.run,
            options.prompt,
            tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
            which=options.model,
            overrides=options.set,
        )
    )


def _submit(options: argparse.Namespace) -> None:
    from tpdist.launch.jobs import submit

    submit(
        options.config,
        options.set,
        options.address,
        options.working_dir,
        follow=not options.no_follow,
        fetch_to=options.fetch_to,
        run_dir=options.run_dir,
    )


def _jobs(options: argparse.Namespace) -> None:
    from tpdist.launch.jobs import jobs

    for job in jobs(options.address):
        started = f"{job.started:%Y-%m-%d %H:%M:%S}" if job.started else "-"
        print(f"{job.job}  {job.status:<9}  {started}  {job.seconds or 0:8.0f} s  {job.command}")


def _stop(options: argparse.Namespace) -> None:
    from tpdist.launch.jobs import stop

    print(f"{options.job}: " + ("told to save and end" if stop(options.job, options.address) else "had ended already"))


def _sweep(options: argparse.Namespace) -> None:
    from tpdist.experiments.sweep import sweep
    from tpdist.training.progress import Plain

    sweep(options.config, options.set, options.dir, options.address, Plain(), options.retry, options.test)


def _bench(options: argparse.Namespace) -> None:
    from tpdist.experiments.measure import run
    from tpdist.training.files import write_json

    found = run(options.what, options.device, print)
    if options.json:
        write_json(Path(options.json), found)


def _reproduce(options: argparse.Namespace) -> None:
    from tpdist.experiments.reproduce import reproduce
    from tpdist.training.progress import Plain

    reproduce(
        options.what,
        options.cells,
        options.device,
        options.budget,
        options.keep,
        options.test,
        options.set,
        options.address,
        Plain(),
    )


def _plan(options: argparse.Namespace) -> None:
    from tpdist.config import load_config

    overrides = [*options.set, *([f"cluster.workers={options.workers}"] if options.workers is not None else [])]
    config = load_config(options.config, overrides)
    from tpdist.experiments import calibration
    from tpdist.experiments import plan as planner
    from tpdist.training.files import write_json

    if options.validate:
        found = calibration.validate(print)
    else:
        link = planner.link_of(options.link, options.latency_us)
        tokens, types = planner.corpus_of(config, options.tokens, options.types)
        assumed = planner.Assumed(share=options.share, mtbf_hours=options.mtbf_hours, price=options.price)
        found = planner.plan(config, tokens, types, options.gpu, link, assumed, print)
    if options.json:
        write_json(Path(options.json), found)


def _report(options: argparse.Namespace) -> None:
    from tpdist.experiments.report import report

    report(options.runs, Path(options.out))
    print(options.out)


def _scaling(options: argparse.Namespace) -> None:
    try:
        workers = sorted({int(text) for text in options.workers.split(",")})
    except ValueError:
        workers = []
    if not workers or workers[0] < 1:
        raise TpdistError(f"--workers: must be whole numbers of at least 1, such as 1,2; got {options.workers!r}")
    from tpdist.experiments.scaling import scaling
    from tpdist.training.files import write_json

    found = scaling(workers, options.address, print)
    if options.json:
        write_json(Path(options.json), found)


def _prepare(options: argparse.Namespace) -> None:
    names = ["recipe", "source", "train", "valid", "test", "level", "max_types", "min_count", "max_tokens", "column"]
    given = {name: getattr(options, name) for name in names}
    overrides = [f"data.{name}={value}" for name, value in given.items() if value is not None]
    from tpdist.config import load_config

    config = load_config(None, [*overrides, *options.set])
    from tpdist.data import prepare
    from tpdist.training.progress import DataBar

    with DataBar() as bar:
        store = prepare(config.data, Path(options.out), bar)
    counts = ", ".join(f"{split} {count:,}" for split, count in store.manifest.tokens.items())
    print(f"{options.out}: {counts} tokens, {len(store.vocabulary):,} types")


def _verify(options: argparse.Namespace) -> None:
    from tpdist.data import Store

    Store.open(options.store).verify()
    print(f"{options.store}: whole")


def _show(options: argparse.Namespace) -> None:
    from tpdist.config import load_config, to_yaml

    print(to_yaml(load_config(options.config, options.set)), end="")


def _schema(_: argparse.Namespace) -> None:
    from tpdist.config import json_schema

    print(json_schema(), end="")
