"""The sum of θ's gradient over all workers, in buckets that are sent while the backward pass still runs.

A backward pass ends with the parameters one after another: the head's first, then the layers from the top, the
embedding last. A bucket is on its way as soon as it ends with the bucket's last parameter, and never before the
buckets ahead of it, so all workers send in one order. The layout follows from the parameters alone and never changes:
a run repeats to the bit.

An embedding's gradient has as many rows as the window has token types, and 0 elsewhere. Where a window has fewer tokens
than there are types, the workers first tell each other which rows those are, a byte a type, and then add up these rows
alone.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.parallel.traffic import Traffic

BUCKET_BYTES = 4 * 2**20


class Sum:
    """Adds tensors up over a process group, in place.

    dtype: what is sent, if not the tensors' own (bfloat16 halves the bytes and rounds).
    """

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic, dtype: torch.dtype | None = None):
        self._group, self._traffic, self._dtype = group, traffic, dtype

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        for wait in [self.start(bucket) for bucket in buckets(tensors)]:
            wait()

    def start(self, bucket: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to add up tensors of one dtype; what is returned waits, and puts the sums in their place."""
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(self._dtype or bucket[0].dtype)
        wait = self._under_way(flat, dist.ReduceOp.SUM)

        def finish() -> None:
            wait()
            pieces = flat.split([tensor.numel() for tensor in bucket])
            for tensor, piece in zip(bucket, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

        return finish

    def any_of(self, present: Tensor) -> Callable[[], Tensor]:
        """Begin to ask where `present` [n] of bytes is not 0 on some worker; what is returned waits for the places."""
        wait = self._under_way(present, dist.ReduceOp.MAX)

        def places() -> Tensor:
            wait()
            return present.nonzero()[:, 0]

        return places

    def _under_way(self, flat: Tensor, operation: dist.ReduceOp.RedOpType) -> Callable[[], None]:
        self._traffic.gradient += flat.nbytes
        work = dist.all_reduce(flat, operation, group=self._group, async_op=True)
        assert work is not None

        def wait() -> None:
            with self._traffic.waiting("reduction_s", self._group):
                work.wait()

        return wait


class BucketedSum:
    """Adds the gradients of `parameters` up, which are in the order in which a backward pass ends with them.

    Per update: `begin`, the backward passes with `last_pass` before the last of them, `finish`. All workers make these
    calls, those without a block too.
    embedding: one of the parameters whose gradient is 0 but in the rows of a window's tokens, or None.
    """

    def __init__(self, parameters: Sequence[Tensor], embedding: Tensor | None, add_up: Sum):
        self._sum, self._embedding = add_up, embedding
        dense = [p for p in parameters if p is not embedding]
        self._buckets = [*buckets(dense), *([[embedding]] if embedding is not None else [])]
        self._bucket_of = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._armed = False
        ended = weakref.WeakMethod(self._ended)  # a hook that held this would keep the group connected

        def tell(p: Tensor) -> None:
            method = ended()
            if method is not None:
                method(p)

        for p in parameters:
            p.register_post_accumulate_grad_hook(tell)
        self._reset()

    def begin(self, inputs: Tensor | None, tokens: int) -> None:
        """inputs: the ids that this worker embeds, None for no block. tokens: those of the window, on all workers."""
        self._reset()
        if self._embedding is not None and tokens < self._embedding.shape[0]:
            present = torch.zeros(self._embedding.shape[0], dtype=torch.uint8, device=self._embedding.device)
            if inputs is not None:
                present[inputs.reshape(-1)] = 1
            self._rows = self._sum.any_of(present)

    def last_pass(self) -> None:
        """What the next backward pass adds to a gradient is the last."""
        self._armed = True

    def finish(self) -> None:
        """Wait until every parameter's `.grad` is the sum over all workers."""
        self._armed = False
        for p in self._bucket_of:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        while len(self._under_way) < len(self._buckets):
            self._send_next()
        for wait in self._under_way:
            wait()

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._under_way: list[Callable[[], None]] = []
        self._rows: Callable[[], Tensor] | None = None

    def _ended(self, p: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[p]] -= 1
        while len(self._under_way) < len(self._buckets) and self._missing[len(self._under_way)] == 0:
            self._send_next()

    def _send_next(self) -> None:
        bucket = self._buckets[len(self._under_way)]
        gradients = [p.grad for p in bucket if p.grad is not None]
        if self._rows is None or bucket[0] is not self._embedding:
            self._under_way.append(self._sum.start(gradients))
            return
        (gradient,), rows = gradients, self._rows()
        part = gradient[rows]
        wait = self._sum.start([part])

        def finish() -> None:
            wait()
            gradient[rows] = part

        self._under_way.append(finish)


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Runs of tensors of one dtype and at most `BUCKET_BYTES`, or one tensor."""
    found: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not found or size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != found[-1][0].dtype:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.nbytes
    return found
