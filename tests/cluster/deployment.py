"""The files in cluster/ and docker/, as their tests read them."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DOCKER = ROOT / "docker"
LAUNCHER = ("onprem.yaml", "aws.yaml", "gcp.yaml")
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rayjob() -> Any:
    return next(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")))


def compose() -> Any:
    """compose.yaml with its defaults filled in."""
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text))


def tool(name: str) -> str:
    """Where a linter is; skips the test where it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'tpdist[dev]'")
    return found
