"""The `sweep:` section: which settings `tpdist sweep` tries, by the dotted keys of the configuration."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, Strict

from tpdist.config.parts import NonNegativeInt, Part, PositiveInt
from tpdist.errors import ConfigError

Settings = dict[str, Any]
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
Seeds = Annotated[tuple[NonNegativeInt, ...], Strict(False), Field(min_length=1)]


class Draw(Part):
    """A random search: as many settings, drawn from the grid without repetition."""

    count: PositiveInt = Field(description="settings to draw, the same number for every arm")
    seed: NonNegativeInt = Field(default=0, description="of the draw")


class Arm(Part):
    """One of the methods that are compared."""

    set: Settings = Field(default={}, description="what makes this arm: dotted keys and their values")
    grid: Grid = Field(default={}, description="further keys and values to try, for this arm only")


class Sweep(Part):
    """The settings of every arm are the product of its values in `grid`; keys that move together: `a, b: [[1, 2]]`."""

    arms: dict[str, Arm] = Field(default={}, description="what is compared, by name; none: the file as it is")
    cells: Grid = Field(
        default={}, description="dotted keys and values; every arm is taken with each, as an arm of its own"
    )
    grid: Grid = Field(default={}, description="dotted keys and the values to try, in every arm")
    random: Draw | None = Field(default=None, description="try some of the grid, drawn at random; null: all of it")
    seeds: Seeds = Field(default=(0,), description="values of run.seed: every setting is run with each")
    tuning_seeds: PositiveInt | None = Field(
        default=None,
        description="tune every arm with this many of the seeds, and run only its best setting with the others; "
        "null: all settings with all seeds",
    )


def conflicts(sweep: Sweep) -> Iterator[ConfigError]:
    """Of its own settings, with the dotted key of each."""
    if twice := _repeated(sweep.seeds):
        yield ConfigError(f"seed {twice[0]} is there twice, and would count twice; leave it out once", "sweep.seeds")
    if sweep.tuning_seeds is not None and sweep.tuning_seeds > len(sweep.seeds):
        few = f"must be at most {len(sweep.seeds)}, the number of sweep.seeds; got {sweep.tuning_seeds}"
        yield ConfigError(few, "sweep.tuning_seeds")
    for name, arm in (sweep.arms or {"": None}).items():
        axes = [*sweep.cells, *{**sweep.grid, **(arm.grid if arm else {})}]
        if twice := _repeated([key.strip() for written in axes for key in written.split(",")]):
            where = f"sweep.arms.{name}.grid" if arm and arm.grid else "sweep.grid"
            yield ConfigError(f"{twice[0]} is given values in two places; one of them has to go", where)
            return


def _repeated(values: Sequence[object]) -> list[object]:
    return [value for i, value in enumerate(values) if value in values[:i]]
