"""Errors of a lost neighbour, of a machine, and of the user's own are told apart."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tpdist.errors import ConfigError, RunError
from tpdist.launch.cluster import open_meeting
from tpdist.launch.faults import lost_neighbour, of_the_machine
from tpdist.testing import run_ranks
from tpdist.training.writer import PartMissingError

OWN = [
    ConfigError("wrong", "optimizer.lr"),
    KeyError("hidden"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("Connection closed by peer"),  # without Gloo's own file: somebody else's
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
]


@pytest.mark.parametrize("error", OWN, ids=str)
def test_own_errors(error: Exception) -> None:
    assert not lost_neighbour(error)
    assert not of_the_machine(error)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN])
def test_a_disk_that_fails_is_the_machines(number: int) -> None:
    error = RuntimeError("while saving")
    error.__cause__ = OSError(number, "no luck")
    assert of_the_machine(error) is error.__cause__
    assert not lost_neighbour(error)


def test_a_part_of_a_checkpoint_that_is_missing_is_another_workers_failure() -> None:
    """Who has failed says why, or is replaced where it was its disk: the leader, who waited, hides neither."""
    error = RunError("step-00000009: not every worker wrote its part")
    error.__cause__ = PartMissingError(errno.ECANCELED, "not every worker wrote its part", "step-00000009")
    assert lost_neighbour(error)
    assert not of_the_machine(error)


def test_an_error_that_is_its_own_cause() -> None:
    """As `raise error from error` makes it."""
    error = OSError(errno.EIO, "no luck")
    error.__cause__ = error
    assert of_the_machine(error) is error
    assert not lost_neighbour(error)


def test_who_waits_at_a_meeting_that_is_closed_has_lost_a_neighbour() -> None:
    """So those that meet are called back when one of them dies on its way."""
    meeting = open_meeting("127.0.0.1")
    client = TCPStore("127.0.0.1", meeting.port, is_master=False)
    with ThreadPoolExecutor() as waiting:
        heard = waiting.submit(dist.ProcessGroupGloo, PrefixStore("gen1", client), 0, 2, timedelta(minutes=2))
        with pytest.raises(TimeoutError):
            heard.result(timeout=0.5)
        del meeting
        error = heard.exception(timeout=60)
    assert error is not None
    assert lost_neighbour(error)


def _part_while_others(talk: str) -> tuple[bool, bool, str]:
    """Rank 1 leaves the group; rank 0 talks to it, and judges what it hears."""
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(torch.ones(3)),
        "recv": lambda: dist.recv(torch.ones(3), 1),
        "barrier": dist.barrier,
        "gather": lambda: dist.all_gather_object([None, None], "word"),
    }
    dist.barrier()
    if dist.get_rank() == 1:
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # for the end of `run_ranks`
        return False, False, ""
    try:
        calls[talk]()
    except Exception as error:
        return lost_neighbour(error), of_the_machine(error) is not None, repr(error)
    return False, False, "nothing"


@pytest.mark.parametrize("talk", ["all_reduce", "recv"])
def test_what_gloo_says_of_a_neighbour_that_left(talk: str) -> None:
    lost, machine, said = run_ranks(_part_while_others, 2, talk)[0]
    assert lost, said
    assert not machine


def test_a_meeting_that_is_gone() -> None:
    with pytest.raises(dist.DistError) as caught:
        dist.TCPStore("127.0.0.1", 9, is_master=False, timeout=torch.distributed.default_pg_timeout / 3600)
    assert lost_neighbour(caught.value)
