"""The depot of a run: its own directory, or its place below `run.checkpoint_to`. What a depot is: `depot.py`."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from tpdist.config import Experiment
from tpdist.data.disk import sync, unwritable
from tpdist.errors import ConfigError, RunError, TpdistError
from tpdist.training.depot import ASIDE, OWNER, Depot, oldest_first
from tpdist.training.files import clear_leftovers
from tpdist.training.object_store import ObjectStore
from tpdist.training.run_dir import RunDirectory


class Directory:
    """A directory of this machine, or of a file system that all workers share."""

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)

    def claim(self, run: str) -> str:
        self.path.mkdir(parents=True, exist_ok=True)
        own, mine = self.path / OWNER, self.path / f".{OWNER}.{run}.tmp"
        mine.write_text(run, encoding="utf-8")
        try:
            own.hardlink_to(mine)  # whole from the first, and never in place of another's
        except OSError:
            if not own.exists():  # a file system without links
                mine.replace(own)
        mine.unlink(missing_ok=True)
        return own.read_text(encoding="utf-8")

    def release(self) -> None:
        (self.path / OWNER).unlink(missing_ok=True)

    def names(self) -> list[str]:
        try:
            return oldest_first(os.listdir(self.path))  # a glob finds nothing where it may not look, or cannot
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read: {error.strerror}") from error

    def fetch(self, name: str, scratch: Path) -> Path:
        return self.path / name

    def begin(self, name: str, token: int) -> None:
        self.stage(name, token).mkdir(parents=True)

    def stage(self, name: str, token: int) -> Path:
        return self.path / f".{name}.{token:x}.tmp"

    def publish(self, name: str, token: int, file: str) -> None:
        sync(self.stage(name, token) / file)

    def read(self, name: str, token: int, file: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self.stage(name, token) / file).read_bytes()
        return None

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        stage = self.stage(name, token)
        for file in unwanted:
            (stage / file).unlink()
        sync(stage)
        stage.rename(self.path / name)
        sync(self.path)

    def leave(self, token: int) -> None:
        pass

    def discard(self, name: str, token: int) -> None:
        shutil.rmtree(self.stage(name, token), ignore_errors=True)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)

    def set_aside(self, name: str) -> None:
        aside = self.path / f"{ASIDE}{name}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.path / name).rename(aside)

    def clear_leftovers(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.path)


def depot_for(config: Experiment, run: RunDirectory) -> Depot:
    """The run's `checkpoints/`, or its own place, by its name, below `run.checkpoint_to`."""
    to = config.run.checkpoint_to
    if to is None:
        return Directory(run.checkpoints)
    name = run.path.resolve().name
    return ObjectStore(f"{to.rstrip('/')}/{name}") if "://" in to else Directory(Path(to) / name)


def check_place(config: Experiment, run: RunDirectory) -> None:
    """Raise ConfigError where `run.checkpoint_to` is a directory that cannot be made or written, as far as is seen."""
    to = config.run.checkpoint_to
    if to is not None and "://" not in to and (why := unwritable(Path(to) / run.path.resolve().name)):
        raise shut(to, why)


def shut(to: str, why: str | None) -> ConfigError:
    """What to say of a `run.checkpoint_to` that cannot be written."""
    return ConfigError(f"{to}: {why}; give a directory that can be written", "run.checkpoint_to")


def forget(config: Experiment, run: RunDirectory) -> None:
    """Remove a run that never took a step, and its claim on a place elsewhere."""
    if config.run.checkpoint_to is not None:
        with suppress(TpdistError, OSError):
            depot, own = depot_for(config, run), run.identity()
            if depot.claim(own) == own:
                depot.release()
    run.discard()


def has_checkpoints(config: Experiment, run: RunDirectory) -> bool:
    """Whether there may be any: also where nobody can tell."""
    try:
        return bool(depot_for(config, run).names())
    except TpdistError:
        return True
