"""The output f of Eq. 2 and its loss: softmax(W_y h + b_y) and cross entropy, without keeping the logits.

Shape letters: M tokens, H width of h, V types.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tpdist.models.products import by_onednn, linear, weight_gradient

IGNORED = -1  # the label of a place that holds no token
SMALL = 1e-30  # a probability that float32 still holds with all its digits
ROWS_ON_CPU = 640  # tokens whose logits exist at once: so few stay in the cache
LOGITS_ON_GPU = 2**26  # that exist at once: 256 MiB; with fewer the products do not fill the card
MULTIPLE = {"cpu": 1, "cuda": 8}  # of types: cuBLAS takes slower kernels where rows of logits do not begin at 16 bytes


def cross_entropy(h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Summed cross entropy in nats; the gradient is computed in the forward pass, a chunk of tokens at a time.

    h [M, H], weight [V, H], bias [V], labels [M] (`IGNORED` counts nothing). `dtype`: that of the matrix
    products, if not h's own. Oracle: `torch.nn.functional.cross_entropy` over all logits at once.
    """
    return _ChunkedCrossEntropy.apply(h, weight, bias, labels, dtype or h.dtype)  # type: ignore[return-value]


def token_losses(h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every token, [M] in nats; 0 where ignored. Without gradient, for evaluation."""
    rows = rows_at_once(h.device.type, len(weight))
    with torch.no_grad():
        losses = [
            functional.cross_entropy(linear(part, weight, bias), label, ignore_index=IGNORED, reduction="none")
            for part, label in zip(h.split(rows), labels.split(rows), strict=True)
        ]
    return torch.cat(losses)


def rows_at_once(device: str, types: int) -> int:
    """Tokens whose logits exist at once. device: its type."""
    return ROWS_ON_CPU if device == "cpu" else max(1, LOGITS_ON_GPU // types)


def _padded(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Types added whose probability is 0, up to a multiple that suits the device."""
    more = -len(weight) % MULTIPLE.get(weight.device.type, 1)
    if more == 0:
        return weight, bias
    return functional.pad(weight, (0, 0, 0, more)), functional.pad(bias, (0, more), value=-torch.inf)


def _softmax(logits: Tensor, label: Tensor, *_: Tensor) -> Tensor:
    """Logits [M, V] become probabilities, in place -> losses [M, 1] of label [M, 1].

    log Σ exp(logits) = largest - log of the largest probability, which is at least 1/V.
    """
    chosen, largest = logits.gather(1, label), logits.amax(1, keepdim=True)
    torch.softmax(logits, 1, out=logits)
    return largest - logits.amax(1, keepdim=True).log() - chosen


def _softmax_on_cpu(logits: Tensor, label: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same without the two passes that look for maxima; a GPU would have to wait to know which labels need more."""
    probability = torch.softmax(logits, 1, out=logits).gather(1, label)
    losses = -probability.log()
    lost = (probability < SMALL)[:, 0]  # too small for the logarithm to be exact
    if lost.any():
        again = torch.addmm(bias, h[lost], weight.t()).to(logits.dtype)
        losses[lost] = again.logsumexp(1, keepdim=True) - again.gather(1, label[lost])
    return losses


def _of_parameters(logits: Tensor, slope: Tensor, h: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk's gradients of weight [V, H] and bias [V], in the dtype of `logits` [M, V], by now softmax - one-hot.

    slope: `logits` in the dtype of products. h [M, H]; real [M, 1] is 0 where a token is ignored.
    """
    if by_onednn(slope):  # one product for both: a column more is free, a pass over the slopes is not
        both = weight_gradient(slope, torch.cat([h * real, real], 1))
        return both[:, :-1], both[:, -1]
    return weight_gradient(slope, h * real.to(h.dtype)).to(logits.dtype), torch.mv(logits.t(), real[:, 0])


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Per chunk: logits, softmax - one-hot in their place, three products whose small side lacks ignored tokens."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        need_h, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_h = torch.empty_like(h) if need_h else None
        sums: tuple[Tensor, Tensor] | None = None  # of the gradients of weight and bias
        low_weight, low_bias = _padded(weight.to(dtype), bias.to(dtype))
        total = h.new_zeros(())
        rows = rows_at_once(h.device.type, len(low_weight))
        # every chunk's logits in one place, where the library takes one: the heap grows by those that come and go
        buffer = (
            h.new_empty(rows, len(low_weight), dtype=dtype) if len(h) > rows and not by_onednn(low_weight) else None
        )
        for begin in range(0, len(h), rows):
            here = slice(begin, begin + rows)
            part, label = h[here].to(dtype), labels[here, None]
            real, label = (label != IGNORED).to(h.dtype), label.clamp(min=0)
            logits = linear(part, low_weight, low_bias, None if buffer is None else buffer[: len(part)]).to(h.dtype)
            losses = _softmax_on_cpu if logits.is_cpu else _softmax
            total += (losses(logits, label, part, low_weight, low_bias) * real).sum()
            if not (need_h or need_weight or need_bias):
                continue
            logits.scatter_add_(1, label, logits.new_full((), -1).expand_as(label))
            slope = logits.to(dtype)
            if grad_h is not None:
                torch.mul(linear(slope, low_weight.t()), real, out=grad_h[here])
            if need_weight or need_bias:
                more = _of_parameters(logits, slope, part, real)
                sums = more if sums is None else (sums[0].add_(more[0]), sums[1].add_(more[1]))
            del logits, slope  # before the next chunk's come
        of_weight, of_bias = sums or (torch.zeros_like(weight), torch.zeros_like(bias))
        grad_weight = of_weight[: len(weight)].contiguous() if need_weight else None
        grad_bias = of_bias[: len(bias)].contiguous() if need_bias else None
        ctx.save_for_backward(*(g for g in (grad_h, grad_weight, grad_bias) if g is not None))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, saved = upstream[0], iter(ctx.saved_tensors)
        if scale.is_cpu and scale == 1:  # as in every update; on a GPU looking would wait for the device
            grads = [next(saved) if needed else None for needed in ctx.needs_input_grad[:3]]
        else:
            grads = [next(saved) * scale if needed else None for needed in ctx.needs_input_grad[:3]]
        return (*grads, None, None)
