"""The front door, its side wing: commands that look, at what a run has left and at the machine."""

import argparse
from collections.abc import Callable
from typing import Any

from tpdist.errors import TpdistError


def add_run_commands(commands: Any, add_set: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add them to the subcommands of `tpdist`."""
    export = commands.add_parser(
        "export",
        help="a run's model for others",
        description="Write config.json, model.safetensors with PyTorch's names, vocabulary.json and a model card.",
    )
    export.add_argument("run", metavar="RUN")
    export.add_argument("--out", required=True, metavar="DIR", help="the directory to write; must not exist")
    export.add_argument("--model", choices=("best", "last"), default="best")
    export.add_argument("--onnx", action="store_true", help="one step of the model as step.onnx too")
    add_set(export)
    export.set_defaults(command=_export)

    checkpoint = commands.add_parser("checkpoint", help="a run's checkpoints").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, what in (("list", "show them"), ("verify", "read them through; exit code 2 where one is not whole")):
        looks = checkpoint.add_parser(name, help=what)
        looks.add_argument("run", metavar="RUN")
        add_set(looks)
        looks.set_defaults(command=_checkpoints, verify=name == "verify")

    doctor = commands.add_parser("doctor", help="look at this machine: what it has, what to mend")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(command=_doctor)


def _export(options: argparse.Namespace) -> None:
    from tpdist.launch.local import export

    out = export(options.run, options.out, which=options.model, onnx=options.onnx, overrides=options.set)
    print(f"{out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


def _checkpoints(options: argparse.Namespace) -> None:
    from tpdist.launch.local import checkpoints

    found = checkpoints(options.run, options.set)
    for one in found:
        about = f"step {one.step:>8}  epoch {one.epoch:>4}  {one.bytes / 2**20:10.2f} MiB  whole" if one.bytes else ""
        print(f"{one.name:<19}  {one.wrong or about}{'  best' if one.best else ''}")
    wrong = [one.wrong for one in found if one.wrong]
    if options.verify and wrong:
        raise TpdistError(f"{len(wrong)} of {len(found)} checkpoints are not whole: {wrong[0]}")
    if not found:
        raise TpdistError(f"{options.run}: has no checkpoint")


def _doctor(options: argparse.Namespace) -> int:
    import json

    from tpdist.launch.doctor import examine

    findings = examine()
    bad = any(finding.state == "bad" for finding in findings)
    if options.json:
        print(json.dumps({"fit": not bad, "findings": [vars(finding) for finding in findings]}, indent=1))
    else:
        print("\n".join(finding.text() for finding in findings))
    return 1 if bad else 0
