"""One thread, so that the machine is shared and sums repeat; the same numbers in every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
