"""Whether a GPU records a run's updates as CUDA graphs (`run.cuda_graph`)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpdist.config.experiment import Experiment

COMPARED = ("adam", "adamw")  # whose recorded steps were compared with a CPU's; fused, they do not step along a NaN
KERNELS = {"capturable", "differentiable", "foreach", "fused"}  # options that ask for other kernels than the fused one
Need = tuple[str, object, bool, str]  # a key, its value, whether that will do, and what will


def records_updates(config: "Experiment") -> bool:
    """What `run.cuda_graph` says; where it says nothing, whether such updates are known to be what a CPU computes.

    Code of the user's own may depend on more than tensors, and a recording would not: it has to be asked for.
    """
    if config.run.cuda_graph is not None:
        return config.run.cuda_graph
    own = ":" in config.model.cell
    fused = config.optimizer.name in COMPARED and not KERNELS & config.optimizer.options.keys()
    return fused and config.run.dtype == "float32" and not own and all(will_do for _, _, will_do, _ in needs(config))


def needs(config: "Experiment") -> Iterator[Need]:
    """What a recording cannot do without."""
    method, h = config.method, config.method.h_optimizer
    stateless = h.name == "sgd" and not h.options
    made_anew = h.name in ("sgd", "adagrad") and method.first != "persistent"  # the others ask to be `capturable`
    h_stays = method.h_steps == 0 and method.name != "alm"
    h_will_do = h_stays or stateless or made_anew
    workers, lr_decay = config.cluster.workers, config.optimizer.options.get("lr_decay", 0)
    yield "cluster.workers", workers, workers == 1, "1, since messages are not recorded"
    yield "batching.mode", config.batching.mode, config.batching.mode == "minibatch", "minibatch"
    yield "method.name", method.name, method.name != "als", "a method of gradient steps"
    own = ":" in config.objective.penalty and method.name != "bptt"
    yield "objective.penalty", config.objective.penalty, not own, "a built-in one, since constraints are not counted"
    yield "method.visit", method.visit, method.visit is None, "none of your own"
    yield "method.h_optimizer", h.name, h_will_do, "sgd without options, or adagrad on states made anew"
    yield "optimizer.options.lr_decay", lr_decay, not lr_decay, "0, since the rate is recorded too"
    yield "run.on_non_finite", config.run.on_non_finite, config.run.on_non_finite == "stop", "stop"
