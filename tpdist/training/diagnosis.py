"""Where numbers went wrong: which block's are not finite, which worker's parameters differ from the others'.

Nothing here is computed while all is well, but for a sum over θ's bits every `run.check_every` updates and at
checkpoints.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tpdist.errors import WorkersDifferError
from tpdist.models import LanguageModel
from tpdist.parallel import Workers
from tpdist.tprop import Plan, Window
from tpdist.tprop.parts import chunks
from tpdist.tprop.penalties import penalty

WORDS = {  # from causes to effects: an H-step carries what is not finite to the blocks beside it
    "first": "the first value at its start",
    "dual": "the dual at its end",
    "start": "its start",
    "costate": "the costate at its end",
    "target": "the target at its end",
}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def locate(model: LanguageModel, plan: Plan, window: Window, states: dict[str, Tensor]) -> tuple[int, int, str] | None:
    """(stream, block, what): the first block of this worker's part of a window whose numbers are not finite.

    states: start [S, k, d], and first values, target, dual, costate [S, k+1, d], as the pass read them
    (`batching.recompute` keeps no target). None where no block's own numbers show it: their sum is too large, or θ
    itself is not finite.
    """
    k = window.blocks
    for name in WORDS:
        if name not in states:
            continue
        values = states[name]
        bad = ~(values[:, :k] if name in ("first", "start") else values[:, 1:]).isfinite().all(-1)
        if bad.any():
            return *divmod(int(bad.flatten().nonzero()[0]), k), WORDS[name]
    if not all(p.isfinite().all() for p in model.parameters()):
        return None
    for chunk in chunks(window.inputs.shape[1] * k, plan.chunk_blocks):
        begin, end = chunk.start, chunk.stop
        if _wrong(model, plan, window, states, chunk) is None:
            continue
        while end - begin > 1:
            middle = (begin + end) // 2
            left = _wrong(model, plan, window, states, slice(begin, middle)) is not None
            begin, end = (begin, middle) if left else (middle, end)
        what = _wrong(model, plan, window, states, slice(begin, end))
        return None if what is None else (*divmod(begin, k), what)
    return None


def first_cause(found: Sequence[tuple[int, int, str] | None]) -> int | None:
    """The rank of the worker that found what comes first in `WORDS`; losses and gradients come last."""
    words = list(WORDS.values())
    order = [(words.index(one[2]) if one[2] in words else len(words), rank) for rank, one in enumerate(found) if one]
    return min(order)[1] if order else None


def _wrong(model: LanguageModel, plan: Plan, window: Window, states: dict[str, Tensor], blocks: slice) -> str | None:
    """What of some blocks' objective is not finite: their loss, their penalty, or its gradient of θ."""

    def flat(values: Tensor) -> Tensor:
        return values.reshape(-1, values.shape[-1])[blocks]

    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        h, prediction = model.unroll(window.inputs.flatten(1)[:, blocks], flat(states["start"]))
        loss = model.loss(h, window.labels.flatten(1)[:, blocks])
        cost = loss.new_zeros(())
        if window.constrained and plan.terms.couples and "target" in states:
            coupled = window.coupled[:, 1:].reshape(-1)[blocks]
            right = [flat(states[name][:, 1:]) for name in ("target", "dual")]
            cost = penalty(model, plan.terms, right[0], prediction, right[1], coupled)
        gradients = torch.autograd.grad(loss + cost, parameters, allow_unused=True)
    norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
    values = {"its loss": loss, "its penalty": cost, "its gradient of θ": norm}
    return next((what for what, value in values.items() if not value.isfinite()), None)


def fingerprint(parameters: Sequence[Tensor]) -> int:
    """64 bits that change with any bit of θ: the sum of its numbers' bit patterns, parameter after parameter."""
    total = 0
    for p in parameters:
        bits = p.detach().contiguous().view(BITS[p.element_size()])
        total = (total * 31 + int(bits.sum(dtype=torch.int64))) % 2**64
    return total


def compare_workers(workers: Workers, parameters: Sequence[Tensor], step: int) -> None:
    """Raise WorkersDifferError unless all workers have the same θ, to the bit. All workers call it at once."""
    if workers.count == 1:
        return
    prints = workers.gather(fingerprint(parameters))
    (most, votes), *others = Counter(prints).most_common()
    if not others:
        return
    alone = votes == others[0][1]  # as many on either side: nobody can tell who is right
    odd = [rank for rank, one in enumerate(prints) if alone or one != most]
    named = ", ".join(f"{workers.name(rank)}: {prints[rank]:016x}" for rank in odd)
    named += "" if alone else f"; the others: {most:016x}"
    raise WorkersDifferError(
        f"after step {step}: θ is not the same on all workers ({named}); a device, its memory or the network "
        f"alters numbers. Look at that machine, then go on from the last checkpoint"
    )
