"""docker/compose.yaml and docker/Dockerfile: their tools read them, and every part of one names what the other has."""

import re
import shutil
import subprocess

import jsonschema
import pytest
from deployment import DOCKER, DOCKERFILE, ROOT, compose, tool

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COMPOSE_SERVICE = {
    "type": "object",
    "required": ["image", "build", "restart", "cpus", "mem_limit", "secrets", "networks", "healthcheck"],
    "properties": {
        "image": {"type": "string"},
        "build": {
            "type": "object",
            "required": ["context", "dockerfile", "target"],
            "properties": {key: {"type": "string"} for key in ("context", "dockerfile", "target")}
            | {"args": STRINGS},
            "additionalProperties": False,
        },
        "init": {"type": "boolean"},
        "restart": {"const": "no"},
        "cap_drop": {"const": ["ALL"]},
        "security_opt": {"const": ["no-new-privileges:true"]},
        "shm_size": {"type": "string"},
        "stop_grace_period": {"type": "string"},
        "profiles": {"type": "array", "items": {"type": "string"}},
        "entrypoint": {"type": "array", "items": {"type": "string"}},
        "command": {"type": "array", "items": {"type": "string"}},
        "environment": STRINGS,
        "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
        "networks": {"type": ["array", "object"]},
        "volumes": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+:/"}},
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"condition": {"enum": ["service_started", "service_healthy"]}},
                "additionalProperties": False,
            },
        },
        "healthcheck": {"type": "object", "minProperties": 1},
        "secrets": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "uid", "gid", "mode"],
                "properties": {"source": {"type": "string"}, "target": {"type": "string"}, "uid": {"type": "string"},
                               "gid": {"type": "string"}, "mode": {"const": 0o600}},
                "additionalProperties": False,
            },
        },
        "cpus": {"type": "number"},
        "mem_limit": {"type": "string"},
        "deploy": {"type": "object", "properties": {"replicas": {"type": "integer"}}, "additionalProperties": False},
    },
    "additionalProperties": False,
}  # fmt: skip
# the part of the Compose specification that the file uses
COMPOSE = {
    "type": "object",
    "required": ["name", "services", "networks", "volumes", "secrets"],
    "properties": {
        "name": {"type": "string"},
        "services": {"type": "object", "additionalProperties": COMPOSE_SERVICE},
        "networks": {"type": "object"},
        "volumes": {"type": "object"},
        "secrets": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["environment"],
                "properties": {"environment": {"type": "string"}},
                "additionalProperties": False,
            },
        },
    },
    "patternProperties": {"^x-": {}},
    "additionalProperties": False,
}


def test_the_compose_file_has_the_parts_of_the_specification() -> None:
    jsonschema.validate(compose(), COMPOSE)


def test_docker_reads_the_compose_file() -> None:
    version = ["docker", "compose", "version"]
    if shutil.which("docker") is None or subprocess.run(version, capture_output=True).returncode:
        pytest.skip("docker's compose plugin is not installed")
    config = ["docker", "compose", "--file", str(DOCKER / "compose.yaml"), "--profile", "tools", "config", "--quiet"]
    done = subprocess.run(
        config, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "TPDIST_RAY_TOKEN": "x"}
    )
    assert done.returncode == 0, done.stderr


def test_everything_a_service_names_is_there() -> None:
    file = compose()
    for service in file["services"].values():
        assert set(service["networks"]) <= set(file["networks"])
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(file["volumes"])
        assert {secret["source"] for secret in service["secrets"]} <= set(file["secrets"])
        assert set(service.get("depends_on", ())) <= set(file["services"])
        script = (service.get("entrypoint") or service["command"])[0]
        assert (DOCKER / script).stat().st_mode & 0o111
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert f" AS {service['build']['target']}\n" in DOCKERFILE
        for word in service["command"]:
            assert not word.startswith("configs/") or (ROOT / word).is_file()


def test_workers_have_no_way_out_and_the_head_is_published_on_loopback_alone() -> None:
    file = compose()
    assert file["networks"]["cluster"]["internal"] is True
    assert [name for name, service in file["services"].items() if "ports" in service] == ["head"]
    assert file["services"]["head"]["ports"] == ["127.0.0.1:8265:8265"]
    for name in ("worker", "train", "scaling"):
        assert file["services"][name]["networks"] == ["cluster"]


def test_the_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_images_run_as_an_ordinary_user_from_a_pinned_base() -> None:
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert user == ["10001:10001"]
    assert all(secret["uid"] == "10001" for service in compose()["services"].values() for secret in service["secrets"])
    for target in ("cpu", "cuda"):
        assert f"\nFROM node AS {target}\n" in DOCKERFILE


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }  # fmt: skip
    assert "*" in lines
    assert allowed == copied
