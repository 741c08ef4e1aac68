"""The GRU's steps on a CPU: a backward pass without a weight gradient a step, and no more of it than is asked for.

torch's own GRU keeps a graph of some twenty nodes a step there, and adds a product of its own to the gradient of the
recurrent weight at every one of them. Here the forward pass leaves the step's derivatives behind, the backward pass
is four operations a step, and the gradients of the weights are products over all steps, in a node of their own
(`_Weights`): a gradient of the starts alone never comes to it.

The oracle is `Cell.forward` over `GRU.step`. Shape letters: `cells.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpdist.models.products import linear, weight_gradient

ROWS = 1024  # states whose derivatives are worked out at once


def gru(inputs: Tensor, state: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """nn.GRU's layer: inputs [B, N, E], state [N, H] -> h [B, N, H], the last h [N, H].

    h_t = n + z (h_{t-1} - n), n = tanh(W x + b + r (U h_{t-1} + c)), r and z each σ(W x + b + U h_{t-1} + c) with rows
    of its own: cuDNN's variant of Cho et al. (2014), who scale h_{t-1} by r before U.
    weights: of input and recurrence [3H, E], [3H, H], their biases [3H] each; parts in the order r, z, n.
    """
    before: list[Tensor] = []  # what `_Steps` leaves for `_Weights`, whose node has to be there first
    frozen = [weight.detach() for weight in weights]
    gradients = _Weights.apply(*weights, inputs.detach(), before)
    x, place = _Project.apply(inputs, *frozen)  # pyright: ignore[reportGeneralTypeIssues]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, state, *weights))
    return _Steps.apply(x, place, *gradients, state, frozen[1], frozen[3], before, learns)  # type: ignore[return-value]


# `_Steps` works out two gradients: that of U h + c [B, N, 3H], which for r and z is that of W x + b too, and that of
# W x + b for n [B, N, H]. Two nodes take both, each only where it is asked for: `_Project` for the inputs, `_Weights`
# for the weights. A gradient comes to a node by a tensor that the node made: the first to `_Project` by x, the others
# by places, tensors of 0 that nobody reads.


class _Project(torch.autograd.Function):
    """W x + b, and c where it is added too (r, z) [B, N, 3H]; a place [B, N, H] for the second gradient to come to."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, recurrent_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        B, N, E = inputs.shape
        H = recurrent.shape[1]
        ctx.save_for_backward(weight)
        both = bias.clone()
        both[: 2 * H] += recurrent_bias[: 2 * H]
        x = linear(inputs.reshape(-1, E), weight, both)
        return x.view(B, N, 3 * H), x.new_zeros(()).expand(B, N, H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        B, N, H = upstream[1].shape
        gates, new = (gradient.flatten(0, 1) for gradient in upstream)
        of_inputs = linear(gates[:, : 2 * H], weight[: 2 * H].t()).add_(linear(new, weight[2 * H :].t()))
        return of_inputs.view(B, N, -1), None, None, None, None


class _Weights(torch.autograd.Function):
    """Places [B, N, 3H], [B, N, H] for both gradients to come to; before: the states that the steps began from."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, recurrent: Tensor, bias: Tensor, recurrent_bias: Tensor, inputs: Tensor,
        before: list[Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(inputs)
        ctx.before = before
        (B, N, _), H, zero = inputs.shape, recurrent.shape[1], weight.new_zeros(())
        return zero.expand(B, N, 3 * H), zero.expand(B, N, H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = ctx.saved_tensors[0].flatten(0, 1)
        gates, new = (gradient.flatten(0, 1) for gradient in upstream)
        H = new.shape[1]
        of_weight = torch.cat([weight_gradient(gates[:, : 2 * H], inputs), weight_gradient(new, inputs)])
        of_recurrent = weight_gradient(gates, ctx.before[0].flatten(0, 1)).contiguous()
        of_recurrent_bias = gates.sum(0)
        of_bias = torch.cat([of_recurrent_bias[: 2 * H], new.sum(0)])
        return of_weight, of_recurrent, of_bias, of_recurrent_bias, None, None


class _Steps(torch.autograd.Function):
    """The chain itself. x [B, N, 3H] is used up.

    Kept for the backward pass, with dh a step's gradient: z; the slopes [B, N, 3, H] that turn dh into the gradient of
    U h + c; that which turns it into the gradient of W x + b for n.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, place: Tensor, gates_place: Tensor, new_place: Tensor, state: Tensor,
        weight: Tensor, bias: Tensor, before: list[Tensor], learns: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        B, N, _ = x.shape
        H = state.shape[1]
        new_bias = bias[2 * H :]
        states = x.new_empty(B + 1, N, H)
        states[0] = state
        new = x.new_empty(B if learns else 1, N, H)  # without a backward pass one step's do for all
        recurrent = torch.empty_like(new)
        parts = (x[:, :, : 2 * H], x[:, :, :H], x[:, :, H : 2 * H], x[:, :, 2 * H :])
        own = (part.unbind() if learns else part.unbind() * B for part in (new, recurrent))
        h = states[0]
        for gates, r, z, of_input, n, u, after in zip(
            *(part.unbind() for part in parts), *own, states[1:].unbind(), strict=True
        ):
            product = linear(h, weight)
            gates.add_(product[:, : 2 * H]).sigmoid_()
            torch.add(product[:, 2 * H :], new_bias, out=u)
            torch.addcmul(of_input, r, u, out=n).tanh_()
            h = torch.lerp(n, h, z, out=after)
        if learns:
            before.append(states[:-1])
            ctx.save_for_backward(weight, *_slopes(states[:-1], x, new, recurrent))
        ctx.set_materialize_grads(False)
        return states[1:], states[B].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        outputs, last = upstream
        weight, slopes, new_slope, update = ctx.saved_tensors
        B, N, H = update.shape
        dh, gates = torch.empty_like(update), torch.empty_like(slopes)
        carry = torch.zeros_like(update[0]) if last is None else last
        steps = (part.unbind()[::-1] for part in (dh, dh[:, :, None], update, slopes, gates, gates.view(B, N, 3 * H)))
        from_above = [None] * B if outputs is None else outputs.unbind()[::-1]
        for own, wide, z, slope, out, flat, upper in zip(*steps, from_above, strict=True):
            if upper is None:
                own.copy_(carry)
            else:
                torch.add(carry, upper, out=own)
            torch.mul(slope, wide, out=out)
            carry = linear(flat, weight.t()).addcmul_(own, z)
        of_gates, of_new = gates.flatten(2), dh.mul_(new_slope)
        return of_gates, of_new, of_gates, of_new, carry, None, None, None, None


def _slopes(before: Tensor, x: Tensor, new: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> slopes [B, N, 3, H], that of n [B, N, H], z [B, N, H]. x holds r and z; all but `before` is used up.

    Some steps at a time, which stay in the cache.
    """
    slopes = x.unflatten(2, (3, -1))
    steps = max(1, ROWS // x.shape[1])
    for h, slope, n, u in zip(*(part.split(steps) for part in (before, slopes, new, recurrent)), strict=True):
        r, z, last = slope.unbind(2)
        of_new = torch.ops.aten.tanh_backward(1 - z, n)
        of_update = torch.ops.aten.sigmoid_backward(torch.sub(h, n, out=n), z)
        of_reset = torch.ops.aten.sigmoid_backward(of_new * u, r)
        u.copy_(z)
        torch.mul(of_new, r, out=last)
        n.copy_(of_new)
        r.copy_(of_reset)
        z.copy_(of_update)
    return slopes, new, recurrent
