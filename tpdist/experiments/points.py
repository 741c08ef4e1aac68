"""From a `sweep:` section to points: every setting of every arm with every seed, each a whole configuration."""

import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdist.config import Arm, Experiment, Sweep, load_config
from tpdist.errors import ConfigError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run. tried: the keys of the grid and their values here; settings that differ in the seed share it."""

    arm: str
    tried: Settings
    seed: int
    config: Experiment

    @property
    def name(self) -> str:
        """Of its directory. It follows from what is not a default, so a point whose settings changed is another one."""
        written = json.dumps(self.config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return f"{self.arm}-seed{self.seed}-{hashlib.sha256(written.encode()).hexdigest()[:12]}"

    @property
    def setting(self) -> tuple[str, str]:
        """What this point has in common with those of other seeds."""
        return self.arm, json.dumps(self.tried, sort_keys=True)


def load_sweep(path: str | Path, overrides: Sequence[str]) -> Sweep:
    """The `sweep:` section of a file. Raises ConfigError where there is none."""
    sweep = load_config(path, overrides).sweep
    if sweep is None:
        raise ConfigError(
            f"{path}: has no sweep: section; write the values to try, such as "
            "sweep: {grid: {optimizer.lr: [0.001, 0.003]}}"
        )
    return sweep


def expand(path: str | Path, overrides: Sequence[str] = ()) -> list[Point]:
    """All points of a file, arm by arm, in a fixed order. Every configuration is built, so a wrong one is found first.

    What lies above what: the file, `overrides`, the arm's `set`, the values of the grid, the seed.
    """
    sweep = load_sweep(path, overrides)
    points = []
    for name, arm in (sweep.arms or {"all": Arm()}).items():
        for tried in settings(sweep, arm):
            for seed in sweep.seeds:
                above = {**arm.set, **tried, "run.seed": seed, "run.test": False, "sweep": None}
                kept = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] != "sweep"]
                kept = [text for text in kept if text.partition("=")[0].strip() not in above]
                config = load_config(path, [*kept, *(f"{key}={json.dumps(value)}" for key, value in above.items())])
                if config.cluster.limits[1] > 1:
                    raise ConfigError("a point of a sweep runs on one worker; write 1", "cluster.workers")
                points.append(Point(name, tried, seed, config))
    return points


def settings(sweep: Sweep, arm: Arm) -> list[Settings]:
    """The settings that an arm tries: the grid's product, or `random.count` of it."""
    axes = [list(_axis(keys, values)) for keys, values in {**sweep.grid, **arm.grid}.items()]
    product = [dict(itertools.chain.from_iterable(choice)) for choice in itertools.product(*axes)]
    if sweep.random is None or sweep.random.count >= len(product):
        return product
    chosen = random.Random(sweep.random.seed).sample(range(len(product)), sweep.random.count)
    return [product[i] for i in sorted(chosen)]


def _axis(written: str, values: list[Any]) -> list[list[tuple[str, Any]]]:
    """One axis of the grid: a key and its values, or several keys that move together and their lists of values."""
    keys = [key.strip() for key in written.split(",")]
    if len(keys) == 1:
        return [[(keys[0], value)] for value in values]
    for value in values:
        if not isinstance(value, list) or len(value) != len(keys):
            raise ConfigError(f"must be lists of {len(keys)} values, one for each key; got {value}", written)
    return [list(zip(keys, value, strict=True)) for value in values]
