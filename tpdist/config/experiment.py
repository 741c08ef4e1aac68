"""The whole configuration, and the checks that need more than one part of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from tpdist.config.parts import Batching, Cluster, Data, Elastic, Method, Model, Objective, Optimizer, Part, Run
from tpdist.config.presets import PRESETS, merge
from tpdist.config.sweep import Sweep
from tpdist.errors import ConfigError

BUILT_IN_CELLS = ("elman", "gru", "lstm", "mrnn")
BUILT_IN_PENALTIES = ("l2", "kl", "l2+kl")
DUAL_METHODS = ("admm", "alm")


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
        return [n for n in range(fewest, most + 1) if _misfit(self, self.mesh(n)) is None]

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, parts: Any) -> Any:
        """The preset beneath what is written, then what the method fixes above it."""
        if not isinstance(parts, dict):
            return parts
        parts = {key: _written(value) for key, value in parts.items()}
        preset = parts.get("preset")
        if isinstance(preset, str) and preset in PRESETS:
            parts = merge(PRESETS[preset], parts)
        return _fix_what_the_method_fixes(parts)

    @model_validator(mode="after")
    def _check_parts_against_each_other(self) -> "Experiment":
        checks = (_check_model, _check_method, _check_als, _check_recompute, _check_decay, _check_cuda_graph)
        errors = [error for check in (*checks, _check_cluster) for error in check(self)]
        if errors:
            raise errors[0] if len(errors) == 1 else SeveralConfigErrors(errors)
        return self


def _written(value: Any) -> Any:
    """A part made in Python as the mapping of what was set in it, so that a preset fills in the rest."""
    if isinstance(value, Part):
        return {name: _written(getattr(value, name)) for name in value.model_fields_set}
    return value


def _fix_what_the_method_fixes(parts: dict[str, Any]) -> dict[str, Any]:
    """BPTT is a setting: no H-steps and λ = 0, whatever a file written for another method says."""
    method = parts.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    fixed: dict[str, dict[str, Any]] = {}
    if name == "bptt":
        fixed = {"method": {"h_steps": 0}, "objective": {"weight": 0.0, "kl_weight": None}}
    elif name in ("costate", "alm", "als"):
        fixed = {"method": {"h_steps": 0}}
    for part, values in fixed.items():
        written = parts.get(part, {})
        if isinstance(written, dict):
            parts = {**parts, part: {**written, **values}}
    return parts


def _check_model(config: Experiment) -> Iterator[ConfigError]:
    model = config.model
    if ":" in model.cell:
        yield from _check_own(model.cell, model.allow_cells_from, "model.cell", "model.allow_cells_from")
    elif model.cell not in BUILT_IN_CELLS:
        yield ConfigError(
            f"unknown cell {model.cell!r}; choose {', '.join(BUILT_IN_CELLS)} or package.module:Class", "model.cell"
        )
    if model.activation is not None and model.cell not in ("elman", "mrnn"):
        yield ConfigError(f"only elman and mrnn take an activation, the cell is {model.cell!r}", "model.activation")
    if model.tied and model.embedding not in (None, model.hidden):
        yield ConfigError(f"tied needs embedding = hidden, got {model.embedding} and {model.hidden}", "model.embedding")


def _check_own(path: str, allowed: tuple[str, ...], key: str, allow: str) -> Iterator[ConfigError]:
    """What is imported is run, so an import path has to lie in a package that the configuration lists."""
    package, colon, _ = path.partition(":")
    if not colon:
        yield ConfigError(f"{path!r} names no function; write package.module:function", key)
    elif not any(package == name or package.startswith(name + ".") for name in allowed):
        yield ConfigError(f"{path!r} is not in a package that {allow} lists; add {package.split('.')[0]!r} to it", key)


def _check_method(config: Experiment) -> Iterator[ConfigError]:
    method, objective = config.method, config.objective
    penalty, allow = objective.penalty, "objective.allow_penalties_from"
    if ":" in penalty:
        yield from _check_own(penalty, objective.allow_penalties_from, "objective.penalty", allow)
    elif penalty not in BUILT_IN_PENALTIES:
        yield ConfigError(
            f"unknown penalty {penalty!r}; choose {', '.join(BUILT_IN_PENALTIES)} or package.module:function",
            "objective.penalty",
        )
    if method.visit is not None:
        yield from _check_own(method.visit, method.allow_visits_from, "method.visit", "method.allow_visits_from")
        if method.name == "als":
            yield ConfigError("als has a visit of its own; write another method.name beside yours", "method.visit")
    if method.name in DUAL_METHODS and (penalty == "kl" or ":" in penalty):
        yield ConfigError(
            f"{penalty} has no dual, and {method.name} is made of duals; write l2, l2+kl, or method.name: pm",
            "objective.penalty",
        )
    if method.name in (*DUAL_METHODS, "pm", "als") and objective.weight == 0:
        yield ConfigError(
            f"{method.name} needs a weight above 0, got 0; for no penalty write method.name: bptt", "objective.weight"
        )
    if method.name == "pm" and method.h_steps == 0 and method.edge_free:
        yield ConfigError("edge_free moves states by H-steps, and h_steps is 0", "method.edge_free")
    elif method.edge_free and method.starts == "held":
        yield ConfigError(
            "edge_free moves a start, and starts: held moves none; write starts: tied", "method.edge_free"
        )
    unmoved = method.starts == "held" or (method.h_steps == 0 and method.name not in ("alm", "als"))
    handed_on = config.batching.order == "shuffled" and config.batching.blocks == 1
    if method.first == "persistent" and method.relaxation == 0 and unmoved and not handed_on and not method.visit:
        yield ConfigError(
            "persistent states that neither H-steps (starts: tied) nor relaxation moves stay 0 for ever; "
            "write 1 or more",
            "method.relaxation",
        )
    if method.bounded and config.model.cell == "lstm":
        yield ConfigError("an lstm's c is not in (-1, 1), so h = tanh(z) cannot hold it", "method.bounded")
    if method.closing and config.batching.order == "shuffled":
        yield ConfigError(
            "a closing target belongs to windows in order; write batching.order: sequential", "method.closing"
        )
    if method.closing and objective.loss_on == "target":
        yield ConfigError(
            "a closing target cannot carry the loss; write objective.loss_on: prediction", "method.closing"
        )


def _check_als(config: Experiment) -> Iterator[ConfigError]:
    if config.method.name != "als":
        return
    wanted = [
        ("model.cell", config.model.cell, config.model.cell in ("elman", "mrnn"), "elman or mrnn"),
        ("model.activation", config.model.activation, config.model.activation == "identity", "identity"),
        ("model.layers", config.model.layers, config.model.layers == 1, "1"),
        ("model.tied", config.model.tied, not config.model.tied, "false"),
        ("objective.block", config.objective.block, config.objective.block == 1, "1"),
        ("objective.loss_on", config.objective.loss_on, config.objective.loss_on == "target", "target"),
        ("objective.penalty", config.objective.penalty, config.objective.penalty == "l2", "l2"),
    ]
    yield from _needs("als alternates least squares and needs", wanted)


def _needs(why: str, wanted: Sequence[tuple[str, object, bool, object]]) -> Iterator[ConfigError]:
    """wanted: of other settings the key, the value, whether it fits, and what would."""
    for key, value, fits, wants in wanted:
        if not fits:
            yield ConfigError(f"{why} {wants}, got {value}", key)


def _check_recompute(config: Experiment) -> Iterator[ConfigError]:
    method, objective, batching = config.method, config.objective, config.batching
    if not batching.recompute:
        return
    wanted = [
        ("batching.mode", batching.mode, "batch"),
        ("batching.order", batching.order, "sequential"),
        ("objective.penalty", objective.penalty, "l2"),
        ("objective.loss_on", objective.loss_on, "prediction"),
        ("method.name", method.name, "admm"),
        ("method.starts", method.starts, "held"),
        ("method.first", method.first, "persistent"),
        ("method.h_steps", method.h_steps, 1),
        ("method.theta_steps", method.theta_steps, 1),
        ("method.dual.order", method.dual.order, "after"),
        ("method.closing", method.closing, False),
        ("method.bounded", method.bounded, False),
    ]
    compared = [(key, value, value == wants, wants) for key, value, wants in wanted]
    yield from _needs("batching.recompute is for visits in place: it needs", compared)


def _check_decay(config: Experiment) -> Iterator[ConfigError]:
    decay = config.optimizer.decay
    if decay is not None and decay.start_epoch is not None and decay.patience:
        yield ConfigError(
            f"with start_epoch the rate falls whether validation does or not; leave it out, got {decay.patience}",
            "optimizer.decay.patience",
        )


def _check_cuda_graph(config: Experiment) -> Iterator[ConfigError]:
    if not config.run.cuda_graph:
        return
    method, h = config.method, config.method.h_optimizer
    stateless = h.name == "sgd" and not h.options
    wanted = [
        ("cluster.workers", config.cluster.workers, config.cluster.workers == 1, "1, since messages are not recorded"),
        ("batching.mode", config.batching.mode, config.batching.mode == "minibatch", "minibatch"),
        ("method.name", method.name, method.name != "als", "a method of gradient steps"),
        ("method.visit", method.visit, method.visit is None, "none of your own"),
        ("method.h_optimizer", h.name, stateless or method.first != "persistent", "sgd without options"),
        ("run.on_non_finite", config.run.on_non_finite, config.run.on_non_finite == "stop", "stop"),
    ]
    yield from _needs("run.cuda_graph records whole updates: it needs", wanted)


def _check_cluster(config: Experiment) -> Iterator[ConfigError]:
    mesh, (fewest, most) = config.cluster.mesh, config.cluster.limits
    if fewest > most:
        yield ConfigError(f"min {fewest} is above max {most}; make it at most that", "cluster.workers.min")
        return
    if mesh is not None and isinstance(config.cluster.workers, Elastic):
        yield ConfigError(
            "a fixed mesh does not fit a number of workers that changes; leave it out, and it follows from the number",
            "cluster.mesh",
        )
        return
    if mesh is not None and mesh[0] * mesh[1] != most:
        yield ConfigError(
            f"{mesh[0]} x {mesh[1]} = {mesh[0] * mesh[1]} places for {most} workers; make them equal", "cluster.mesh"
        )
        return
    misfit = _misfit(config, config.mesh(fewest))
    if misfit is not None:
        yield ConfigError(misfit, "cluster.workers" if mesh is None else "cluster.mesh")


def _misfit(config: Experiment, mesh: tuple[int, int]) -> str | None:
    """Why so many workers along (stream, time) cannot share the streams and windows."""
    streams, times = mesh
    if streams > config.batching.streams:
        return (
            f"{streams} workers along stream share {config.batching.streams} streams; use at most that many, more "
            "batching.streams, or workers along time: mesh: [stream, time]"
        )
    if times > config.batching.blocks and config.batching.mode == "minibatch":
        return (
            f"{times} workers along time share windows of {config.batching.blocks} blocks; use at most that many, or "
            "more batching.blocks"
        )
    return None
