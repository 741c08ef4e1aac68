"""A small problem of method `als`, and the upper bound that each of its halves minimises."""

from dataclasses import replace
from typing import Any

import torch
from problems import experiment, make_stream
from torch import Tensor

from tpdist.models import IGNORED, LanguageModel, build_model
from tpdist.tprop import Boundaries, Plan, Window, make_window, plan_epoch
from tpdist.tprop.objective import blocks_pass

TYPES, S, K, D = 7, 2, 12, 3


class Case:
    """Stream 1 is one token shorter. Stored states at random: nothing is at a solution."""

    def __init__(self, cell: str, weight: float = 0.6, stream: Tensor | None = None, **method: Any):
        self.config = experiment(
            model={"cell": cell, "activation": "identity", "hidden": D, "embedding": 2, "init": 0.6},
            objective={"block": 1, "loss_on": "target", "weight": weight},
            method={"name": "als", "first": "persistent", **method},
            batching={"streams": S, "blocks": K},
        )
        self.model: LanguageModel = build_model(self.config.model, self.config.run, TYPES)
        self.plan: Plan = replace(plan_epoch(self.config, 1, K), relaxation=0)  # H as the last visit left it
        stream = make_stream(S, K, TYPES) if stream is None else stream
        self.inputs, self.labels = (x.t()[None].permute(0, 2, 1).contiguous() for x in (stream[:, :-1], stream[:, 1:]))
        self.labels[:, 1, -1] = IGNORED
        self.window = self.make(0, K)
        self.boundaries = Boundaries.for_plan(self.plan, S, K, self.model)
        self.h = torch.randn(S, K + 1, D, generator=torch.Generator().manual_seed(4)).double()
        if self.boundaries.h is not None:
            self.boundaries.h.copy_(self.h)
        self.h[:, 0] = 0
        self.h[:, K] = 0

    def make(self, first: int, last: int) -> Window:
        here = slice(first, last)
        return make_window(
            self.inputs[:, :, here], self.labels[:, :, here], torch.float64, tokens=2 * K - 1, opens=True,
            continues=(first > 0, last < K), offset=first,
            follows=(self.labels[0, :, last] != IGNORED) if last < K else None,
        )  # fmt: skip

    def objective(self, h: Tensor | None = None) -> float:
        h = self.h if h is None else h
        with torch.no_grad():
            r = blocks_pass(self.model, self.plan.terms, self.window, h[:, :K], h, torch.zeros_like(h), 100)
        return float(r.loss + r.penalty)

    def majoriser(self, old: LanguageModel, old_h: Tensor, new: LanguageModel, h: Tensor) -> Tensor:
        """The upper bound around (old, old_h), at (new, h), written out token by token (Böhning 1992)."""
        total, norm = torch.zeros(()).double(), torch.linalg.matrix_norm(old.weight.detach(), 2)
        for s in range(S):
            for i in range(K - s):
                label, ids = self.labels[0, s, i], self.inputs[:, s, i][:, None]
                prediction = new.unroll(ids, h[None, s, i])[1][0]
                last = i + 1 == K - s
                with torch.no_grad():
                    old_read = old.unroll(ids, old_h[None, s, i])[1][0] if last else old_h[s, i + 1]
                    old_logits = old.logits(old_read)
                read = prediction if last else h[s, i + 1]
                logits = new.weight @ read + new.bias
                slope = torch.softmax(old_logits, 0) - torch.nn.functional.one_hot(label, TYPES)
                quadratic = (logits - old_logits).square().sum() / 4
                if last and new.weight is not old.weight and torch.equal(new.weight, old.weight):
                    quadratic = norm.square() * (read - old_read).square().sum() / 4
                total = total - old_logits.log_softmax(0)[label] + slope @ (logits - old_logits) + quadratic
                if not last:
                    total = total + self.plan.terms.weight / 2 * (read - prediction).square().sum()
        return total
