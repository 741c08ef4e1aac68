"""From a `sweep:` section to points: every setting of every arm with every seed, each a whole configuration."""

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from tpdist.config import Arm, Draw, Experiment, Sweep, keeps, load_config
from tpdist.config.overrides import read_overrides
from tpdist.errors import ConfigError, Setting, key_of, of_variable, place_of

Settings = dict[str, Any]
Grid = dict[str, list[Any]]
Axis = list[list[tuple[str, Any]]]  # of a grid: at each place keys and values that go together
# of a configuration what says where it runs
PLACE: dict[str, Any] = {"cluster": True, "run": {"device": True, "cuda_graph": True}}


@dataclass(frozen=True)
class Point:
    """One run. tried: the keys of the grid and their values here; settings that differ in the seed share it."""

    arm: str
    tried: Settings
    seed: int
    config: Experiment

    @cached_property
    def name(self) -> str:
        """Of its directory. It follows from what is not a default, so a point whose settings changed is another one.

        Where it runs is no setting, but where that is what the grid tries: a sweep begun on a GPU is resumed where
        there is none.
        """
        settings = self.config.model_dump(mode="json", exclude_defaults=True, exclude=PLACE)
        if tried := {key: value for key, value in self.tried.items() if _is_place(key)}:
            settings |= {"place": tried}
        written = json.dumps(settings, sort_keys=True)
        return f"{self.arm}-seed{self.seed}-{hashlib.sha256(written.encode()).hexdigest()[:12]}"

    @property
    def setting(self) -> tuple[str, str]:
        """What this point has in common with those of other seeds."""
        return self.arm, json.dumps(self.tried, sort_keys=True)


def _is_place(key: str) -> bool:
    part, _, name = key.partition(".")
    return part == "cluster" or key == "run" or (part == "run" and name in PLACE["run"])


def load_sweep(path: str | Path, overrides: Sequence[str]) -> Sweep:
    """The `sweep:` section of a file. Raises ConfigError where there is none."""
    sweep = load_config(path, overrides).sweep
    if sweep is None:
        raise ConfigError(
            f"{path}: has no sweep: section; write the values to try, such as "
            "sweep: {grid: {optimizer.lr: [0.001, 0.003]}}"
        )
    return sweep


def expand(path: str | Path, overrides: Sequence[str] = (), arms: Sequence[str] = ()) -> list[Point]:
    """All points of a file, arm by arm, in a fixed order. Every configuration is built, so a wrong one is found first.

    Settings that come to the same configuration are one, the first: BPTT, whose λ is 0, tries a list of λ once.

    What lies above what: the file, `overrides`, the arm's `set`, the cell, the values of the grid, the seed. An
    override of a key to which every arm gives a value of its own is refused.
    arms: patterns such as `ptb-*`; none: all arms.
    """
    sweep = load_sweep(path, overrides)
    every = arms_of(sweep)
    for pattern in arms:
        if not any(fnmatch(name, pattern) for name in every):
            raise ConfigError(f"{path}: no arm is like {pattern}; there are {', '.join(every)}")
    chosen = {name: arm for name, arm in every.items() if not arms or any(fnmatch(name, each) for each in arms)}
    points = [point for name, arm in chosen.items() for point in _points(path, overrides, sweep, name, arm)]
    _refuse_unread(path, overrides, points)
    return points


def _refuse_unread(path: str | Path, overrides: Sequence[str], points: Sequence[Point]) -> None:
    """Raise ConfigError for an override that no point has. What lies in the environment is for every command."""
    others = {"run.seed": "the seeds of a sweep are sweep.seeds", "run.test": "a sweep tests what it chooses: --test"}
    for text in overrides:
        key, place = key_of(text), place_of(text)
        if of_variable(text) or _part(text) == "sweep":
            continue
        written = {name for override in read_overrides([text], []).values() for name in override.places}
        for name in others.keys() & written:  # by itself, or in `run={seed: 3}`
            raise ConfigError(f"{others[name]}; give that", f"{place}: {name}")
        if not any(keeps(point.config, key, place) for point in points):
            where = f"the sweep of {path} gives it a value of its own in every arm; change it there"
            raise ConfigError(where, f"{place}: {key}")


def expand_all(path: str | Path, overrides: Sequence[str]) -> list[Point]:
    """The points of all arms that `overrides` leave possible: nobody has asked for each of them."""
    sweep, points = load_sweep(path, overrides), []
    for name, arm in arms_of(sweep).items():
        with suppress(ConfigError):
            points += _points(path, overrides, sweep, name, arm)
    return points


def _points(path: str | Path, overrides: Sequence[str], sweep: Sweep, name: str, arm: Arm) -> list[Point]:
    points: dict[str, Point] = {}
    for tried in settings(sweep, arm):
        above = {**arm.set, **tried, "run.test": False, "sweep": None}
        kept = [text for text in overrides if _part(text) != "sweep" and key_of(text) not in above]
        place = f"{path}: sweep: {name}"
        own = [Setting(f"{key}={json.dumps(value, ensure_ascii=False)}", place) for key, value in above.items()]
        config = load_config(path, [*kept, *own])
        if config.cluster.limits[1] > 1:
            raise ConfigError("a point of a sweep runs on one worker; write 1", "cluster.workers")
        for seed in sweep.seeds:
            run = config.run.model_copy(update={"seed": seed})
            point = Point(name, tried, seed, config.model_copy(update={"run": run}))
            points.setdefault(point.name, point)
    return list(points.values())


def arms_of(sweep: Sweep) -> dict[str, Arm]:
    """Every arm in every cell: `bptt` with `objective.block: [5]` in `cells` is `bptt-block5`."""
    found = {}
    for name, arm in (sweep.arms or {"all": Arm()}).items():
        for cell in _product(sweep.cells):
            label = name + "".join(f"-{key.split('.')[-1]}{value}" for key, value in cell.items())
            label = re.sub(r"[^A-Za-z0-9._-]+", "-", label)  # a directory's name
            if label in found:
                raise ConfigError(
                    f"two of its arms would be called {label!r}; give the cells other values", "sweep.cells"
                )
            found[label] = Arm(set={**arm.set, **cell}, grid=arm.grid)
    return found


def settings(sweep: Sweep, arm: Arm) -> list[Settings]:
    """The settings that an arm tries: the grid's product, or `random.count` of it."""
    return _product({**sweep.grid, **arm.grid}, sweep.random)


def _part(override: str) -> str:
    return key_of(override).split(".")[0]


def _product(grid: Grid, draw: Draw | None = None) -> list[Settings]:
    """Every choice of a place on each axis, the last axis turning fastest; or a draw of them.

    Of billions a draw takes a few, so they are not all made first.
    """
    axes = [_axis(keys, values) for keys, values in grid.items()]
    chosen: Sequence[int] = range(math.prod(map(len, axes)))
    if draw is not None and draw.count < len(chosen):
        chosen = sorted(random.Random(draw.seed).sample(chosen, draw.count))
    return [_choice(axes, number) for number in chosen]


def _choice(axes: Sequence[Axis], number: int) -> Settings:
    found: Settings = {}
    for axis in reversed(axes):
        number, place = divmod(number, len(axis))
        found = {**dict(axis[place]), **found}
    return found


def _axis(written: str, values: list[Any]) -> Axis:
    """One axis of the grid: a key and its values, or several keys that move together and their lists of values."""
    keys = [key.strip() for key in written.split(",")]
    if len(keys) == 1:
        return [[(keys[0], value)] for value in values]
    for value in values:
        if not isinstance(value, list) or len(value) != len(keys):
            raise ConfigError(f"must be lists of {len(keys)} values, one for each key; got {value}", written)
    return [list(zip(keys, value, strict=True)) for value in values]
