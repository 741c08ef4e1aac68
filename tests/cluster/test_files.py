"""The files in cluster/ and docker/: each passes its tool's schema or linter, and they agree with each other."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DOCKER = ROOT / "docker"
LAUNCHER = ("onprem.yaml", "aws.yaml", "gcp.yaml")
SCRIPTS = sorted([*DOCKER.glob("*.sh"), *CLUSTER.glob("*.sh")])
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tool(name: str) -> str:
    """Where a linter is; skips the test where it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'tpdist[dev]'")
    return found


# Ray's cluster launcher


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


# KubeRay

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
CONTAINER = {
    "type": "object",
    "required": ["name", "image", "resources"],
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string"},
        "env": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "value"],
                "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                "additionalProperties": False,
            },
        },
        "ports": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["containerPort"],
                "properties": {"name": {"type": "string", "maxLength": 15}, "containerPort": {"type": "integer"}},
                "additionalProperties": False,
            },
        },
        "resources": {
            "type": "object",
            "properties": dict.fromkeys(("requests", "limits"), STRINGS),
            "required": ["requests", "limits"],
            "additionalProperties": False,
        },
        "securityContext": {"type": "object"},
        "volumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
    },
    "additionalProperties": False,
}  # fmt: skip
TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "metadata": {"type": "object", "properties": {"labels": STRINGS}, "additionalProperties": False},
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                "securityContext": {"type": "object"},
                "restartPolicy": {"enum": ["Never", "OnFailure"]},
                "terminationGracePeriodSeconds": {"type": "integer"},
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
# the part of the ray.io/v1 custom resource RayJob that the file uses, after KubeRay's API reference
RAYJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "backoffLimit": {"type": "integer"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "submitterPodTemplate": TEMPLATE,
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {"const": {"mode": "token"}},
                        "headGroupSpec": {
                            "type": "object",
                            "required": ["template", "rayStartParams"],
                            "properties": {
                                "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                                "rayStartParams": STRINGS,
                                "template": TEMPLATE,
                            },
                            "additionalProperties": False,
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    **{key: {"type": "integer"} for key in ("replicas", "minReplicas", "maxReplicas")},
                                    "rayStartParams": STRINGS,
                                    "template": TEMPLATE,
                                },
                                "additionalProperties": False,
                            },
                        },
                    },
                    "additionalProperties": False,
                },
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


def rayjob() -> Any:
    return next(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")))


def test_the_rayjob_has_the_fields_of_ray_io_v1() -> None:
    jsonschema.validate(rayjob(), RAYJOB)


def test_every_pod_of_the_rayjob_mounts_what_it_names() -> None:
    spec = rayjob()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert pod["securityContext"]["runAsNonRoot"]


def test_no_pod_of_the_rayjob_may_do_more_than_another_and_its_policy_is_theirs_alone() -> None:
    spec = rayjob()["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    for pod in (spec["submitterPodTemplate"], *groups):
        assert pod["spec"]["securityContext"] == groups[0]["spec"]["securityContext"]
        assert all(one["securityContext"]["capabilities"] == {"drop": ["ALL"]} for one in pod["spec"]["containers"])
    (policy,) = list(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")))[1:]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert all(pod["metadata"]["labels"] == labels for pod in groups)
    assert "labels" not in spec["submitterPodTemplate"].get("metadata", {})


def test_the_rayjob_trains_a_file_of_the_image_with_overrides_that_hold() -> None:
    from tpdist.config import load_config

    words = rayjob()["spec"]["entrypoint"].split()
    assert words[:2] == ["tpdist", "train"]
    config = Path(words[2])
    assert config.parent == Path("/work/configs")
    loaded = load_config(ROOT / "configs" / config.name, words[words.index("--set") + 1 :])
    workers = rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    cpus = float(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert loaded.cluster.workers * loaded.cluster.cpus_per_worker <= workers["replicas"] * cpus


# Docker

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


def compose() -> Any:
    """compose.yaml with its defaults filled in."""
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text))


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


# Scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_pass_shellcheck() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in SCRIPTS]
    done = subprocess.run([tool("shellcheck"), "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["head.sh", "worker.sh", "train.sh", "scaling.sh"])
def test_nothing_starts_without_a_token(script: str, tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TPDIST_TOKEN_FILE": str(tmp_path / "token")}
    done = subprocess.run([str(DOCKER / script), "configs/quickstart.yaml"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no token" in done.stderr


def test_a_head_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o600)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TPDIST_TOKEN_FILE": str(tmp_path / "token"),
           "TPDIST_HEAD": "127.0.0.1", "TPDIST_GCS_PORT": "1", "TPDIST_WAIT_S": "1"}  # fmt: skip
    done = subprocess.run([str(DOCKER / "worker.sh")], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "no head answered at 127.0.0.1:1 within 1 s" in done.stderr


BASH = ["bash", "-euo", "pipefail", "-c"]


def test_sigterm_lets_the_training_save_and_its_exit_code_is_passed_on() -> None:
    training = "trap 'sleep 0.5; echo saved; exit 130' TERM; echo ready; while true; do sleep 0.1; done"
    script = f"source docker/common.sh; run_training bash -c {shlex.quote(training)}"
    with subprocess.Popen([*BASH, script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.terminate()
        assert run.stdout.read() == "saved\n"
    assert run.returncode == 130


@pytest.mark.parametrize("code", [0, 3])
def test_a_scripts_exit_code_is_the_trainings(code: int) -> None:
    script = f"source docker/common.sh; run_training bash -c 'exit {code}'"
    assert subprocess.run([*BASH, script], cwd=ROOT).returncode == code


# One with another


def test_ports_are_the_same_everywhere() -> None:
    common = (DOCKER / "common.sh").read_text(encoding="utf-8")
    ports = dict(re.findall(r"^TPDIST_(\w+)=\$\{\w+:-(\d+)\}$", common, re.MULTILINE))
    gcs, dashboard, node = ports["GCS_PORT"], ports["DASHBOARD_PORT"], int(ports["NODE_PORTS"])
    environment = compose()["services"]["head"]["environment"]
    assert (environment["TPDIST_GCS_PORT"], environment["TPDIST_DASHBOARD_PORT"]) == (gcs, dashboard)
    assert f"\nEXPOSE {gcs} {dashboard} {node}-{node + 5}\n" in DOCKERFILE
    assert f"TPDIST_NODE_PORTS:-{node}}}" in DOCKERFILE
    slurm = (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
    assert f"TPDIST_GCS_PORT:-{gcs}}}" in slurm
    assert f"TPDIST_DASHBOARD_PORT:-{dashboard}}}" in slurm
    for name in LAUNCHER:
        head = load(CLUSTER / name)["head_start_ray_commands"][-1]
        worker = load(CLUSTER / name)["worker_start_ray_commands"][-1]
        assert f"--port={gcs} " in head
        assert f"--dashboard-port={dashboard} " in head
        assert f"--address=$RAY_HEAD_IP:{gcs} " in worker
        for command in (head, worker):
            assert f"--node-manager-port={node} --object-manager-port={node + 1}" in command
    container = rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert [str(port["containerPort"]) for port in container["ports"]] == [gcs, dashboard]
    # Ray gives 10002-19999 to its worker processes
    assert not any(10002 <= int(port) <= 19999 for port in ports.values() if int(port) < 65536)


def test_a_stopped_job_has_as_long_to_save_everywhere() -> None:
    from tpdist.launch.jobs import STOP_LIMIT_S

    common = (DOCKER / "common.sh").read_text(encoding="utf-8")
    assert f"RAY_JOB_STOP_WAIT_TIME_S:-{STOP_LIMIT_S}}}" in common
    for name in LAUNCHER:
        assert f"RAY_JOB_STOP_WAIT_TIME_S={STOP_LIMIT_S} " in load(CLUSTER / name)["head_start_ray_commands"][-1]
    assert {service["stop_grace_period"] for service in compose()["services"].values()} == {f"{STOP_LIMIT_S}s"}
    spec = rayjob()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        environment = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_LIMIT_S)
        assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == str(STOP_LIMIT_S)
        assert pod["terminationGracePeriodSeconds"] > STOP_LIMIT_S


def test_nobody_begins_a_run_anew() -> None:
    """What was cut off goes on by hand, from its checkpoint."""
    assert "\n#SBATCH --no-requeue\n" in (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
    assert {service["restart"] for service in compose()["services"].values()} == {"no"}
    assert rayjob()["spec"]["backoffLimit"] == 0


def test_versions_are_the_same_everywhere_and_those_that_the_project_allows() -> None:
    from packaging.requirements import Requirement

    versions = dict(re.findall(r"^ARG (\w+)_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == versions["RAY"]
    for name in LAUNCHER:
        install = load(CLUSTER / name)["setup_commands"][-1]
        assert f'"ray[default]=={versions["RAY"]}" "torch=={versions["TORCH"]}"' in install
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name.upper() in versions:
            assert versions[requirement.name.upper()] in requirement.specifier


def test_images_have_the_names_that_the_files_use() -> None:
    images = {service["image"] for service in compose()["services"].values()}
    assert images == {"tpdist:cpu"}
    for target in ("cpu", "cuda"):
        assert f"--target {target} -t tpdist:{target} " in DOCKERFILE
    assert "--target cpu -t tpdist:cpu ." in (CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")


def test_no_file_holds_a_token() -> None:
    for path in [*CLUSTER.iterdir(), *DOCKER.iterdir()]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"RAY_AUTH_TOKEN=\S", text), path
        assert not re.search(r"\b[0-9a-f]{40,}\b", text), path
