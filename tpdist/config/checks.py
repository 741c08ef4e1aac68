"""Whether the parts of a configuration fit each other: what needs more than one of them to tell."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tpdist.config import graphs, workers
from tpdist.config.parts import BUILT_IN_CELLS, BUILT_IN_PENALTIES, DUAL_METHODS, Method
from tpdist.config.sweep import conflicts
from tpdist.errors import ConfigError

if TYPE_CHECKING:
    from tpdist.config.experiment import Experiment

LARGEST_EXPONENT = 30  # of λ, which float32 ends at 38


def misfits(config: "Experiment") -> Iterator[ConfigError]:
    """All of them, with the dotted key of each."""
    for check in (
        _check_data, _check_model, _check_method, _check_h_step, _check_growth, _check_als, _check_recompute,
        _check_decay, _check_cuda_graph, workers.misfits,
    ):  # fmt: skip
        yield from check(config)
    if config.sweep is not None:
        yield from conflicts(config.sweep)


def _check_data(config: "Experiment") -> Iterator[ConfigError]:
    data = config.data
    if data.recipe == "text" and data.source is not None and (data.train or data.valid or data.test):
        yield ConfigError(f"one file to cut, or three files; got both, leave {data.source!r} out", "data.source")


def _check_model(config: "Experiment") -> Iterator[ConfigError]:
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


def _check_method(config: "Experiment") -> Iterator[ConfigError]:
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
    if method.name in ("pm", "admm") and method.h_steps == 0 and method.edge_free:
        yield ConfigError("edge_free moves states by H-steps, and h_steps is 0", "method.edge_free")
    elif method.edge_free and method.starts == "held":
        yield ConfigError(
            "edge_free moves a start, and starts: held moves none; write starts: tied", "method.edge_free"
        )
    unmoved = not (method.starts == "tied" and _moves_targets(method)) and method.name != "als"
    handed_on = config.batching.order == "shuffled" and config.batching.blocks == 1
    if method.first == "persistent" and method.relaxation == 0 and unmoved and not handed_on and not method.visit:
        yield ConfigError(
            "persistent states that neither H-steps (starts: tied) nor relaxation moves stay 0 for ever; "
            "write 1 or more",
            "method.relaxation",
        )
    if method.edge_costate == "kept" and method.name == "costate":
        wanted = [
            ("batching.order", config.batching.order, config.batching.order == "shuffled", "shuffled"),
            ("method.edge", method.edge, method.edge == "carry", "carry"),
        ]
        why = "method.edge_costate: kept is for windows in random order that go on from stored states: it needs"
        yield from _needs(why, wanted)
    if method.bounded and (within := _unbounded(config)):
        yield ConfigError(f"{within} is not in (-1, 1), so h = tanh(z) cannot hold it", "method.bounded")
    if method.closing and config.batching.order == "shuffled":
        yield ConfigError(
            "a closing target belongs to windows in order; write batching.order: sequential", "method.closing"
        )
    if method.closing and objective.loss_on == "target":
        yield ConfigError(
            "a closing target cannot carry the loss; write objective.loss_on: prediction", "method.closing"
        )


def _moves_targets(method: Method) -> bool:
    """By H-steps or, as alm, with θ. Methods without H-steps have 0 of them, whatever a file says."""
    return method.h_steps > 0 or method.name == "alm"


def _check_h_step(config: "Experiment") -> Iterator[ConfigError]:
    method, h = config.method, config.method.h_optimizer
    if _moves_targets(method) and method.visit is None and h.name != "sgd" and h.lr is None:
        yield ConfigError(
            f"{h.name} needs one: the default 1/λ is a plain gradient step's; write h_optimizer.name: sgd, or the size "
            "of a step, such as 0.1",
            "method.h_optimizer.lr",
        )


def _check_growth(config: "Experiment") -> Iterator[ConfigError]:
    """λ and 1/λ, the default of step sizes, are numbers in float32 to the last epoch."""
    objective, last = config.objective, config.run.epochs
    for weight in (objective.weight, objective.kl_weight or 0.0):
        exponent = math.log10(weight) + (last - 1) * math.log10(objective.weight_growth) if weight else 0.0
        if objective.weight_growth != 1 and abs(exponent) > LARGEST_EXPONENT:
            yield ConfigError(
                f"{objective.weight_growth:g} takes λ from {weight:g} to 1e{exponent:+.0f} in epoch {last}, the last; "
                f"between 1e-{LARGEST_EXPONENT} and 1e+{LARGEST_EXPONENT} it can be computed with",
                "objective.weight_growth",
            )
            return


def _unbounded(config: "Experiment") -> str | None:
    """The state that may leave (-1, 1)."""
    model = config.model
    if model.cell == "lstm":
        return "an lstm's c"
    if model.cell not in BUILT_IN_CELLS or model.activation == "identity":
        return f"the state of {model.cell}" + (" with activation identity" if model.activation else "")
    return None


def _check_als(config: "Experiment") -> Iterator[ConfigError]:
    if config.method.name != "als":
        return
    wanted = [
        ("model.cell", config.model.cell, config.model.cell in ("elman", "mrnn"), "elman or mrnn"),
        ("model.activation", config.model.activation, config.model.activation == "identity", "identity"),
        ("model.layers", config.model.layers, config.model.layers == 1, "1"),
        ("model.tied", config.model.tied, not config.model.tied, "false"),
        ("method.bounded", config.method.bounded, not config.method.bounded, "false"),
        ("objective.block", config.objective.block, config.objective.block == 1, "1"),
        ("objective.loss_on", config.objective.loss_on, config.objective.loss_on == "target", "target"),
        ("objective.penalty", config.objective.penalty, config.objective.penalty == "l2", "l2"),
        # the sums are normal equations here, which rounding makes unsolvable
        ("cluster.gradient_dtype", config.cluster.gradient_dtype, config.cluster.gradient_dtype is None, "null"),
    ]
    yield from _needs("als alternates least squares and needs", wanted)


def _needs(why: str, wanted: Sequence[tuple[str, object, bool, object]]) -> Iterator[ConfigError]:
    """wanted: of other settings the key, the value, whether it fits, and what would."""
    for key, value, fits, wants in wanted:
        if not fits:
            value, wants = (str(x).lower() if isinstance(x, bool) else x for x in (value, wants))  # as in a file
            yield ConfigError(f"{why} {wants}, got {'nothing' if value is None else value}", key)


def _check_recompute(config: "Experiment") -> Iterator[ConfigError]:
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


def _check_decay(config: "Experiment") -> Iterator[ConfigError]:
    decay = config.optimizer.decay
    if decay is not None and decay.start_epoch is not None and decay.patience:
        yield ConfigError(
            f"with start_epoch the rate falls whether validation does or not; leave it out, got {decay.patience}",
            "optimizer.decay.patience",
        )


def _check_cuda_graph(config: "Experiment") -> Iterator[ConfigError]:
    if config.run.cuda_graph:
        yield from _needs("run.cuda_graph records whole updates: it needs", [*graphs.needs(config)])
