"""The helper that runs functions on local ranks."""

import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

from tpdist import testing
from tpdist.testing import run_ranks


def rank_and_sum() -> tuple[int, float]:
    one = torch.ones(1)
    dist.all_reduce(one)
    return dist.get_rank(), float(one)


def second_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank's own error")
    time.sleep(300)


def second_vanishes() -> None:
    if dist.get_rank() == 1:
        os._exit(9)
    time.sleep(300)


def test_results_come_in_the_order_of_the_ranks() -> None:
    assert run_ranks(rank_and_sum, 2) == [(0, 2.0), (1, 2.0)]


def test_a_rank_that_fails_tells_why_and_holds_nobody_up() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1:(.|\n)*the second rank's own error"):
        run_ranks(second_fails, 2)


def test_a_rank_that_vanishes_holds_nobody_up() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[1\] ended with exit code 9"):
        run_ranks(second_vanishes, 2)


def second_vanishes_and_first_fails() -> None:
    if dist.get_rank() == 1:
        os._exit(9)
    raise RuntimeError("lost its neighbour")


def test_a_rank_that_vanishes_is_told_beside_who_lost_it() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[1\] ended with exit code 9\nrank 0:\n(.|\n)*Error"):
        run_ranks(second_vanishes_and_first_fails, 2)


def second_hangs() -> None:
    if dist.get_rank() == 1:
        threading.Event().wait()


def test_a_rank_that_hangs_is_shown_with_where_it_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(testing, "TIMEOUT_S", 10.0)
    with pytest.raises(RuntimeError, match=r"(?s)did not end within 10\.0 s\n.*rank 1:\n.*in second_hangs\n"):
        run_ranks(second_hangs, 2)
