"""Settings that somebody wrote and the method or the recipe does not read: a run says so, for they change nothing."""

from collections.abc import Iterator, Mapping, Sequence

from tpdist.config.experiment import Experiment
from tpdist.config.parts import DUAL_METHODS, Method
from tpdist.config.presets import PRESETS

MOVE_H = ("pm", *DUAL_METHODS)
STEP_ON_THETA, COUPLE = ("bptt", *MOVE_H, "costate"), (*MOVE_H, "costate", "als")
# a part stands for all that is below it; what every method reads is not here
READ_BY = {
    "method.h_steps": ("pm", "admm"),
    "method.starts": (*MOVE_H, "als"),  # als, only to ask for tied beside edge_free
    "method.h_optimizer": MOVE_H,
    "method.bounded": MOVE_H,
    "method.edge_free": (*MOVE_H, "als"),
    "method.closing": (*MOVE_H, "costate"),
    "method.dual": DUAL_METHODS,
    "method.sweeps": ("costate",),
    "method.keep_costates": ("costate",),
    "method.edge_costate": ("costate",),
    "objective.penalty": COUPLE,
    "objective.weight": COUPLE,
    "objective.kl_weight": (*MOVE_H, "costate"),
    "objective.weight_growth": COUPLE,
    "objective.loss_on": COUPLE,
    "optimizer": STEP_ON_THETA,
}
RECIPES_READ = {
    "data.source": ("ptb", "wikitext", "text8", "text"),
    **dict.fromkeys(("data.train", "data.valid", "data.test", "data.column"), ("text",)),
    "data.synthetic": ("synthetic",),
}
Found = tuple[str, tuple[str, str]]  # a key that is not read; the setting beside which it is not, and what reads it


def unread(config: Experiment) -> Iterator[str]:
    """A line for each. What a file says is not meant where `--set` names another method or recipe.

    Nor is it where the file says everything: it is a run's own, or what `tpdist config show` prints.
    """
    yield from unread_by_all([config])
    method = config.method
    zeroed = not method.dual.keep and method.dual.order == "after"
    if method.name in DUAL_METHODS and method.visit is None and zeroed:
        yield (
            f"note: duals that are zeroed at every window (method.dual.keep: false) and stepped last (order: after) "
            f"are never read, so {method.name} goes without; write keep: true, or order: before"
        )


def unread_by_all(configs: Sequence[Experiment]) -> Iterator[str]:
    """A line for each setting that none of `configs`, the points of a sweep, reads."""
    found = [dict(_unread(config)) for config in configs]
    for key, (_, readers) in found[0].items():
        if all(key in one for one in found):
            beside = " or ".join(dict.fromkeys(one[key][0] for one in found))
            yield f"note: {configs[0]._places.at[key]}: {key} changes nothing with {beside}{readers}"


def _unread(config: Experiment) -> Iterator[Found]:
    at, name, first = config._places.at, config.method.name, config.method.first
    everything = all(f"method.{field}" in at for field in Method.model_fields)
    sections = {key.rpartition(".")[0] for key in at}

    def meant(key: str, beside: str = "method.name") -> bool:
        place, switched = at.get(key), ":" not in at.get(beside, ":")
        if place is None or (config.preset in PRESETS and place == at.get("preset")):
            return False
        return ":" not in place or not (switched or everything)

    def unread_beside(switch: str, value: str, read_by: Mapping[str, Sequence[str]]) -> Iterator[Found]:
        for setting, readers in read_by.items():
            for key in () if value in readers else at:
                below = key == setting or key.startswith(f"{setting}.")
                if below and key not in sections and "[" not in key and meant(key, switch):  # [: a place in a list
                    yield key, (f"{switch}: {value}", f"; read by {', '.join(readers)}")

    yield from unread_beside("data.recipe", config.data.recipe, RECIPES_READ)
    if config.method.visit is not None:
        return
    yield from unread_beside("method.name", name, READ_BY)
    if meant("method.relaxation") and first != "persistent" and config.batching.order != "shuffled":
        readers = "; read with persistent, or with batching.order: shuffled"
        yield "method.relaxation", (f"method.first: {first}", readers)
    penalty, kl_read = config.objective.penalty, name in READ_BY["objective.kl_weight"]
    if meant("objective.kl_weight") and kl_read and penalty not in ("kl", "l2+kl"):
        yield "objective.kl_weight", (f"objective.penalty: {penalty}", "")
