"""cluster/kuberay-rayjob.yaml: the fields of a RayJob, its pods, its policy, its entry point."""

from pathlib import Path

import jsonschema
import yaml
from deployment import CLUSTER, ROOT, rayjob

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


def test_the_rayjob_has_the_fields_of_ray_io_v1() -> None:
    jsonschema.validate(rayjob(), RAYJOB)


def test_every_pod_of_the_rayjob_mounts_what_it_names() -> None:
    spec = rayjob()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            # of the image it is a directory that each pod has for itself
            shared = {"name": "TPDIST_SHARED", "value": container["volumeMounts"][0]["mountPath"]}
            assert shared in container["env"]
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
