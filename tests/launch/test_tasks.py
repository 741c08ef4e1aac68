"""What a task of a sweep takes of a cluster's GPUs."""

import pytest

from tpdist.config import Experiment
from tpdist.launch import tasks

SHARES = [  # CPUs, GPUs, settings, the share
    (16, 1, {}, 0.0625),
    (16, 4, {}, 0.25),
    (14, 2, {}, 0.1428),  # seven of them are no more than one
    (2, 4, {}, 1.0),
    (16, 1, {"cluster": {"cpus_per_worker": 4}}, 0.25),
    (16, 1, {"cluster": {"gpus_per_worker": 0.5}}, 0.5),
    (16, 1, {"run": {"device": "cpu"}}, 0.0),
    (16, 0, {}, 0.0),
]


@pytest.mark.parametrize(("cpus", "gpus", "parts", "share"), SHARES)
def test_share_of_gpus(cpus: int, gpus: int, parts: dict, share: float, monkeypatch: pytest.MonkeyPatch):
    there = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(tasks.ray, "cluster_resources", lambda: there)
    assert tasks.share_of_gpus(Experiment.model_validate(parts)) == pytest.approx(share)
