"""A GPU gives the CPU's numbers (cuDNN has given wrong GRU gradients before), alone and shared by two workers."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems_gpu import TOLERANCES, as_trained, runs
from run import wanted

from tpdist.config import Experiment
from tpdist.models import build_model
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.tprop import CudaGraphs

CHECKS = wanted("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_the_gpu_computes_what_the_cpu_does(name: str) -> None:
    kind, check = CHECKS[name]
    assert check() < TOLERANCES[kind]


def test_a_run_is_recorded_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, record = [], CudaGraphs.record

    def counted(self: CudaGraphs, work: Any) -> Any:
        recorded.append(work)
        return record(self, work)

    monkeypatch.setattr(CudaGraphs, "record", counted)
    as_trained("cuda", runs("cuda")["a run kernel by kernel"])
    assert not recorded
    as_trained("cuda", {})
    assert recorded


def test_a_model_in_bfloat16_takes_no_float16() -> None:
    config = Experiment.model_validate({"model": {"hidden": 16}, "run": {"dtype": "bfloat16"}})
    model = build_model(config.model, config.run, 9).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs, _ = model.layers[0](torch.zeros(2, 3, 16, device="cuda"), torch.zeros(3, 16, device="cuda"))
    assert outputs.dtype == torch.float32


def share_one_gpu() -> float:
    workers = Workers.join((1, 2), torch.device("cuda", 0))
    edge = torch.full((2, 3), float(dist.get_rank()), device="cuda")
    assert workers.neighbours is not None
    got = workers.neighbours.to_right(edge)()
    gradients = [torch.ones(5, device="cuda")]
    workers.sum_all(gradients)
    assert gradients[0].tolist() == [2.0] * 5
    return -1.0 if got is None else float(got.sum())


def test_two_workers_share_a_gpu_over_gloo() -> None:
    assert run_ranks(share_one_gpu, 2) == [-1.0, 0.0]
