"""One run's directory.

    RUN/config.yaml          the resolved configuration
    RUN/metrics.jsonl        a line every N updates and every epoch
    RUN/tensorboard/         the same, as TensorBoard events
    RUN/checkpoints/         what `--resume` continues from
    RUN/models/best.*        the parameters of the best epoch: .safetensors, and .json about them
    RUN/models/last.*        those of the last epoch
    RUN/result.json          the figures of the finished run
"""

import json
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tpdist.config import Experiment, load_config, to_yaml
from tpdist.errors import RunError
from tpdist.models import LanguageModel, build_model
from tpdist.training.checkpoints import load_tensors, write_atomic, write_json


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.models = path / "models"

    @classmethod
    def create(cls, config: Experiment, path: str | Path | None) -> "RunDirectory":
        """A new directory with the configuration in it; default `runs/<name>-<time>`. Raises RunError if it exists."""
        if path is None:
            path = Path("runs") / f"{config.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True)
        except FileExistsError as error:
            raise RunError(
                f"{path}: exists already and is not overwritten; continue it with --resume {path}, or give --run-dir a new name"
            ) from error
        except OSError as error:
            raise RunError(f"{path}: cannot be made: {error.strerror}") from error
        run.checkpoints.mkdir()
        run.models.mkdir()
        write_atomic(run.config_file, lambda file: _write_text(file, to_yaml(config)))
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """An existing run. Raises RunError if it is not one."""
        run = cls(Path(path))
        if not run.config_file.is_file():
            what = "holds no config.yaml, so it is no run directory" if run.path.exists() else "does not exist"
            raise RunError(f"{path}: {what}; give the directory that tpdist train printed")
        return run

    def load_config(self, overrides: Sequence[str] = ()) -> Experiment:
        return load_config(self.config_file, overrides)

    def discard(self) -> None:
        """Remove the directory of a run that never took a step."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save_model(self, which: str, model: LanguageModel, about: dict[str, Any]) -> None:
        """models/<which>.safetensors and .json; the JSON last, so that a whole pair is known by it."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in unique_state(model).items()}
        write_atomic(self.models / f"{which}.safetensors", lambda file: save_file(tensors, file))
        write_atomic(self.models / f"{which}.json", lambda file: write_json(file, about))

    def load_model(self, config: Experiment, which: str) -> LanguageModel:
        """The model of the `best` or the `last` epoch, on the CPU."""
        about_file = self.models / f"{which}.json"
        if not about_file.is_file():
            raise RunError(f"{about_file}: missing; the run has not finished an epoch yet")
        model = build_model(config.model, config.run, json.loads(about_file.read_text())["types"])
        load_parameters(model, load_tensors(self.models / f"{which}.safetensors"), str(self.path))
        return model


def unique_state(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters by name, tied ones once (safetensors refuses shared memory)."""
    return dict(model.named_parameters())


def load_parameters(model: LanguageModel, tensors: dict[str, Tensor], source: str) -> None:
    """Copy parameters in by name. Raises RunError, naming the first that does not fit."""
    own = unique_state(model)
    for name in sorted(own.keys() | tensors.keys()):
        got = tuple(tensors[name].shape) if name in tensors else None
        wanted = tuple(own[name].shape) if name in own else None
        if got != wanted:
            raise RunError(
                f"{source}: holds another model: parameter {name} is {got or 'absent'} there and {wanted or 'absent'} in "
                f"the configuration; use the configuration that it was trained with"
            )
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
