"""The files in cluster/ and docker/ agree with each other, and with the package."""

import re
import tomllib

from deployment import CLUSTER, DOCKER, DOCKERFILE, LAUNCHER, ROOT, compose, load, rayjob


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
