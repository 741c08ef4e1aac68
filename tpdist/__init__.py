"""Train recurrent language models by target propagation.

import tpdist
config = tpdist.load_config("configs/quickstart.yaml", ["run.epochs=2"])
result = tpdist.train(config, run_dir="runs/first")
tpdist.evaluate(result.run, "test").perplexity
"""

import os
from typing import TYPE_CHECKING, Any

from tpdist.errors import ConfigError, DataError, Interrupted, NonFiniteError, RunError, TpdistError

if TYPE_CHECKING:
    from tpdist.config import Experiment, load_config
    from tpdist.launch.local import resume, train
    from tpdist.launch.trained import evaluate, export, load_model, sample

# How often a thread of torch's OpenMP on Linux (libgomp) looks for work before it sleeps; read once, as torch loads.
# By its own 300,000 looks it holds a core that those it waits for may need, where other programs want the cores too.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DataError",
    "Experiment",
    "Interrupted",
    "NonFiniteError",
    "RunError",
    "TpdistError",
    "evaluate",
    "export",
    "load_config",
    "load_model",
    "resume",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """What needs torch, or pydantic, is looked up only when it is used: `tpdist --help` waits for neither."""
    if name in ("Experiment", "load_config"):
        from tpdist import config

        return getattr(config, name)
    if name in ("resume", "train"):
        from tpdist.launch import local

        return getattr(local, name)
    if name in ("evaluate", "export", "load_model", "sample"):
        from tpdist.launch import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'tpdist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
