"""The front door, its side wing: commands that take what a run has left."""

import argparse
from collections.abc import Callable
from typing import Any


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


def _export(options: argparse.Namespace) -> None:
    from tpdist.launch.local import export

    out = export(options.run, options.out, which=options.model, onnx=options.onnx, overrides=options.set)
    print(f"{out}: " + ", ".join(sorted(path.name for path in out.iterdir())))
