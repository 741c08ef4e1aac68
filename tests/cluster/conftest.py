"""What the tests of tokens and of jobs share."""

from pathlib import Path

import pytest

from tpdist.launch import auth


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a token."""
    for name in (*auth.VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with a config, code, a run, a store and an environment."""
    root = tmp_path / "project"
    for name in ("small.yaml", "cells/own.py", "runs/a/config.yaml", "stores/x/train.arrow", ".venv/lib.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("run: {name: small}\n")
    return root
