"""The sum of θ's gradient over all workers, in buckets, the first of them on their way while others are computed."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.parallel.exchange import Traffic

BUCKET_BYTES = 4 * 2**20


class GradientSum:
    """Adds tensors up over a process group, in place.

    The layout of the buckets follows from the parameters alone and never changes, so a run repeats to the bit.
    dtype: what is sent, if not the gradients' own (bfloat16 halves the bytes and rounds).
    """

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic, dtype: torch.dtype | None = None):
        self._group, self._traffic, self._dtype = group, traffic, dtype

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(self._dtype or bucket[0].dtype)
            self._traffic.gradient += flat.numel() * flat.element_size()
            pending.append((bucket, flat, dist.all_reduce(flat, group=self._group, async_op=True)))
        for bucket, flat, work in pending:
            began = time.perf_counter()
            work.wait()  # type: ignore[union-attr]
            self._traffic.reduction_s += time.perf_counter() - began
            pieces = flat.split([tensor.numel() for tensor in bucket])
            for tensor, piece in zip(bucket, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Runs of tensors of one dtype and at most `BUCKET_BYTES`, or one tensor; the last parameters first."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in reversed(tensors):
        bytes_ = tensor.numel() * tensor.element_size()
        if not buckets or size + bytes_ > BUCKET_BYTES or tensor.dtype != buckets[-1][0].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += bytes_
    return buckets
