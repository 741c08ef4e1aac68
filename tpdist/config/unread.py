"""Settings that somebody wrote and the method does not read: a run says so, for they change nothing."""

from collections.abc import Iterator

from tpdist.config.experiment import Experiment
from tpdist.config.parts import Method
from tpdist.config.presets import PRESETS

READ_BY = {
    "method.h_steps": ("pm", "admm"),
    "method.h_optimizer.lr": ("pm", "admm", "alm"),
    "method.h_optimizer.name": ("pm", "admm", "alm"),
    "method.dual.lr": ("admm", "alm"),
    "method.dual.start_epoch": ("admm", "alm"),
    "method.sweeps": ("costate",),
    "method.keep_costates": ("costate",),
    "objective.weight": ("pm", "admm", "alm", "costate", "als"),
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
