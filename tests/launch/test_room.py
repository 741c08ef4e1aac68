"""Room for workers, and which GPU is whose, without a cluster."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import small

import tpdist
from tpdist.config import Cluster
from tpdist.data import Store
from tpdist.errors import ConfigError, Interrupted, NonFiniteError
from tpdist.launch import actor, cluster, many
from tpdist.launch.cluster import ClusterError
from tpdist.launch.controller import Controller
from tpdist.launch.local import dry_run
from tpdist.launch.messages import Job, Process
from tpdist.launch.placement import Node, TooFewResourcesError, choose_backend
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal


@pytest.mark.parametrize("place", ["/proc/nope", "a-file", "x" * 90])
def test_where_ray_cannot_start_is_said(
    place: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / place))
    config = small(small_corpus, cluster={"workers": 2, "cpus_per_worker": 0.5})
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR .*: Ray cannot start there: .*give a short path on"):
        tpdist.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", r"must be auto, or host:port such as .*; the dashboard's is for tpdist submit$"),
        ("local", r"must be auto, or host:port such as 10\.0\.0\.5:6379$"),  # no Ray is started for it, without a token
    ],
)
def test_what_auto_is_led_to_by_rays_variable(
    address: str, said: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=rf"^--address auto: RAY_ADDRESS {address}: {said}"):
        tpdist.train(small(small_corpus), tmp_path / "run", address="auto")
    assert not (tmp_path / "run").exists()


def test_what_the_last_ray_start_left_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.services, "find_gcs_addresses", list)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    for left in (b"\xff", b"somewhere", b"127.0.0.1:99999"):
        (tmp_path / "ray/ray_current_cluster").write_bytes(left)
        with pytest.raises(ClusterError, match="no Ray cluster at --address auto"):
            cluster._knock("auto")


@pytest.mark.parametrize(
    ("gpus", "need", "room"),
    [(2, 0.5, 4), (2, 0.4, 4), (4, 0.75, 4), (1, 0.25, 4), (1.75, 0.25, 7), (0.5, 0.75, 0), (3, 1, 3), (3, 2, 1)],
)  # fmt: skip
def test_a_part_of_a_gpu_is_a_part_of_one(gpus: float, need: float, room: int) -> None:
    assert Node("a", "10.0.0.1", 64.0, gpus).room(1.0, need) == room


@pytest.mark.parametrize(("cpus", "need", "room"), [(1.0, 0.1, 10), (2.0, 0.3, 6), (3.0, 0.6, 5)])
def test_parts_of_cpus_add_up(cpus: float, need: float, room: int) -> None:
    assert Node("a", "10.0.0.1", cpus, 0.0).room(need, 0.0) == room


@pytest.mark.parametrize(
    ("visible", "name", "index"),
    [(None, 3, 3), (None, "1", 1), ("1", "1", 0), ("2,3", "3", 1), ("GPU-ab,GPU-cd", "GPU-cd", 1), ("", 0, 0)],
)
def test_torch_counts_the_gpus_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, name: int | str, index: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cluster.gpu_index(name) == index


def test_gpus_of_one_name_on_two_nodes_are_two() -> None:
    assert choose_backend([("a", "0"), ("b", "0")]) == "nccl"
    assert choose_backend([("a", "0"), ("a", "0")]) == "gloo"
    assert Process("10.0.0.1", 7, ("a", "GPU-ab")).gpu == ("a", "GPU-ab")


def test_a_node_that_was_told_to_end_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets its workers work on for a while, and places nothing there."""
    nodes = [{"NodeID": name, "Alive": True, "NodeManagerAddress": f"10.0.0.{name}"} for name in "12"]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "available_resources_per_node", lambda: {name: {"CPU": 3.0} for name in "12"})
    monkeypatch.setattr(cluster.state, "get_draining_nodes", lambda: {"2": 1_800_000_000_000})
    assert cluster.free_nodes() == [Node("1", "10.0.0.1", 3.0, 0.0)]


def test_waiting_for_room_ends_with_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "free_nodes", lambda: [Node("a", "10.0.0.1", 1.0, 0.0)])

    def stopped() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        cluster.wait_for_room([2], 1.0, 0.0, Silent(), 600.0, stopped)
    with pytest.raises(TooFewResourcesError, match="the cluster has room for 1"):
        cluster.wait_for_room([2], 1.0, 0.0, Silent(), 0.0, stopped)
    assert cluster.wait_for_room([1, 2], 1.0, 0.0, Silent(), 0.0, stopped) == 1


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0.0, "cluster.gpus_per_worker: workers under Ray have no GPU but those set aside, got 0"),
        ("cpu", 0.5, "cluster.gpus_per_worker: a worker with GPUs trains on them, got 0.5 beside run.device: cpu"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])  # whether a single worker is one of a cluster, only the command line says
def test_the_device_of_workers_is_what_is_set_aside(
    device: str, gpus: float, message: str, workers: int, small_corpus: Path, tmp_path: Path
) -> None:
    cluster_too = {"workers": workers, "gpus_per_worker": gpus}
    config = small(small_corpus, run={"device": device}, cluster=cluster_too)
    for begin in (
        lambda: tpdist.train(config, tmp_path / "run", address="auto"),
        lambda: dry_run(config, tmp_path / "run", address="auto"),
    ):
        with pytest.raises(ConfigError, match=message):
            begin()
    assert not (tmp_path / "run").exists()


def test_gpus_that_this_machine_lacks_are_not_waited_for(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = small(small_corpus, run={"device": "auto"}, cluster={"workers": 3, "gpus_per_worker": 0.5})
    for begin in (lambda: tpdist.train(config, tmp_path / "run"), lambda: dry_run(config, tmp_path / "run")):
        with pytest.raises(
            ConfigError, match=r"gpus_per_worker: this machine has 1 GPU, where 3 workers with 0\.5 each do not"
        ):
            begin()
    two = small(small_corpus, run={"device": "auto"}, cluster={"workers": 2, "gpus_per_worker": 0.5})
    assert dry_run(two, tmp_path / "run")


def test_a_run_of_workers_can_be_read_without_them(small_corpus: Path) -> None:
    """Only who starts workers asks for their devices."""
    assert small(small_corpus, run={"device": "cpu"}, cluster={"workers": 2, "gpus_per_worker": 1.0})


@pytest.mark.parametrize("began", [True, False])
def test_what_took_a_step_stays_to_be_read(
    began: bool, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NonFiniteError("step 7: the loss is nan")

    controller = SimpleNamespace(crew=SimpleNamespace(began=began), run=fail)
    monkeypatch.setattr(many, "Controller", lambda *_: controller)
    monkeypatch.setattr(many, "connected", lambda *_: nullcontext())
    config = small(small_corpus, cluster={"workers": 2})
    run = RunDirectory.create(config, tmp_path / "run")
    with pytest.raises(NonFiniteError):
        many.run_on_workers(config, Store.open(small_corpus), run, Silent(), None, None)
    assert run.path.exists() is began


@pytest.mark.parametrize(("address", "option"), [(None, ""), ("auto", " --address auto")])
def test_the_way_on_of_a_run_on_a_cluster_leads_there(
    address: str | None, option: str, small_corpus: Path, tmp_path: Path
) -> None:
    config = small(small_corpus, cluster={"workers": 2})
    run = RunDirectory.create(config, tmp_path / "run")
    (run.checkpoints / "step-00000009-epoch").mkdir()
    job = Job(str(run.path), str(small_corpus), (), str(tmp_path), False, 1, address=address)
    controller = Controller(job, config.cluster, (2,), Silent(), StopSignal())
    assert controller.how_to_go_on() == f"Continue with: tpdist train --resume {run.path}{option}"
    assert actor._seen_from_here(job)[0].resume_command == f"tpdist train --resume {run.path}{option}"


def test_why_a_run_is_given_up_is_said_where_its_directory_is_away(small_corpus: Path, tmp_path: Path) -> None:
    job = Job(str(tmp_path / "away"), str(small_corpus), (), str(tmp_path), False, 1)
    controller = Controller(job, Cluster(workers=2), (2,), Silent(), StopSignal())
    said = str(controller._given_up("11 failures within 3600 s"))
    assert "Not mended: 11 failures within 3600 s." in said
    assert said.endswith(f"Continue with: tpdist train --resume {tmp_path}/away")


def test_a_second_control_c_says_how_to_go_on(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    controller = SimpleNamespace(crew=SimpleNamespace(began=True), run=interrupt, how_to_go_on=lambda: "Continue so")
    monkeypatch.setattr(many, "Controller", lambda *_: controller)
    monkeypatch.setattr(many, "connected", lambda *_: nullcontext())
    config = small(small_corpus, cluster={"workers": 2})
    run = RunDirectory.create(config, tmp_path / "run")
    with pytest.raises(Interrupted, match=r"^stopped at once\. Continue so$"):
        many.run_on_workers(config, Store.open(small_corpus), run, Silent(), None, None)
