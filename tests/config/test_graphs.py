"""Which runs a GPU records when nobody says."""

from typing import Any

import pytest

from tpdist.config import Experiment, records_updates

OWN = {"cell": "mine.cells:Mine", "allow_cells_from": ["mine"]}
LEFT = {  # kernel by kernel
    "several workers": {"cluster": {"workers": 2}},
    "as many as there are": {"cluster": {"workers": {"min": 1, "max": 2}}},
    "batch mode": {"batching": {"mode": "batch"}},
    "als": {
        "model": {"cell": "elman", "activation": "identity"},
        "method": {"name": "als"},
        "objective": {"block": 1, "weight": 1.0, "loss_on": "target"},
    },
    "a visit of one's own": {"method": {"visit": "mine.visits:mine", "allow_visits_from": ["mine"]}},
    "H's momentum": {"method": {"name": "pm", "h_optimizer": {"name": "adam", "lr": 0.1}}},
    "a rate in torch's hands": {"optimizer": {"name": "adagrad", "lr": 0.1, "options": {"lr_decay": 0.1}}},
    "updates left out": {"run": {"on_non_finite": "skip"}},
    "a cell of one's own": {"model": OWN},
    "a penalty of one's own": {
        "method": {"name": "pm"},
        "objective": {"penalty": "mine.penalties:mine", "allow_penalties_from": ["mine"]},
    },
    "H's moments": {
        "method": {"name": "pm", "first": "persistent", "relaxation": 1, "h_optimizer": {"name": "adagrad", "lr": 0.1}}
    },
    "an optimiser that was not compared": {"optimizer": {"name": "adagrad", "lr": 0.1}},
    "other kernels of it": {"optimizer": {"name": "adam", "lr": 0.001, "options": {"foreach": True}}},
    "bfloat16": {"run": {"dtype": "bfloat16"}},
    "float64": {"run": {"dtype": "float64"}},
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_single_kernels(case: str):
    assert not records_updates(Experiment.model_validate(LEFT[case]))


@pytest.mark.parametrize("name", ["bptt", "pm", "admm", "alm", "costate"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_what_is_recorded(name: str, optimizer: str):
    method: dict[str, Any] = {"name": name}
    options = {"weight_decay": 0.1, "amsgrad": True}
    parts = {"method": method, "optimizer": {"name": optimizer, "lr": 0.1, "options": options}}
    assert records_updates(Experiment.model_validate(parts))


def test_an_h_optimiser_that_takes_no_step_is_in_nobodys_way():
    method = {"name": "admm", "first": "persistent", "h_steps": 0, "h_optimizer": {"name": "adagrad", "lr": 0.1}}
    assert records_updates(Experiment.model_validate({"method": method}))


def test_what_is_said_counts():
    for said in (True, False):
        assert records_updates(Experiment.model_validate({"run": {"cuda_graph": said}})) is said
    own = {"model": OWN, "optimizer": {"name": "rmsprop", "lr": 0.001}, "run": {"cuda_graph": True}}
    assert records_updates(Experiment.model_validate(own))
