"""Only boundary states cross between neighbours, as many as ARCHITECTURE.md's table says, whatever the corpus."""

from typing import Any

import pytest
from mesh_runs import Case, experiment, train_all

from tpdist.data import prepare

# method, and the states of d numbers that cross an edge in one update of one stream
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "bptt": ({"name": "bptt"}, 1),
    "pm": ({"name": "pm", "h_steps": 3}, 2 * 3 + 1),
    "admm": ({"name": "admm", "h_steps": 2}, 3 * (2 + 1)),
    "admm, theta steps add none": ({"name": "admm", "h_steps": 1, "theta_steps": 4}, 3 * (1 + 1)),
    "alm": ({"name": "alm", "theta_steps": 2}, 3 * 2 + 1),
    "costate": ({"name": "costate", "sweeps": 4}, 4 + 1),
    "relaxation": ({"name": "pm", "h_steps": 1, "first": "persistent", "relaxation": 3}, 2 + 1 + 3),
    "one-block": ({"name": "pm", "h_steps": 1, "first": "one-block"}, 2 + 1 + 1),
}
SIZES = {"small": 311, "large": 3111}
UPDATES, ITEM_SIZE = 3, 8


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    where = tmp_path_factory.mktemp("traffic")
    cases: dict[tuple[str, str], Case] = {}
    for size, tokens in SIZES.items():
        store = where / size
        source = {"types": 12, "states": 4, "branching": 2, "tokens": tokens}
        prepare(experiment(store, {"data": {"synthetic": source}}).data, store)
        for name, (method, _) in METHODS.items():
            blocks = 7 if size == "small" else 70
            parts = {"method": method, "batching": {"blocks": blocks}}
            cases[size, name] = Case(str(store), str(where / f"{size} {name}"), parts, (1, 3), UPDATES)
    return dict(zip(cases, train_all(list(cases.values())), strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_bytes_of_boundaries(sent: dict, name: str, size: str) -> None:
    streams, edges, d = 2, 2, 4
    expected = UPDATES * streams * edges * METHODS[name][1] * d * ITEM_SIZE
    assert sum(rank["traffic"].exchange for rank in sent[size, name]) == expected


@pytest.mark.parametrize("size", SIZES)
def test_carried_states_are_counted_apart(sent: dict, size: str) -> None:
    """`forward` passes a state over every edge of every stream; the last worker's prediction goes to the first."""
    streams, d = 2, 4
    states = [rank["traffic"].carried / (streams * d * ITEM_SIZE * UPDATES) for rank in sent[size, "admm"]]
    assert states == [1, 1, 1]


def test_gradients_are_counted(sent: dict) -> None:
    ranks = sent["small", "admm"]
    parameters = sum(p.numel() for p in ranks[0]["theta"].values())
    assert [rank["traffic"].gradient for rank in ranks] == [UPDATES * parameters * ITEM_SIZE] * 3
