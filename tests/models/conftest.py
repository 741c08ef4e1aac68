"""One thread, so that the machine is shared and sums repeat; the same numbers in every test."""

import pytest
import torch

from tpdist.models import products


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 are oneDNN's, where MKL's are faster, too."""
    monkeypatch.setattr(products, "ONEDNN", products.HAS_ONEDNN)
