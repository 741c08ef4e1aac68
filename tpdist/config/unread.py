"""Settings that somebody wrote and the method does not read: a run says so, for they change nothing."""

from collections.abc import Iterator

from tpdist.config.experiment import Experiment
from tpdist.config.parts import Method
from tpdist.config.presets import PRESETS

MOVE_H, HAVE_DUALS = ("pm", "admm", "alm"), ("admm", "alm")
STEP_ON_THETA = ("bptt", "pm", "admm", "alm", "costate")
READ_BY = {
    "method.h_steps": ("pm", "admm"),
    "method.h_optimizer.lr": MOVE_H,
    "method.h_optimizer.name": MOVE_H,
    "method.h_optimizer.clip": MOVE_H,
    "method.bounded": MOVE_H,
    "method.edge_free": MOVE_H,
    "method.dual.lr": HAVE_DUALS,
    "method.dual.start_epoch": HAVE_DUALS,
    "method.dual.clip": HAVE_DUALS,
    "method.dual.order": HAVE_DUALS,
    "method.dual.keep": HAVE_DUALS,
    "method.sweeps": ("costate",),
    "method.keep_costates": ("costate",),
    "objective.weight": ("pm", "admm", "alm", "costate", "als"),
    "objective.kl_weight": ("pm", "admm", "alm", "costate"),
    "objective.loss_on": ("pm", "admm", "alm", "costate", "als"),
    "optimizer.name": STEP_ON_THETA,
    "optimizer.lr": STEP_ON_THETA,
    "optimizer.clip": STEP_ON_THETA,
}


def unread(config: Experiment) -> Iterator[str]:
    """A line for each. What a file says is not meant where `--set` names another method, nor where it says everything.

    The latter is a run's own, or what `tpdist config show` prints.
    """
    at, name, first = config._places.at, config.method.name, config.method.first
    switched = ":" not in at.get("method.name", ":")
    everything = all(f"method.{field}" in at for field in Method.model_fields)

    def meant(key: str) -> bool:
        place = at.get(key)
        if place is None or (config.preset in PRESETS and place == at.get("preset")):
            return False
        return ":" not in place or not (switched or everything)

    if config.method.visit is not None:
        return
    for key, methods in READ_BY.items():
        if meant(key) and name not in methods:
            yield f"note: {at[key]}: {key} changes nothing with method.name: {name}; read by {', '.join(methods)}"
    if meant("method.relaxation") and first != "persistent" and config.batching.order != "shuffled":
        yield (
            f"note: {at['method.relaxation']}: method.relaxation changes nothing with method.first: {first}; read with "
            "persistent, or with batching.order: shuffled"
        )
    if meant("objective.kl_weight") and config.objective.penalty == "l2":
        yield f"note: {at['objective.kl_weight']}: objective.kl_weight changes nothing with objective.penalty: l2"
    if name in HAVE_DUALS and not config.method.dual.keep and config.method.dual.order == "after":
        yield (
            f"note: duals that are zeroed at every window (method.dual.keep: false) and stepped last (order: after) "
            f"are never read, so {name} goes without; write keep: true, or order: before"
        )
