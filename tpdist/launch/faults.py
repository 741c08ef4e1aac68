"""What an error says about who failed: the worker itself, its machine, or another worker."""

import errno
import re

import torch
import torch.distributed as dist

from tpdist.data.disk import UNREACHABLE
from tpdist.training.writer import PartMissingError

# Gloo raises plain RuntimeErrors, whose messages begin with its source file
GROUP_ERROR = re.compile(r"gloo/|nccl", re.IGNORECASE)
# a disk or a network below the file system, not a file that is wrong
MACHINE_ERRNOS = {errno.EIO} | UNREACHABLE


def lost_neighbour(error: BaseException) -> bool:
    """Whether a worker ended because another one, or the way to it, is gone."""
    return any(
        isinstance(one, dist.DistError | PartMissingError)
        or (type(one) is RuntimeError and bool(GROUP_ERROR.search(str(one))))
        for one in _chain(error)
    )


def of_the_machine(error: BaseException) -> BaseException | None:
    """What of a worker's error, or of its causes, is its machine's: another process, or another node, may do better."""
    for one in _chain(error):
        if isinstance(one, torch.AcceleratorError) or (isinstance(one, OSError) and one.errno in MACHINE_ERRNOS):
            return one
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found
