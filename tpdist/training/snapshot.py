"""From a trainer to a checkpoint and back: everything that the next step depends on."""

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch import Tensor

from tpdist.errors import RunError
from tpdist.training.checkpoints import Loaded, Packed, Shard, not_a_state
from tpdist.training.kept_model import load_parameters
from tpdist.training.manifest import STATE
from tpdist.training.optimizer_state import pack_optimizer, unpack_optimizer
from tpdist.training.state import EpochSums, RunState

if TYPE_CHECKING:
    from tpdist.training.trainer import Trainer

DRAWN_BY = "windows drawn by"  # in a checkpoint's layout


def pack(trainer: "Trainer") -> Packed:
    """θ, H, U, the optimisers' states and the counters, as named tensors and JSON."""
    place, batches = trainer.workers.place, trainer.batches
    tensors = {f"model.{name}": p for name, p in trainer.model.named_parameters()}
    theta, scalars = pack_optimizer(trainer.theta.optimizer, "theta.")
    index = batches.begin_index()
    state = {
        "corpus": trainer.store.manifest.checksum,
        "optimizers": _optimizers(trainer),
        "layout": _layout(trainer) | {DRAWN_BY: _drawn_by(trainer)},
        "theta_scalars": scalars,
        "h_counts": {index[begin]: counts for begin, counts in trainer.boundaries.h_counts.items()},
        **trainer.state.to_json(),
    }
    states = {f"boundaries.{name}": t for name, t in trainer.boundaries.tensors().items()}
    states["carried"] = trainer.carried
    shard = Shard(f"states-{place.stream}-{place.time}.safetensors", batches.streams, batches.slots, place.time)
    return Packed(tensors | theta, state, states, shard)


def restore(trainer: "Trainer", loaded: Loaded) -> None:
    """Put a checkpoint into a trainer of the same model and corpus.

    The rest of the configuration may have changed: an optimiser of another name or with other options starts anew,
    and streams, blocks, windows and seed may change between epochs where no states are stored. Where other workers
    draw other windows (of their own spans, in random order), an epoch that was not over begins anew.

    Raises RunError, naming what does not fit.
    """
    tensors, state, where = loaded.tensors, loaded.state, loaded.where
    if state["corpus"] != trainer.store.manifest.checksum:
        raise RunError(
            f"{trainer.run.path}: was trained on another corpus than the store at {trainer.store.directory} now holds; "
            f"prepare that corpus again or start a new run"
        )
    _check_dtype(trainer, tensors, where)
    counted = counters(state, where)
    load_parameters(trainer.model, _under("model.", tensors), where)
    _check_layout(trainer, state, where)
    others = state["layout"].get(DRAWN_BY, _drawn_by(trainer)) != _drawn_by(trainer)
    if others and counted.position:
        trainer.reporter.say(f"other workers draw other windows: epoch {counted.epoch} begins anew")
        counted.position, counted.sums = 0, EpochSums()
    states = _own_states(trainer, loaded)
    _restore_boundaries(trainer, _under("boundaries.", states), state, where, others)
    was, now = state["optimizers"], _optimizers(trainer)
    if was["theta"] == now["theta"]:
        unpack_optimizer(trainer.theta.optimizer, "theta.", tensors, state["theta_scalars"], where)
    else:
        trainer.reporter.say("optimizer: changed, so its state starts anew")
    if counted.position:
        if "carried" not in states:
            raise RunError(f"{where}: saved in the middle of an epoch, without what the windows carry")
        trainer.carried = states["carried"].to(trainer.device)
    trainer.state = counted


def _check_dtype(trainer: "Trainer", tensors: dict[str, Tensor], where: str) -> None:
    """Moments, targets and costates are kept in the parameters' dtype, and have to stay in it."""
    now = next(trainer.model.parameters()).dtype
    for name, tensor in _under("model.", tensors).items():
        if tensor.dtype != now:
            was, asked = str(tensor.dtype).removeprefix("torch."), trainer.config.run.dtype
            raise RunError(f"{where}: parameter {name} is of {was}, where run.dtype is {asked}: leave it as it was")


def counters(state: dict[str, Any], where: str) -> RunState:
    """Of a checkpoint's `state.json`. Raises RunError where they are not such."""
    try:
        return RunState.from_json(state)
    except ValidationError as error:
        raise not_a_state(where, error) from error


def _check_layout(trainer: "Trainer", state: dict[str, Any], where: str) -> None:
    was, now = state["layout"], _layout(trainer)
    changed = [key for key in now if was.get(key) != now[key]]
    if changed and (state["position"] or trainer.boundaries.tensors()):
        when = "in the middle of an epoch" if state["position"] else "with states stored for every block"
        raise RunError(
            f"{where}: saved {when}, with {changed[0]} {was.get(changed[0])}; the configuration has {now[changed[0]]}: "
            f"leave it as it was"
        )


def _own_states(trainer: "Trainer", loaded: Loaded) -> dict[str, Tensor]:
    """This worker's states, put together from the files of all workers that wrote them, however many they were."""
    batches, own = trainer.batches, {}
    for spare, (shard, tensors) in product((False, True), loaded.shards()):
        both = range(max(shard.streams.start, batches.streams.start), min(shard.streams.stop, batches.streams.stop))
        rows = slice(both.start - shard.streams.start, both.stop - shard.streams.start)
        here = slice(both.start - batches.streams.start, both.stop - batches.streams.start)
        theirs, mine = _same_boundaries(shard.slots, batches.slots, spare)
        for name, tensor in tensors.items():
            whole = name == "carried"
            if tensor.shape[-1] != trainer.model.state_size:
                raise RunError(
                    f"{loaded.where}/{shard.file}: states of {tensor.shape[-1]} numbers each, the model's have "
                    f"{trainer.model.state_size}"
                )
            shape = (len(batches.streams), *(() if whole else (len(batches.slots),)), tensor.shape[-1])
            target = own.setdefault(name, tensor.new_zeros(shape))
            if len(both) == 0:
                continue
            if not whole:
                target[here, mine] = tensor[rows, theirs]
            elif shard.time == 0:  # the first worker in time holds what is carried into the next window
                target[here] = tensor[rows]
    return own


def _same_boundaries(theirs: list[int], mine: list[int], spare: bool) -> tuple[list[int], list[int]]:
    """Where boundaries of the corpus stand in a worker's file, and where they stand here.

    spare: the place behind a worker's last block alone. What waits there is not the state of the next worker's first
    block, though the boundary is the same: it is taken from such a place, if there is one, and else from that block.
    """
    ends = bool(theirs) and theirs[-1] >= 0  # a closing target, written as -boundary, is no spare place
    if spare:
        return ([len(theirs) - 1], [len(mine) - 1]) if ends and theirs[-1] == mine[-1] else ([], [])
    at = {slot: i for i, slot in enumerate(mine)}
    pairs = [(i, at[slot]) for i, slot in enumerate(theirs[:-1] if ends else theirs) if slot in at]
    return [i for i, _ in pairs], [j for _, j in pairs]


def _restore_boundaries(
    trainer: "Trainer", saved: dict[str, Tensor], state: dict[str, Any], where: str, others: bool
) -> None:
    own = trainer.boundaries
    for name, tensor in own.tensors().items():
        if name not in saved or saved[name].shape != tensor.shape:
            got = tuple(saved[name].shape) if name in saved else "absent"
            raise RunError(
                f"{where}: its stored states do not fit the configuration: {name} is {got} there and "
                f"{tuple(tensor.shape)} here; leave method and batching as they were"
            )
        tensor.copy_(saved[name])
    if state["optimizers"]["h"] != _optimizers(trainer)["h"]:
        if state["h_counts"]:
            trainer.reporter.say("method.h_optimizer: changed, so its state starts anew")
        return
    own.h_moments = {name: t.to(trainer.device) for name, t in _under("h_moments.", saved).items()}
    begins = {index: begin for begin, index in trainer.batches.begin_index().items()}
    if others:  # other windows: as often visited as those that were visited least
        least = min(state["h_counts"].values(), key=lambda counts: sum(counts.values()), default=None)
        own.h_counts = {} if least is None else {begin: dict(least) for begin in begins.values()}
        return
    try:
        own.h_counts = {begins[int(index)]: dict(counts) for index, counts in state["h_counts"].items()}
    except (ValueError, KeyError) as error:
        raise RunError(f"{where}/{STATE}: h_counts: {error} is no window of this corpus") from error


def _optimizers(trainer: "Trainer") -> dict[str, Any]:
    theta, h = trainer.config.optimizer, trainer.config.method.h_optimizer
    return {
        "theta": [theta.name, _plain(theta.options)],
        "h": [h.name, _plain(h.options), trainer.plan.h.keep],
    }


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _drawn_by(trainer: "Trainer") -> int:
    """How many workers along time draw windows of their own spans."""
    return trainer.workers.place.times if trainer.batches.own_windows else 1


def _layout(trainer: "Trainer") -> dict[str, Any]:
    batching = trainer.config.batching
    return {
        "batching.streams": batching.streams,
        "objective.block": trainer.config.objective.block,
        "blocks per window": trainer.batches.per_window,
        "batching.order": batching.order,
        "run.seed": trainer.config.run.seed,
    }


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
