"""A run goes on with another number of workers, to the same numbers: 3 → 1 → 2 workers, uneven spans, float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mesh_runs import Case, Parts, together, train_all
from small_runs import list_checkpoints

PERSISTENT = {"first": "persistent", "starts": "tied"}
PARTS: dict[str, Parts] = {
    "bptt, two layers": {"method": {"name": "bptt"}, "model": {"layers": 2}},
    "kept states, Adam on H": {
        "method": {"name": "admm", **PERSISTENT, "h_optimizer": {"name": "adam", "lr": 0.05}},
        "model": {"cell": "lstm"},
    },
    "kept costates": {"method": {"name": "costate", "sweeps": 2, "keep_costates": True}},
    "closing targets": {
        "method": {
            "name": "admm", **PERSISTENT, "closing": True, "edge_free": True,
            "h_optimizer": {"name": "adagrad", "lr": 0.1},
        }
    },
    "batch mode": {"method": {"name": "alm", "first": "persistent"}, "batching": {"mode": "batch"}},
    "own states in random order": {
        "method": {"name": "costate", "sweeps": 1, "first": "persistent"},
        "batching": {"order": "shuffled", "blocks": 4, "streams": 5},
        "model": {"layers": 2},
    },
    "costates at the edge, in random order": {
        "method": {"name": "costate", "sweeps": 0, "first": "persistent", "edge_costate": "kept"},
        "batching": {"order": "shuffled", "blocks": 1, "streams": 5},
    },
    "closing targets, an idle worker": {
        "method": {
            "name": "admm", **PERSISTENT, "closing": True, "theta_steps": 2,
            "h_optimizer": {"name": "adam", "lr": 0.05},
        }
    },
}  # fmt: skip
ALONG_TIME = [(1, 3), (1, 1), (1, 2), (2, 1)]
IDLE = [(1, 4), (1, 3), (1, 4), (1, 1)]  # the last window has three blocks
ALONG_STREAM = [(3, 1), (1, 1), (2, 1), (3, 1)]  # windows in random order are a worker's own along time
PART = 3  # updates on each mesh; an epoch has five, or three, so a run is cut in the middle of one


def meshes(name: str) -> list[tuple[int, int]]:
    return IDLE if "idle" in name else ALONG_STREAM if "random" in name else ALONG_TIME


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Every run, moved and undisturbed. Ranks are started once for all runs that stand on as many workers."""
    where = tmp_path_factory.mktemp("runs")
    moved: list[Any] = []
    for i in range(len(ALONG_TIME)):
        cases = [Case(str(corpus), str(where / n), p, meshes(n)[i], PART, resume=i > 0) for n, p in PARTS.items()]
        moved = train_all(cases)
    alone = [Case(str(corpus), str(where / f"{n} alone"), p, (1, 1), PART * 4) for n, p in PARTS.items()]
    return dict(zip(PARTS, zip(moved, train_all(alone), strict=True), strict=True))


@pytest.mark.parametrize("name", PARTS)
def test_a_run_goes_on_elsewhere(runs: dict[str, tuple[Any, Any]], name: str) -> None:
    streams = PARTS[name].get("batching", {}).get("streams", 2)
    blocks = 31 if streams == 2 else 13
    got, wanted = (together(ranks, blocks, streams) for ranks in runs[name])
    got["losses"], wanted["losses"] = got["losses"][-PART:], wanted["losses"][-PART:]
    assert got.keys() == wanted.keys()
    for what, value in wanted.items():
        torch.testing.assert_close(
            got[what], value, rtol=1e-10, atol=1e-10, equal_nan=True, msg=lambda m, n=what: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", ["kept states, Adam on H", "windows of their own"])
def test_on_as_many_workers_every_byte_of_the_states_is_the_same(name: str, corpus: Path, tmp_path: Path) -> None:
    """Cut in the second epoch, when all blocks have states: what waits behind a worker's last block is kept apart."""
    method = {"name": "costate", "first": "persistent", "edge_costate": "kept"}
    own = {"method": method, "batching": {"order": "shuffled", "blocks": 4}}
    parts = PARTS.get(name, own)
    lengths = {"cut": [7, 6], "whole": [13]}
    for run, updates in lengths.items():
        cases = [Case(str(corpus), str(tmp_path / run), parts, (1, 2), n, i > 0) for i, n in enumerate(updates)]
        train_all(cases)
    cut, whole = (list_checkpoints(tmp_path / run / "checkpoints")[-1] for run in lengths)
    assert cut.name == whole.name
    for file in ("states-0-0.safetensors", "states-0-1.safetensors", "tensors.safetensors"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("method", [{"name": "costate"}, {"name": "admm", "h_optimizer": {"name": "adam", "lr": 0.05}}])
def test_other_workers_along_time_draw_other_windows(method: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    """In random order: an epoch that was cut begins anew with them, and one that was over is followed by the next.

    Its sums begin anew, too, and every window has been visited as often as those that were visited least.
    """
    parts = {"method": {**method, "first": "persistent"}, "batching": {"order": "shuffled", "blocks": 4}}
    steps = [((1, 1), 3, (1, 3)), ((1, 2), 4, (1, 4)), ((1, 2), 1, (2, 1)), ((1, 1), 5, (2, 5))]
    before = 0
    for i, (mesh, updates, reached) in enumerate(steps):
        train_all([Case(str(corpus), str(tmp_path), parts, mesh, updates, resume=i > 0)])
        state = json.loads((list_checkpoints(tmp_path / "checkpoints")[-1] / "state.json").read_text())
        assert (state["epoch"], state["position"]) == reached, mesh
        if i == 1:
            assert state["sums"]["tokens"] == state["tokens"] - before == 310
        before = state["tokens"]
    if state["h_counts"]:
        assert sorted(counts["step"] for counts in state["h_counts"].values()) == [2] * 3 + [3] * 5
