"""Fixtures of the training room's tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_thread: None) -> None:
    """Everything here is tiny."""


@pytest.fixture(params=["{}", "file://{}", "memory://{}"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A directory; pyarrow's file system below a URI; one that pyarrow knows through fsspec."""
    return request.param.format(tmp_path / "elsewhere")
