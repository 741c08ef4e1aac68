"""One run's directory.

RUN/config.yaml          the resolved configuration
RUN/metrics.jsonl        a line every N updates and every epoch
RUN/tensorboard/         the same, as TensorBoard events
RUN/tracking.json        which run of MLflow or W&B this is
RUN/changes.jsonl        settings that were changed where the run went on
RUN/checkpoints/         what `--resume` continues from
RUN/models/best.*        the parameters of the best epoch: .safetensors, and .json about them
RUN/models/last.*        those of the last epoch
RUN/result.json          the figures of the finished run
RUN/logs/                what each of several workers said
RUN/profile/             a timeline of a few updates of every worker (`run.profile`)
RUN/.config.yaml         config.yaml as the program wrote it, to know what is edited by hand
RUN/.lock                held by the process that trains
RUN/.id                  whose checkpoints lie elsewhere (`run.checkpoint_to`)
"""

import errno
import itertools
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tpdist.config import Experiment, load_config, path_keys, to_yaml
from tpdist.config.yaml_text import control_character, shown
from tpdist.data import default_store
from tpdist.data.disk import parse_json
from tpdist.errors import RunError, TpdistError
from tpdist.training.files import clear_leftovers, write_text
from tpdist.training.locks import locked


class RunDirectory:
    """The files of one run. address: of the cluster that it is on, if it is on one."""

    def __init__(self, path: Path, address: str | None = None):
        self.path, self.address = path, address
        self.config_file = path / "config.yaml"
        self.written_file = path / ".config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.models = path / "models"
        self.profile = path / "profile"
        self.lock_file = path / ".lock"

    @classmethod
    def create(cls, config: Experiment, path: str | Path | None) -> "RunDirectory":
        """A new directory with the configuration in it; default `runs/<name>-<time>`.

        Raises RunError if it exists or cannot be made.
        """
        names = [Path(path)] if path is not None else _names_by_time(config.run.name)
        run = next(run for run in map(cls, names) if run._make(refuse=path is not None))
        try:
            run.checkpoints.mkdir()
            run.models.mkdir()
            run.save_config(config)
        except OSError as error:
            run.discard()
            raise RunError(f"{run.path}: cannot be written: {error.strerror}") from error
        return run

    def _make(self, refuse: bool) -> bool:
        """Make the directory itself. False, or RunError where `refuse`, if it exists."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            if refuse or not os.path.lexists(self.path):  # what exists may be a link above it that leads nowhere
                self.refuse_existing()
            return False
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made: {error.strerror}") from error
        return True

    @classmethod
    def open(cls, path: str | Path, address: str | None = None) -> "RunDirectory":
        """An existing run. Raises RunError if it is not one."""
        run = cls(Path(path), address)
        if not os.path.isfile(run.config_file):  # unlike Path.is_file, without an error of its own
            what = "holds no config.yaml, so it is no run directory" if os.path.exists(run.path) else "does not exist"
            raise RunError(f"{run.path}: {what}; give the directory that tpdist train printed")
        return run

    def refuse_existing(self) -> None:
        """Raise RunError if there is anything at the path, or nothing can be read there."""
        refuse_bytes(self.path, "--run-dir")
        if os.path.isfile(self.config_file):
            way_on = f"continue it with `{self.resume_command}`"
            if not self.may_go_on():
                way_on = "no checkpoint is in it: delete it"
            raise RunError(
                f"{self.path}: exists already and is not overwritten; {way_on}, or give --run-dir a new name"
            )
        if os.path.lexists(self.path):
            raise RunError(f"{self.path}: exists already and is not overwritten; give --run-dir a new name")
        if any(os.path.lexists(parent) and not os.path.isdir(parent) for parent in self.path.parents):
            raise RunError(f"{self.path}: cannot be made: {os.strerror(errno.ENOTDIR)}")

    def may_go_on(self) -> bool:
        """Whether there may be a checkpoint: here, or where nobody has looked."""
        try:
            return any(self.checkpoints.iterdir()) or self.load_config().run.checkpoint_to is not None
        except (OSError, TpdistError):
            return True

    def identity(self) -> str:
        """A random name, drawn when it is first asked for, that a directory keeps where it is moved or renamed."""
        file = self.path / ".id"
        if not file.is_file():
            write_text(file, secrets.token_hex(8))
        return file.read_text(encoding="utf-8")

    @property
    def resume_command(self) -> str:
        """What the user types to go on."""
        there = f" --address {shlex.quote(self.address)}" if self.address else ""
        return f"tpdist train --resume {shlex.quote(str(self.path))}{there}"

    @contextmanager
    def held(self, patience_s: float = 0.0) -> Iterator[None]:
        """Keep other processes from training in the directory, and clear away what a killed one was writing.

        patience_s: how long to wait for another process to end.
        Raises RunError where another process holds it, or where it cannot be written.
        """
        refusal = (
            f"{self.path}: another process trains in it; wait for its end, or end it; if its machine is no more, "
            f"delete {self.lock_file.name} there"
        )
        with locked(self.lock_file, refusal, patience_s):
            for directory in (self.path, self.checkpoints, self.models):
                clear_leftovers(directory)
            yield

    def rows(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl that were written whole; none where it is not there."""
        return [*self.newest_rows()][::-1]

    def newest_rows(self) -> Iterator[dict[str, Any]]:
        """The same, the newest first."""
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace") if self.metrics_file.exists() else ""
        for line in reversed(lines.splitlines()):
            try:
                row = parse_json(line)
                whole = row["kind"] and row["step"] >= 0 and row["epoch"] >= 0
            except (ValueError, TypeError, KeyError):
                continue  # what was being written when the run was killed
            if whole:
                yield row

    def load_config(self, overrides: Sequence[str] = ()) -> Experiment:
        return load_config(self.config_file, overrides)

    def written_config(self) -> Experiment:
        """config.yaml as it was before anybody edited it; as it is where that is not known."""
        with suppress(TpdistError):
            return load_config(self.written_file)
        return self.load_config()

    def save_config(self, config: Experiment) -> None:
        """config.yaml, with absolute paths: the run can then be used from any directory."""
        text = to_yaml(with_absolute_paths(config, Path.cwd()))
        for file in (self.written_file, self.config_file):
            write_text(file, text)

    def discard(self) -> None:
        """Remove the directory of a run that never took a step."""
        shutil.rmtree(self.path, ignore_errors=True)


def refuse_bytes(path: Path, option: str) -> None:
    """Raise RunError for a name that is not UTF-8: safetensors writes there and reads nothing."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{shown(str(path), 300)}: holds bytes that are not UTF-8; give {option} another name") from None


def _names_by_time(name: str) -> Iterator[Path]:
    """`runs/<name>-<time>`, and with a number behind it for runs that begin in the same second."""
    stem = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    yield stem
    for number in itertools.count(2):
        yield stem.with_name(f"{stem.name}-{number}")


def with_absolute_paths(config: Experiment, base: Path) -> Experiment:
    """`config` with every path in it as it is read in the directory `base`.

    Raises RunError for a path that config.yaml could not be read again with: of an odd `base`.
    """

    def absolute(path: str) -> str:
        whole = str(base / path)
        if control_character(whole):
            raise RunError(
                f"{shown(whole, 300)}: holds a line break, another control character or bytes that are not UTF-8, and "
                "the run's config.yaml could not be read again; change into another directory"
            )
        return whole

    parts: dict[str, Any] = {}
    for key in path_keys():
        part, name = key.split(".")
        whole = parts.get(part, getattr(config, part))
        path = str(default_store(config.data)) if key == "data.store" else getattr(whole, name)
        if path is not None and "://" not in path:  # a URI stays as it is
            parts[part] = whole.model_copy(update={name: absolute(path)})
    return config.model_copy(update=parts)
