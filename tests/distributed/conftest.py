"""The corpus of the distributed tests."""

from pathlib import Path

import pytest
from mesh_runs import experiment

from tpdist.data import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "mesh"
    prepare(experiment(out, {}).data, out)
    return out
