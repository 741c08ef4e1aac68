"""The files in cluster/ for Ray's cluster launcher: its schema, the token, the disks."""

import json
from pathlib import Path

import jsonschema
import pytest
from deployment import CLUSTER, LAUNCHER, ROOT, load


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_are_what_ray_expects(name: str) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(CLUSTER / name)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_start_ray_with_a_token_and_a_closed_dashboard(name: str) -> None:
    config = load(CLUSTER / name)
    head = config["head_start_ray_commands"][-1]
    worker = config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token " in command
        assert "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1 " in command
        assert "TPDIST_SHARED=" in command
    assert "--dashboard-host=127.0.0.1" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert all((ROOT / here).exists() for there, here in config["file_mounts"].items() if there.startswith("~/tpdist"))
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


def test_the_launchers_merge_keys_reach_every_machine() -> None:
    for name in ("aws.yaml", "gcp.yaml"):
        types = load(CLUSTER / name)["available_node_types"]
        assert set(types["head"]["node_config"]) == set(types["worker"]["node_config"])


def test_the_disks_of_gcp_are_of_a_type_that_its_newer_machines_take() -> None:
    config = load(CLUSTER / "gcp.yaml")
    (disk,) = config["available_node_types"]["worker"]["node_config"]["disks"]
    zone = config["provider"]["availability_zone"]
    assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"
