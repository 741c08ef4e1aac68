"""Fixtures of the launch room's tests."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_thread: None) -> None:
    """Everything here is tiny."""
