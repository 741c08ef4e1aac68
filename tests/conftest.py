"""Fixtures of all tests."""

from pathlib import Path

import hypothesis
import pytest

import tpdist  # noqa: F401  (before torch, whose threads then wait as they do for users)

hypothesis.settings.register_profile("tpdist", deadline=None)  # no test asserts a time: machines may be busy
hypothesis.settings.load_profile("tpdist")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `small_runs.small`: 200 synthetic training tokens, 20 for validation, 20 for test."""
    from small_runs import small

    from tpdist.data import prepare

    out = tmp_path_factory.mktemp("stores") / "small"
    prepare(small(out).data, out)
    return out


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Tiny tensors are slower on several threads."""
    import torch

    torch.set_num_threads(1)
