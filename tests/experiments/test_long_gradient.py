"""The gradient over a long text, all blocks at once, is that of BPTT, on one worker and on many."""

import pytest
import torch
from torch import Tensor

from tpdist.config import Model, Run
from tpdist.experiments import long_gradient
from tpdist.experiments.long_gradient import Cost, in_parallel, relative_error, sequential, torchs
from tpdist.experiments.plain import random_tokens
from tpdist.models import LanguageModel, build_model
from tpdist.parallel import Workers, balanced
from tpdist.testing import run_ranks

BLOCKS, BLOCK = 8, 24


def problem(gain: float) -> tuple[LanguageModel, Tensor, Tensor]:
    model = build_model(Model(hidden=12), Run(dtype="float64"), 30)
    with torch.no_grad():
        for p in model.layers.parameters():
            p *= gain
    up = torch.randn(BLOCKS * BLOCK, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return model, random_tokens(30, BLOCKS * BLOCK), up


@pytest.mark.parametrize("gain", [1.0, 4.0])  # one forgets within a block, the other needs sweeps of whole blocks
def test_it_is_that_of_bptt(gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_gradient, "TOLERANCE", 1e-9)
    model, ids, up = problem(gain)
    costs = (Cost(), Cost())
    got = in_parallel(model, ids, up, BLOCKS, *costs)
    assert relative_error(got, sequential(model, ids, up)) < 1e-7
    assert relative_error(got, torchs(model, ids, up)) < 1e-7
    assert all(cost.sweeps >= 2 for cost in costs)


def on_worker(gain: float) -> float:
    long_gradient.TOLERANCE = 1e-9
    workers = Workers.join((1, 3), torch.device("cpu"))
    model, ids, up = problem(gain)
    own = balanced(BLOCKS, 3)[workers.place.time]  # 3, 3 and 2 blocks
    span = slice(own.start * BLOCK, own.stop * BLOCK)
    got = in_parallel(model, ids[span], up[span], len(own), workers=workers)
    return relative_error(got, sequential(model, ids, up))


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_workers_share_it(gain: float) -> None:
    assert max(run_ranks(on_worker, 3, gain)) < 1e-7
