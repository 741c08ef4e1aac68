"""One window on workers in time, each a thread, visited again and again: everything that one worker would have too."""

import copy
from collections.abc import Sequence

import torch
from chain import Chain, Link, SummedOver
from torch import Tensor

from tpdist.config import Experiment
from tpdist.models import IGNORED, build_model
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit


def fleet(
    config: Experiment, inputs: Tensor, labels: Tensor, spans: Sequence[int], updates: int
) -> tuple[list[list[Tensor]], list[Link]]:
    """θ, sums, carried state, h, u, costates after each visit, put together again; the links that counted messages.

    inputs, labels [B, S, K]. spans: the blocks of each worker.
    """
    S, K, workers, types = inputs.shape[1], inputs.shape[2], len(spans), int(inputs.max()) + 1
    tokens = int((labels != IGNORED).sum())
    plan = plan_epoch(config, 1, K)
    model = build_model(config.model, config.run, types)
    chain = Chain(workers)
    links = [Link(chain, p) for p in range(workers)]

    def work(place: int) -> list[list[Tensor]]:
        mine, begin = copy.deepcopy(model), sum(spans[:place])
        here = slice(begin, begin + spans[place])
        ends = begin + spans[place]
        window = make_window(
            inputs[:, :, here], labels[:, :, here], torch.float64, tokens=tokens, opens=False,
            edge_free=config.method.edge_free, closing=config.method.closing,
            continues=(place > 0, place < workers - 1),
            follows=(labels[:, :, ends] != IGNORED).any(0) if ends < K else None, offset=begin,
        )  # fmt: skip
        add_up = SummedOver(list(mine.parameters()), chain.sum_over(place), links[place].calls)
        theta = Theta(mine, config.optimizer, add_up)
        boundaries = Boundaries.for_plan(plan, S, spans[place], mine)
        neighbours = Alone() if workers == 1 else links[place]
        carried = mine.zero_state(S) + 0.3
        log = []
        for _ in range(updates):
            out = visit(mine, plan, theta, window, 0, boundaries, carried, neighbours)
            carried = out.carry
            sums = torch.cat([torch.stack([out.loss, out.penalty, out.dual]).detach(), out.residuals])
            kept = [None if x is None else x[:, : spans[place]].clone() for x in
                    (boundaries.h, boundaries.u, boundaries.costate)]  # fmt: skip
            # what was filled in from the right neighbour does not stay
            assert plan.closing or not any(x[:, spans[place] :].any() for x in boundaries.tensors().values())
            log.append([[p.detach().clone() for p in mine.parameters()], sums, carried.clone(), kept])
        return log

    logs = chain.run(work)
    assert not any(link.under_way for link in links)  # a message that its sender does not wait for may never leave
    assert all(link.calls == links[0].calls for link in links)  # NCCL hangs where two workers' orders differ
    visits = []
    for parts in zip(*logs, strict=True):
        for other in parts[1:]:
            assert all(torch.equal(a, b) for a, b in zip(parts[0][0], other[0], strict=True))  # one θ everywhere
        kept = [torch.cat(x, 1) for x in zip(*(p[3] for p in parts), strict=True) if x[0] is not None]
        visits.append([*parts[0][0], torch.stack([p[1] for p in parts]).sum(0), parts[0][2], *kept])
    return visits, links
