"""A run goes on with another number of workers, to the same numbers."""

from pathlib import Path

import pytest
import torch
from mesh_runs import Case, Parts, together, train_all

PARTS: dict[str, Parts] = {
    "kept states, Adam on H": {
        "method": {
            "name": "admm", "first": "persistent", "starts": "tied", "h_optimizer": {"name": "adam", "lr": 0.05},
        }
    },
    "kept costates": {"method": {"name": "costate", "sweeps": 2, "keep_costates": True}},
    "closing targets": {
        "method": {
            "name": "admm", "first": "persistent", "starts": "tied", "closing": True, "edge_free": True,
            "h_optimizer": {"name": "adagrad", "lr": 0.1},
        }
    },
    "batch mode": {"method": {"name": "alm", "first": "persistent"}, "batching": {"mode": "batch"}},
}  # fmt: skip
MESHES = [(1, 3), (1, 1), (2, 1), (1, 2)]
PART = 3  # updates on each mesh; an epoch has five, so a run is cut in the middle of one


@pytest.mark.parametrize("name", PARTS)
def test_a_run_goes_on_elsewhere(corpus: Path, tmp_path: Path, name: str) -> None:
    parts = PARTS[name]
    run = str(tmp_path / "moved")
    for i, mesh in enumerate(MESHES):
        (moved,) = train_all([Case(str(corpus), run, parts, mesh, PART, resume=i > 0)])
    whole = Case(str(corpus), str(tmp_path / "whole"), parts, (1, 1), PART * len(MESHES))
    (undisturbed,) = train_all([whole])
    got, wanted = together(moved, 31, 2), together(undisturbed, 31, 2)
    got["losses"], wanted["losses"] = got["losses"][-PART:], wanted["losses"][-PART:]
    assert got.keys() == wanted.keys()
    for what, value in wanted.items():
        torch.testing.assert_close(
            got[what], value, rtol=1e-10, atol=1e-10, equal_nan=True, msg=lambda m, n=what: f"{n}: {m}"
        )
