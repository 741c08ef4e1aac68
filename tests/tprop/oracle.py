"""The method written out plainly: autograd over the whole window, block by block, stream by stream.

No chunks, no masks, no flattening, no kernels: loops over `Cell.step`, torch's own losses and optimisers. Slow, and
meant to be read beside Section 3 of the paper.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tpdist.config import Experiment
from tpdist.models import IGNORED, LanguageModel

OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}


def unroll(model: LanguageModel, ids: Tensor, state: Tensor) -> tuple[list[Tensor], Tensor]:
    """One block of one stream: ids [B], state [d] -> the top h of every step, the last state (Eq. 1)."""
    outputs = []
    for token in ids:
        x, states = model.embedding.weight[token][None], []
        for layer, part in zip(model.layers, state.split(model.sizes), strict=True):
            new = layer.step(layer.project(x), part[None])  # type: ignore[operator]
            x = new[:, : layer.hidden]  # type: ignore[index]
            states.append(new[0])
        state = torch.cat(states)
        outputs.append(x[0])
    return outputs, state


def top(model: LanguageModel, state: Tensor) -> Tensor:
    """The top layer's h of a state [d]."""
    last = model.layers[-1]
    return state[-last.state_size :][: last.hidden]  # type: ignore[misc,index]


def token_loss(model: LanguageModel, h: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy((model.weight @ h + model.bias)[None], label[None], reduction="sum")


def constraint(config: Experiment, model: LanguageModel, h: Tensor, prediction: Tensor, u: Tensor) -> Tensor:
    """λ C of one boundary, undivided (Eq. 6-7, Section 4.3)."""
    objective = config.objective
    l2 = objective.weight / 2 * (h - prediction + u).square().sum()
    kl_weight = objective.weight if objective.kl_weight is None else objective.kl_weight
    p = torch.softmax(model.weight @ top(model, h) + model.bias, 0)
    q = torch.softmax(model.weight @ top(model, prediction) + model.bias, 0)
    kl = kl_weight * (p * (p / q).log()).sum()
    unseen = torch.ones(model.state_size, dtype=torch.bool)
    unseen[model.seen] = False
    of_unseen = objective.weight / 2 * (h - prediction)[unseen].square().sum()
    return {"l2": l2, "kl": kl + of_unseen, "l2+kl": kl + l2}[objective.penalty]


def constrained(config: Experiment, labels: Tensor, s: int, boundary: int) -> bool:
    """Whether stream `s` has text on both sides of a boundary, or a closing target behind it. labels [B, S, K]."""
    has_text = [bool((labels[:, s, i] != IGNORED).any()) for i in range(labels.shape[2])]
    if boundary == len(has_text):
        return config.method.closing and bool(labels[-1, s, -1] != IGNORED)
    return boundary > 0 and has_text[boundary]


@dataclass
class Value:
    """The objective of a window and what it is made of; predictions by (stream, boundary)."""

    loss: Tensor
    penalty: Tensor
    predictions: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def evaluate(
    config: Experiment,
    model: LanguageModel,
    inputs: Tensor,
    labels: Tensor,
    start: Tensor,
    target: Tensor,
    u: Tensor,
) -> Value:
    """Eq. 6-8 of a window, in nats. inputs, labels [B, S, K]; start, target, u [S, K+1, d]."""
    _, streams, blocks = inputs.shape
    value = Value(torch.zeros(()).double(), torch.zeros(()).double())
    for s in range(streams):
        for i in range(blocks):
            real = [label for label in labels[:, s, i] if label != IGNORED]
            h, prediction = unroll(model, inputs[:, s, i], start[s, i])
            value.predictions[s, i + 1] = prediction
            if not real:
                continue
            if constrained(config, labels, s, i + 1):
                value.penalty = value.penalty + constraint(config, model, target[s, i + 1], prediction, u[s, i + 1])
                if config.objective.loss_on == "target":
                    h[-1] = top(model, target[s, i + 1])
            for step, label in enumerate(real):
                value.loss = value.loss + token_loss(model, h[step], label)
    return value


def inner_product(costate: Tensor, value: Value) -> Tensor:
    """Σ ⟨δ_i, ĥ_i⟩: costate [S, K+1, d]."""
    return torch.stack([costate[s, i] @ prediction for (s, i), prediction in value.predictions.items()]).sum()


class Oracle:
    """pm, admm, alm and costate with a penalty over a fixed corpus of windows; h and u are kept if persistent.

    primal, dual: of the last visit, Σ ‖h - ĥ‖² and λ² Σ ‖ĥ_last - ĥ_first‖² over its passes.
    """

    def __init__(self, config: Experiment, model: LanguageModel, streams: int, blocks: int):
        self.config, self.model = config, model
        shape = (streams, blocks + 1, model.state_size)
        self.h, self.u, self.costate = (torch.zeros(shape).double() for _ in range(3))
        spec = config.optimizer
        self.theta = OPTIMIZERS[spec.name](list(model.parameters()), lr=spec.lr, **spec.options)  # type: ignore[arg-type]
        self.carried = torch.zeros(streams, model.state_size).double()

    def visit(self, inputs: Tensor, labels: Tensor, begin: int, opens: bool) -> Tensor:
        """One update; returns the loss of the last θ-pass."""
        config, method, objective, model = self.config, self.config.method, self.config.objective, self.model
        blocks = inputs.shape[2]
        here = slice(begin, begin + blocks)
        tokens = int((labels != IGNORED).sum())
        edge = torch.zeros_like(self.carried) if opens or method.edge == "zero" else self.carried
        h = self._first_values(inputs, begin, edge)
        u = torch.zeros_like(h)
        if method.name in ("admm", "alm") and method.dual.keep:
            u[:, : blocks + method.closing] = self.u[:, begin : begin + blocks + method.closing]
        start = h.clone()
        delta = self._costates(inputs, labels, begin, start) if method.name == "costate" else None
        free = [i for i in range(blocks + 1) if 0 < i < blocks or (i == 0 and method.edge_free)]
        if method.closing:
            free.append(blocks)

        leaf = torch.nn.Parameter(h)
        h_spec = method.h_optimizer
        lr = h_spec.lr or 1 / (objective.weight or 1.0)
        h_optimizer = OPTIMIZERS[h_spec.name]([leaf], lr=lr, **h_spec.options)  # type: ignore[arg-type]
        held = method.starts == "held"

        def total(moving: Tensor) -> Value:
            """The objective where `moving` is the target, and the start too where starts are tied."""
            begin_of_block = moving if not held else start + (moving - moving.detach())
            return evaluate(config, model, inputs, labels, begin_of_block, moving, u)

        def move(value: Value) -> None:
            (gradient,) = torch.autograd.grad(value.loss + value.penalty, leaf, retain_graph=True)
            leaf.grad = torch.zeros_like(leaf)
            for i in free:
                leaf.grad[:, i] = clip_each(gradient[:, i], h_spec.clip)
            h_optimizer.step()

        def step_duals() -> Value:
            value = evaluate(config, model, inputs, labels, start if held else leaf, leaf, u)
            alpha = method.dual.lr or 1 / objective.weight
            for (s, i), prediction in value.predictions.items():
                if constrained(config, labels, s, i):
                    ascent = objective.weight * (leaf[s, i] - prediction).detach()
                    u[s, i] += alpha * clip_each(ascent[None], method.dual.clip)[0]
            return value

        passes = []
        for _ in range(method.h_steps):
            passes.append(total(leaf))
            move(passes[-1])
        duals = method.name in ("admm", "alm")
        if duals and method.dual.order == "before":
            step_duals()
        for _ in range(method.theta_steps):
            value, read = total(leaf), leaf.detach().clone()
            passes.append(value)
            summed = value.loss + value.penalty
            if delta is not None:
                summed = summed + inner_product(delta, value)
            parameters = list(model.parameters())
            at_start, *gradients = torch.autograd.grad(summed, [leaf, *parameters], retain_graph=True)
            if method.name == "alm":
                move(value)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient / tokens
            if config.optimizer.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
            self.theta.step()
        if duals and method.dual.order == "after":
            passes.append(step_duals())
            read = leaf.detach()
        self.primal = self.dual = torch.zeros(()).double()
        for (s, i), last in passes[-1].predictions.items():
            if constrained(config, labels, s, i):
                change = last - passes[0].predictions[s, i]
                self.primal = self.primal + (read[s, i] - last).square().sum()
                self.dual = self.dual + objective.weight**2 * change.square().sum()

        self.h[:, here] = (start if held else leaf.detach())[:, :blocks]
        self.u[:, begin : begin + blocks + method.closing] = u[:, : blocks + method.closing]
        if method.edge_costate == "kept":
            self.costate[:, begin] = at_start[:, 0]
        self.carried = torch.stack([value.predictions[s, blocks].detach() for s in range(inputs.shape[1])])
        return value.loss.detach()

    def _first_values(self, inputs: Tensor, begin: int, edge: Tensor) -> Tensor:
        """`forward` and `persistent` first values [S, K+1, d]; the place at the window's end is 0."""
        _, streams, blocks = inputs.shape
        h = torch.zeros(streams, blocks + 1, self.model.state_size).double()
        h[:, 0] = edge
        if self.config.method.first == "persistent":
            h[:, 1:blocks] = self.h[:, begin + 1 : begin + blocks]
        sweeps = self.config.method.relaxation if self.config.method.first == "persistent" else blocks
        for _ in range(sweeps):
            before = h.clone()
            for s in range(streams):
                for i in range(1, blocks):
                    h[s, i] = unroll(self.model, inputs[:, s, i - 1], before[s, i - 1])[1].detach()
        return h

    def _costates(self, inputs: Tensor, labels: Tensor, begin: int, start: Tensor) -> Tensor:
        """δ_i ← ∂/∂h_i [CE_i + ⟨δ_{i+1}, ĥ_{i+1}⟩], as often as `sweeps` says.

        Every state is a start, and a target where a loss sits on one (Eq. 8).
        """
        method, blocks, leaf = self.config.method, inputs.shape[2], start.clone().requires_grad_()
        value = evaluate(self.config, self.model, inputs, labels, leaf, leaf, torch.zeros_like(start))
        delta, inside = torch.zeros_like(start), slice(begin + 1, begin + blocks)
        if method.keep_costates:
            delta[:, 1:blocks] = self.costate[:, inside]
        if method.edge_costate == "kept":
            delta[:, blocks] = self.costate[:, begin + blocks]
        for _ in range(blocks - 1 if method.sweeps is None else method.sweeps):
            total = value.loss + inner_product(delta, value)
            delta[:, :blocks] = torch.autograd.grad(total, leaf, retain_graph=True)[0][:, :blocks]
        self.costate[:, inside] = delta[:, 1:blocks]
        return delta


def clip_each(rows: Tensor, largest: float | None) -> Tensor:
    """Rows [n, d] with norms of at most `largest`."""
    if largest is None:
        return rows
    return torch.stack([row * min(1.0, largest / float(row.norm().clamp(min=1e-300))) for row in rows])
