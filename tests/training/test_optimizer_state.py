"""An optimiser's state goes through a checkpoint to the bit, and starts anew where the optimiser is another."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import Listener, interrupted, small, stop_at, tensors

import tpdist
from tpdist.training.optimizer_state import pack_optimizer, unpack_optimizer


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ([], False),
        (["optimizer.name=adamw", "method.h_optimizer.name=nadam"], True),
        (["optimizer.options.eps=1e-7", "method.h_optimizer.options.eps=1e-7"], True),
    ],
)
def test_changed_optimisers_start_anew(changes: list[str], anew: bool, small_corpus: Path, tmp_path: Path):
    run, listener, options = tmp_path / "run", Listener(), {"betas": [0.8, 0.9]}
    method = {"first": "persistent", "h_optimizer": {"name": "adam", "lr": 0.1, "options": options}}
    config = small(small_corpus, method=method, optimizer={"options": options})
    interrupted(lambda: tpdist.train(config, run, stop_at(11)))
    tpdist.resume(run, changes, listener)
    for which in ("optimizer", "method.h_optimizer"):
        assert (f"{which}: changed, so its state starts anew" in listener.said) == anew


def test_a_state_that_is_no_longer_kept_is_dropped(small_corpus: Path, tmp_path: Path):
    run, listener = tmp_path / "run", Listener()
    method = {"first": "persistent", "h_optimizer": {"name": "adam", "lr": 0.1}}
    tpdist.train(small(small_corpus, method=method, batching={"order": "shuffled"}, run={"epochs": 1}), run)
    assert any("h_moments" in name for name in tensors(run))
    tpdist.resume(run, ["method.first=forward", "run.epochs=2"], listener)
    assert "method.h_optimizer: changed, so its state starts anew" in listener.said
    assert not any("h_moments" in name for name in tensors(run))
    nothing_kept = Listener()
    tpdist.resume(run, ["method.h_optimizer.name=nadam", "run.epochs=3"], nothing_kept)
    assert "starts anew" not in nothing_kept.text


@pytest.mark.parametrize(
    "name", ["Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_optimiser_goes_on_to_the_bit(name: str, dtype: torch.dtype):
    def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
            optimizer.step()

    def make(values: list[torch.Tensor]) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
        parameters = [torch.nn.Parameter(value.clone()) for value in values]
        return getattr(torch.optim, name)(parameters, lr=0.01), parameters

    optimizer, parameters = make([torch.ones(3, 2, dtype=dtype), torch.zeros(4, dtype=dtype)])
    steps(optimizer, parameters, 1)
    other, copies = make([p.detach() for p in parameters])
    packed, scalars = pack_optimizer(optimizer, "theta.")
    unpack_optimizer(other, "theta.", {k: t.clone() for k, t in packed.items()}, json.loads(json.dumps(scalars)))
    steps(optimizer, parameters, 2)
    steps(other, copies, 2)
    for p, q in zip(parameters, copies, strict=True):
        assert torch.equal(p, q)
