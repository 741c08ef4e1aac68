"""The whole configuration, and the checks that need more than one part of it."""

from typing import Any

from pydantic import Field, model_validator

from tpdist.config.parts import Batching, Cluster, Data, Method, Model, Objective, Optimizer, Part, Run
from tpdist.errors import ConfigError

BUILT_IN_CELLS = ("elman", "gru", "lstm", "mrnn")
DUAL_METHODS = ("admm", "alm")


class Experiment(Part):
    """One experiment: what `tpdist config show` prints.

    Raises `ConfigError` (through pydantic) with the dotted key where parts do not fit each other.
    """

    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    method: Method = Method()
    batching: Batching = Batching()
    optimizer: Optimizer = Optimizer()
    run: Run = Run()
    cluster: Cluster = Cluster()
    sweep: dict[str, Any] | None = Field(None, description="for tpdist sweep: dotted keys and the values to try")

    @model_validator(mode="before")
    @classmethod
    def _fix_what_the_method_fixes(cls, parts: Any) -> Any:
        """BPTT is a setting: no H-steps and λ = 0, whatever a file written for another method says."""
        method = parts.get("method") if isinstance(parts, dict) else None
        if not isinstance(method, dict):
            return parts
        fixed: dict[str, dict[str, Any]] = {}
        if method.get("name") == "bptt":
            fixed = {"method": {"h_steps": 0}, "objective": {"weight": 0.0, "kl_weight": None}}
        elif method.get("name") in ("costate", "alm", "als"):
            fixed = {"method": {"h_steps": 0}}
        return {**parts, **{part: {**(parts.get(part) or {}), **values} for part, values in fixed.items()}}

    @model_validator(mode="after")
    def _check_parts_against_each_other(self) -> "Experiment":
        for check in (_check_model, _check_method, _check_als, _check_cluster):
            check(self)
        return self


def _check_model(config: Experiment) -> None:
    model = config.model
    if ":" in model.cell:
        package = model.cell.split(":")[0]
        if not any(package == name or package.startswith(name + ".") for name in model.allow_cells_from):
            raise ConfigError(
                f"{model.cell!r} is not in a package that model.allow_cells_from lists; add {package.split('.')[0]!r} to it",
                "model.cell",
            )
    elif model.cell not in BUILT_IN_CELLS:
        raise ConfigError(
            f"unknown cell {model.cell!r}; choose {', '.join(BUILT_IN_CELLS)} or package.module:Class", "model.cell"
        )
    if model.activation is not None and model.cell not in ("elman", "mrnn"):
        raise ConfigError(f"only elman and mrnn take an activation, the cell is {model.cell!r}", "model.activation")
    if model.tied and model.embedding not in (None, model.hidden):
        raise ConfigError(
            f"tied needs embedding = hidden, got {model.embedding} and {model.hidden}", "model.embedding"
        )


def _check_method(config: Experiment) -> None:
    method, objective = config.method, config.objective
    if method.name in DUAL_METHODS and objective.penalty == "kl":
        raise ConfigError(
            f"kl has no dual, and {method.name} is made of duals; write l2, l2+kl, or method.name: pm", "objective.penalty"
        )
    if method.name in (*DUAL_METHODS, "pm", "als") and objective.weight == 0:
        raise ConfigError(
            f"{method.name} needs a weight above 0, got 0; for no penalty write method.name: bptt", "objective.weight"
        )
    if method.name == "pm" and method.h_steps == 0 and method.edge_free:
        raise ConfigError("edge_free moves states by H-steps, and h_steps is 0", "method.edge_free")
    if method.bounded and config.model.cell == "lstm":
        raise ConfigError("an lstm's c is not in (-1, 1), so h = tanh(z) cannot hold it", "method.bounded")
    if method.closing and objective.loss_on == "target":
        raise ConfigError("a closing target cannot carry the loss; write objective.loss_on: prediction", "method.closing")


def _check_als(config: Experiment) -> None:
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
    for key, value, fits, wants in wanted:
        if not fits:
            raise ConfigError(f"als alternates least squares and needs {wants}, got {value}", key)


def _check_cluster(config: Experiment) -> None:
    mesh, workers = config.cluster.mesh, config.cluster.workers
    if mesh is not None and mesh[0] * mesh[1] != workers:
        raise ConfigError(
            f"{mesh[0]} x {mesh[1]} = {mesh[0] * mesh[1]} places for {workers} workers; make them equal", "cluster.mesh"
        )
