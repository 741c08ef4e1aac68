"""Where else the rows of metrics.jsonl go: TensorBoard, and by extras MLflow and Weights & Biases.

A tracker takes rows by `add`. `open_trackers` makes those of `run.track`; the numbers go by the names `step/loss`,
`epoch/valid_perplexity`, …, everywhere the same. A run that goes on continues the same MLflow or W&B run: its id is
in RUN/tracking.json.
"""

import importlib.util
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from tpdist.config import Experiment
from tpdist.errors import ConfigError, RunError, first_line
from tpdist.training.files import read_json, write_json
from tpdist.training.run_dir import RunDirectory


class External(Protocol):
    """Takes rows that are in metrics.jsonl already."""

    def add(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_installed(config: Experiment) -> None:
    """Raise ConfigError for a tracker of `run.track` whose package is missing."""
    for name in config.run.track:
        if importlib.util.find_spec(name) is None:
            raise _missing(name)


def _missing(name: str) -> ConfigError:
    return ConfigError(f"{name} is not installed; pip install 'tpdist[{name}]'", "run.track")


def open_trackers(config: Experiment, run: RunDirectory, notice: Callable[[str], None]) -> dict[str, External]:
    """Those of `run.track` but TensorBoard, by name. Raises ConfigError where a package is missing or refuses.

    notice: told of one that refuses a run which goes on, and which it has taken rows of before.
    """
    makers = {"mlflow": Mlflow, "wandb": Wandb}
    trackers: dict[str, External] = {}
    for name in config.run.track:
        if name not in makers:
            continue
        try:
            trackers[name] = makers[name](config, run)
        except ImportError as error:
            raise _missing(name) from error
        except Exception as error:  # whatever a library that talks to a server may raise
            if not isinstance(error, RunError) and name in _known(run):
                notice(refusal(name, error))
                continue
            raise ConfigError(f"{name} cannot be used: {first_line(error)}", "run.track") from error
    return trackers


def refusal(name: str, error: Exception) -> str:
    """What to say of a tracker that is left out from now on."""
    return f"{name} takes no more rows ({type(error).__name__}: {first_line(error)}); metrics.jsonl does"


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, as `kind/name`."""
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in ("step", "epoch")
    }


class Events:
    """A TensorBoard event file. Written in this thread: torch's writer has one of its own, whose errors are lost."""

    def __init__(self, directory: Path):
        directory.mkdir(exist_ok=True)  # a file that somebody has open may stay there, on NFS
        now = time.time()
        self._file = (directory / f"events.out.tfevents.{int(now)}.tpdist").open("wb")
        self._records = RecordWriter(self._file)
        self._put(Event(wall_time=now, file_version="brain.Event:2"))
        # a TensorBoard that watches drops what it has read of the run before
        self._put(Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: dict[str, Any]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(row).items()]
        self._put(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _put(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


class Mlflow:
    """A run of the experiment `tpdist`, where MLFLOW_TRACKING_URI says."""

    def __init__(self, config: Experiment, run: RunDirectory):
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._metric = Metric
        self._client = MlflowClient()
        known = _known(run)
        if "mlflow" not in known:
            experiment = self._client.get_experiment_by_name("tpdist")
            where = experiment.experiment_id if experiment else self._client.create_experiment("tpdist")
            known["mlflow"] = self._client.create_run(where, run_name=run.path.name).info.run_id
            settings = flat(config.model_dump(mode="json"))
            self._client.log_batch(known["mlflow"], params=[Param(key, str(value)) for key, value in settings])
            _remember(run, known)
        self._run = known["mlflow"]
        self._client.update_run(self._run, status="RUNNING")

    def add(self, row: dict[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, row["step"]) for name, value in numbers(row).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Wandb:
    """A run of the project `tpdist`, or of WANDB_PROJECT. Its files go into the run's directory."""

    def __init__(self, config: Experiment, run: RunDirectory):
        import wandb  # pyright: ignore[reportMissingImports]

        known = _known(run)
        if "wandb" not in known:
            known["wandb"] = secrets.token_hex(4)
            _remember(run, known)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tpdist"),
            id=known["wandb"],
            name=run.path.name,
            dir=str(run.path),
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def add(self, row: dict[str, Any]) -> None:
        self._run.log(numbers(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _known(run: RunDirectory) -> dict[str, str]:
    file = run.path / "tracking.json"
    try:
        known = read_json(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: is damaged; delete it, and trackers take this for a run of its own") from error
    return known if isinstance(known, dict) else {}


def _remember(run: RunDirectory, ids: dict[str, str]) -> None:
    write_json(run.path / "tracking.json", ids)


def flat(parts: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values."""
    for name, value in parts.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
