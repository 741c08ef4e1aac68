"""The whole configuration, what a method fixes in it, and the default mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from tpdist.config.checks import misfits
from tpdist.config.parts import Batching, Data, Method, Model, Objective, Optimizer, Part
from tpdist.config.presets import PRESETS, merge
from tpdist.config.running import Cluster, Run
from tpdist.config.sweep import Sweep
from tpdist.config.workers import mesh_misfit
from tpdist.errors import ConfigError


class SeveralConfigErrors(ConfigError):  # noqa: N818 (it is several)
    """All the ways in which parts do not fit each other, so that one look is enough to mend them."""

    def __init__(self, errors: list[ConfigError]):
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors


@dataclass(frozen=True)
class Places:
    """Where each value was written, as dotted key -> `file:line`; two configs that differ only here are equal."""

    at: Mapping[str, str] = field(default_factory=dict, compare=False)


class Experiment(Part):
    """One experiment: what `tpdist config show` prints.

    Raises `ConfigError` (through pydantic) with the dotted key where parts do not fit each other.
    """

    preset: Literal["paper", "released"] | None = Field(
        default=None,
        description="settings that lie beneath the ones written here: the paper's, or its released program's",
    )
    data: Data = Field(default=Data(), description="which corpus")
    model: Model = Field(default=Model(), description="the recurrence and the output")
    objective: Objective = Field(default=Objective(), description="blocks, penalty and loss")
    method: Method = Field(default=Method(), description="how targets, parameters and duals are updated")
    batching: Batching = Field(default=Batching(), description="streams and windows")
    optimizer: Optimizer = Field(default=Optimizer(), description="the optimiser of the parameters")
    run: Run = Field(default=Run(), description="everything else about a run")
    cluster: Cluster = Field(default=Cluster(), description="workers and their mesh")
    sweep: Sweep | None = Field(default=None, description="for tpdist sweep: the settings to try")

    _places: Places = PrivateAttr(default_factory=Places)

    def mesh(self, workers: int | None = None) -> tuple[int, int]:
        """Workers along (stream, time): as written; else in batch mode all along time, and in minibatches along stream.

        Where there are fewer streams than workers, the largest divisor of the workers that the streams allow.
        workers: how many of an elastic run there are; default: the most.
        """
        if self.cluster.mesh is not None:
            return self.cluster.mesh
        workers = workers or self.cluster.limits[1]
        most = 1 if self.batching.mode == "batch" else self.batching.streams
        streams = max(n for n in range(1, min(workers, most) + 1) if workers % n == 0)
        return streams, workers // streams

    def sizes(self) -> list[int]:
        """How many workers the run may have: those within the limits whose mesh fits the batching."""
        fewest, most = self.cluster.limits
        return [n for n in range(fewest, most + 1) if mesh_misfit(self, self.mesh(n)) is None]

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, parts: Any) -> Any:
        """The preset beneath what is written, then what the method fixes above it."""
        if not isinstance(parts, dict):
            return parts
        parts = dict(parts)
        for name, part in parts.items():
            if isinstance(part, Part):  # made in Python: what was set in it, so that a preset fills in the rest
                parts[name] = part.model_dump(exclude_unset=True, warnings=False)
        preset = parts.get("preset")
        if isinstance(preset, str) and preset in PRESETS:
            parts = merge(PRESETS[preset], parts)
        return _fix_what_the_method_fixes(parts)

    @model_validator(mode="after")
    def _check_parts_against_each_other(self) -> "Experiment":
        errors = list(misfits(self))
        if errors:
            raise errors[0] if len(errors) == 1 else SeveralConfigErrors(errors)
        return self


def _fix_what_the_method_fixes(parts: dict[str, Any]) -> dict[str, Any]:
    """BPTT is a setting: no H-steps and λ = 0, whatever a file written for another method says."""
    method = parts.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    fixed: dict[str, dict[str, Any]] = {}
    if name == "bptt":
        fixed = {
            "method": {"h_steps": 0, "bounded": False},
            "objective": {"weight": 0.0, "kl_weight": None, "loss_on": "prediction"},
        }
    elif name in ("costate", "alm", "als"):
        fixed = {"method": {"h_steps": 0} | ({"bounded": False} if name == "costate" else {})}
    for part, values in fixed.items():
        written = parts.get(part, {})
        if isinstance(written, dict):
            parts = {**parts, part: {**written, **values}}
    return parts
