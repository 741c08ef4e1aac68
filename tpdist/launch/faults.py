"""What an error says about who failed: the worker itself, its machine, or another worker."""

import errno
import re

import torch
import torch.distributed as dist

# Gloo raises plain RuntimeErrors, whose messages begin with its source file
GROUP_ERROR = re.compile(r"gloo/|nccl", re.IGNORECASE)
# a disk or a network below the file system, not a file that is wrong
MACHINE_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}


def lost_neighbour(error: BaseException) -> bool:
    """Whether a worker ended because another one, or the way to it, is gone."""
    return any(
        isinstance(one, dist.DistError) or (type(one) is RuntimeError and bool(GROUP_ERROR.search(str(one))))
        for one in _chain(error)
    )


def of_the_machine(error: BaseException) -> bool:
    """Whether a worker failed by its machine: another process, or another node, may do better."""
    return any(
        isinstance(one, torch.AcceleratorError) or (isinstance(one, OSError) and one.errno in MACHINE_ERRNOS)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found
