"""Commands of one run: train it, and what it has left."""

import argparse
from typing import Any

from tpdist.cli.options import (
    above,
    add_address,
    add_config,
    add_dry_run,
    add_model,
    add_quiet,
    add_run,
    add_set,
    number,
    print_json,
    print_lines,
    say,
)
from tpdist.errors import Setting, TpdistError


def add(commands: Any) -> None:
    """Add them to the subcommands of `tpdist`."""
    train = commands.add_parser("train", help="train a model", description="Train from a YAML file, or resume a run.")
    add_config(train)
    train.add_argument("--resume", metavar="RUN", help="resume the run in this directory")
    train.add_argument("--run-dir", metavar="DIR", help="the new run's directory; default runs/<name>-<time>")
    add_address(train)
    train.add_argument(
        "--profile",
        action="store_true",
        help="write a timeline of 5 updates to the run's profile/, for ui.perfetto.dev",
    )
    add_dry_run(train, "what the run would be")
    add_quiet(train, "result.json")
    add_set(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="perplexity of a run's model")
    add_run(evaluate)
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="valid", help="default valid")
    evaluate.add_argument(
        "--h-steps", type=int, default=0, metavar="N", help="steps on past h at test time (Section 4.1)"
    )
    evaluate.add_argument("--h-lr", type=number, metavar="LR", help="step size; default 0.1")
    evaluate.add_argument(
        "--theta-steps", type=int, default=0, metavar="N", help="steps on θ at test time instead: dynamic evaluation"
    )
    evaluate.add_argument("--theta-lr", type=number, metavar="LR", help="step size; default 0.1")
    evaluate.add_argument("--by-position", action="store_true", help="perplexity at every position of a block too")
    add_model(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    add_set(evaluate)
    evaluate.set_defaults(command=_evaluate)

    sample = commands.add_parser("sample", help="text from a run's model")
    add_run(sample)
    sample.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with")
    sample.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens to add; default 100")
    sample.add_argument(
        "--temperature", type=number, default=1.0, metavar="T", help="0 takes the likeliest type; default 1"
    )
    sample.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest types")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default 0")
    add_model(sample)
    add_set(sample)
    sample.set_defaults(command=_sample)

    export = commands.add_parser(
        "export",
        help="a run's model for others",
        description="Write config.json, model.safetensors with PyTorch's names, vocabulary.json and a model card.",
    )
    add_run(export)
    export.add_argument("--out", required=True, metavar="DIR", help="the directory to write; must not exist")
    add_model(export)
    export.add_argument("--onnx", action="store_true", help="one step of the model as step.onnx too")
    add_set(export)
    export.set_defaults(command=_export)

    checkpoint = commands.add_parser("checkpoint", help="a run's checkpoints").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, what in (("list", "show them"), ("verify", "read them through; exit code 2 where one is not whole")):
        looks = checkpoint.add_parser(name, help=what)
        add_run(looks)
        add_set(looks)
        looks.set_defaults(command=_checkpoints, verify=name == "verify")


def _train(options: argparse.Namespace) -> None:
    if (options.config is None) == (options.resume is None):
        raise TpdistError("train: give a configuration file (before --set), or --resume RUN, and not both")
    if options.resume is not None and options.run_dir is not None:
        raise TpdistError("train: --resume goes on in the run's own directory; leave --run-dir out")
    from tpdist.config import load_config

    overrides = above(options.set, [Setting("run.profile=5", "--profile")] if options.profile else [])
    config = load_config(options.config, overrides) if options.resume is None else None
    from tpdist.launch.local import dry_run, resume, train
    from tpdist.training.progress import DataBar, reporter

    if options.dry_run:
        run = options.run_dir if config is not None else options.resume
        print_lines(dry_run(config, run, overrides, options.address), options)
        return
    quiet = options.quiet or options.json
    with DataBar(quiet) as bar:
        if config is not None:
            result = train(config, options.run_dir, reporter(quiet), bar, options.address)
        else:
            result = resume(str(options.resume), overrides, reporter(quiet), bar, options.address)
    if options.json:
        print_json(result.to_json())


def _evaluate(options: argparse.Namespace) -> None:
    sizes = {}
    for name in ("h", "theta"):
        size, steps = getattr(options, f"{name}_lr"), getattr(options, f"{name}_steps")
        if size is not None and steps == 0:
            raise TpdistError(f"--{name}-lr: {size:g} is the size of no step; give --{name}-steps too, such as 1")
        if size is not None:
            sizes[f"{name}_lr"] = size
    from tpdist.launch.trained import evaluate
    from tpdist.training.progress import DataBar

    with DataBar(quiet=options.json) as bar:
        result = evaluate(
            options.run,
            options.split,
            h_steps=options.h_steps,
            theta_steps=options.theta_steps,
            **sizes,
            by_position=options.by_position,
            which=options.model,
            overrides=options.set,
            data_progress=bar,
        )
    if options.json:
        figures = {"split": options.split, "perplexity": result.perplexity, **vars(result)}
        print_json({name: value for name, value in figures.items() if value is not None})
        return
    say(f"{options.split} perplexity {result.perplexity:.2f} over {result.tokens:,} tokens")
    for position, value in enumerate(result.by_position or []):
        say(f"  position {position:>3}  {value:.2f}")


def _sample(options: argparse.Namespace) -> None:
    from tpdist.launch.trained import sample

    say(
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


def _export(options: argparse.Namespace) -> None:
    from tpdist.launch.trained import export

    out = export(options.run, options.out, which=options.model, onnx=options.onnx, overrides=options.set)
    say(f"{out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


def _checkpoints(options: argparse.Namespace) -> None:
    from tpdist.launch.trained import checkpoints, damaged_models

    found = checkpoints(options.run, options.set)
    for one in found:
        about = f"step {one.step:>8}  {one.place:<15}  {one.bytes / 2**20:10.2f} MiB  whole" if one.bytes else ""
        say(f"{one.name:<19}  {one.wrong or about}{'  best' if one.best else ''}")
    wrong = [one.wrong for one in found if one.wrong]
    if options.verify and wrong:
        raise TpdistError(f"{len(wrong)} of {len(found)} checkpoints are not whole: {wrong[0]}")
    if not found:
        raise TpdistError(f"{options.run}: has no checkpoint")
    if options.verify and (models := damaged_models(options.run)):
        raise TpdistError(f"the checkpoints are whole, and a model is not: {models[0]}")
