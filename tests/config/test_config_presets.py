"""The presets lie beneath the file, and the file beneath the overrides."""

import warnings
from pathlib import Path
from typing import get_args

import pytest

from tpdist.config import Cluster, Experiment, Model, load_config, to_yaml
from tpdist.config.presets import PRESETS


def test_names_are_those_of_the_field():
    (names, _) = get_args(Experiment.model_fields["preset"].annotation)
    assert set(get_args(names)) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_arrives(name: str):
    config = load_config(None, [f"preset={name}"])
    assert config.preset == name

    def check(values: dict, part: object):
        for key, value in values.items():
            if isinstance(value, dict) and key != "options":
                check(value, getattr(part, key))
            else:
                assert getattr(part, key) == value, key

    check(PRESETS[name], config)


def test_paper():
    config = load_config(None, ["preset=paper"])
    method = config.method
    assert (method.name, method.starts, method.first, method.edge) == ("admm", "tied", "forward", "carry")
    assert (method.h_steps, method.theta_steps, method.h_optimizer.name) == (1, 1, "adagrad")


def test_released_in_the_units_of_eq_7():
    config = load_config(None, ["preset=released"])
    # CE/B + 1/2 |r + u|² is 1/B of Eq. 7 with λ = B, and u moves by 0.1 r there
    assert config.objective.weight == 1.0 * config.objective.block
    assert config.method.dual.lr is not None
    assert config.method.dual.lr * config.objective.weight == pytest.approx(0.1)


def test_layers(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("preset: released\nmethod: {h_steps: 3, theta_steps: 2}\noptimizer: {options: {lr_decay: 0.1}}\n")
    config = load_config(path, ["method.theta_steps=1", "method.h_optimizer.options.lr_decay=0.2"])
    assert (config.method.h_steps, config.method.theta_steps, config.method.first) == (3, 1, "one-block")
    assert config.optimizer.options == {"lr_decay": 0.1}  # written: replaced whole
    assert config.method.h_optimizer.options == {"eps": 1e-5, "lr_decay": 0.2}  # one entry changed
    other = load_config(path, ["preset=paper"])
    assert (other.preset, other.method.h_steps, other.method.first) == ("paper", 3, "forward")
    none = load_config(path, ["preset=null"])
    assert (none.preset, none.method.first, none.model.hidden) == (None, "forward", 200)


def test_in_python_too():
    config = Experiment(preset="released", model=Model(hidden=7))
    assert config == load_config(None, ["preset=released", "model.hidden=7"])


def test_a_changed_copy_of_a_part_is_looked_at_without_a_warning_of_pydantics():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = Experiment(cluster=Cluster(workers=2).model_copy(update={"mesh": [1, 2]}))
    assert config.cluster.mesh == (1, 2)


def test_presets_are_not_changed_by_use(tmp_path: Path):
    before = to_yaml(load_config(None, ["preset=released"]))
    load_config(None, ["preset=released", "optimizer.options.eps=1", "method.dual.lr=3"])
    assert to_yaml(load_config(None, ["preset=released"])) == before
