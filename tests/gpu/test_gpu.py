"""A GPU gives the CPU's numbers (cuDNN has given wrong GRU gradients before), alone and shared by two workers."""

import pytest
import torch
import torch.distributed as dist
from problems_gpu import CAPTURED, CELLS, METHODS, difference

from tpdist.parallel import Workers
from tpdist.testing import run_ranks

TOLERANCE = 1e-8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_computes_what_the_cpu_does(cell: str, method: str) -> None:
    assert difference("cuda", CELLS[cell], method) < TOLERANCE


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", CAPTURED)
def test_a_cuda_graph_computes_what_the_cpu_does(cell: str, method: str) -> None:
    assert difference("cuda", CELLS[cell], method, captured=True) < TOLERANCE


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
