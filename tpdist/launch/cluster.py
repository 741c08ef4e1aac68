"""Connect to Ray: an embedded one on this machine, or a cluster by its address; check that it fits."""

import logging
import math
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# before ray is imported: workers of a node see all its GPUs and pick theirs, or NCCL loses its peer-to-peer path
os.environ.setdefault("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray._private import ray_constants, services
from ray._private.state import available_resources_per_node, state  # no public function tells it by node
from torch._C._distributed_c10d import TCPStore

from tpdist.errors import TpdistError, first_line
from tpdist.launch.auth import token_of_its_own, token_of_the_user
from tpdist.launch.network import answers, knock
from tpdist.launch.placement import Node, TooFewResourcesError, assign, room
from tpdist.training.progress import Reporter

LOOK_EVERY_S = 1.0
PROBE_LIMIT_S = 1.0
KNOCK_LIMIT_S = 5.0
MOST_PROBES = 32


class ClusterError(TpdistError):
    """There is no cluster, or not one that can be used."""


@contextmanager
def connected(address: str | None, cpus: float, reporter: Reporter) -> Iterator[None]:
    """Connected to the cluster at `address` (`auto`, `host:port`), or to an embedded one with `cpus` CPUs.

    A program that has connected to Ray by itself keeps its connection: without an address the run uses that.

    Raises ClusterError where nothing answers or another version does, TokenError where the user's token is missing.
    """
    if address is None and ray.is_initialized():
        yield
        return
    with _embedded(cpus) if address is None else _cluster(address, reporter):
        yield


@contextmanager
def _embedded(cpus: float) -> Iterator[None]:
    """A Ray of this process: nobody without its token gets in, and none of its ports is open to another machine."""
    base = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    try:
        base.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=base).cleanup()
    except OSError as error:
        raise _cannot_start(base, error.strerror) from error
    # Ray makes its directory writable for all; the one around it is ours alone
    with token_of_its_own(), tempfile.TemporaryDirectory(prefix="tpdist", dir=base, ignore_cleanup_errors=True) as own:
        # Ray then takes 127.0.0.1 for this machine's address, and all its services listen there alone
        clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            try:
                with _in_a_session_of_their_own():
                    ray.init(
                        "local",
                        num_cpus=math.ceil(cpus),
                        include_dashboard=False,
                        log_to_driver=False,  # workers write to the run directory
                        logging_level=logging.ERROR,
                        _temp_dir=f"{own}/ray",
                    )
            except OSError as error:
                raise _cannot_start(base, first_line(error)) from error
            yield
        finally:
            ray.shutdown()
            ray_constants.ENABLE_RAY_CLUSTER = clusters


def _cannot_start(base: Path, why: object) -> ClusterError:
    return ClusterError(
        f"RAY_TMPDIR {base}: Ray cannot start there: {why}; give a short path on a local disk, where you may write"
    )


@contextmanager
def _in_a_session_of_their_own() -> Iterator[None]:
    """Ray's processes: a signal to the group of this one (`timeout`, a scheduler) is for it to answer, not for them.

    On Linux they end with it in any case; elsewhere Ray ends them by their group.
    """
    start = services.ConsolePopen
    if sys.platform == "linux":
        services.ConsolePopen = partial(start, start_new_session=True)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]


@contextmanager
def _cluster(address: str, reporter: Reporter) -> Iterator[None]:
    with token_of_the_user(address, reporter.say):
        _connect(address)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    where, given = "--address", address
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        where, given = "--address auto: RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    host, _, port = given.rpartition(":")
    if given != "auto" and not (host and "://" not in host and port.isdecimal() and 0 < int(port) < 65536):
        known = "; the dashboard's is for tpdist submit" if given.startswith("http") else ""
        raise ClusterError(f"{where} {given}: must be auto, or host:port such as 10.0.0.5:6379{known}")
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="tpdist")
    except ConnectionError as error:
        if "token" in f"{error}{error.__cause__}{error.__context__}".lower():
            raise ClusterError(
                f"the cluster at --address {address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                "to the file that holds it"
            ) from error
        raise _none_at(address, first_line(error)) from error
    except RuntimeError as error:
        if "version" not in str(error).lower():
            raise
        # Ray's message has a line for each version: the cluster's two, then ours
        versions = re.findall(r"(Ray|Python): (\S+)", str(error))
        there, here = (" and ".join(" ".join(one) for one in part) for part in (versions[:2], versions[2:]))
        raise ClusterError(
            f"the cluster at --address {address} runs {there or 'other versions'}, and here is {here or 'another'}; "
            "install the same Ray and Python on every machine"
        ) from error


def _knock(address: str) -> None:
    """Ray asks for ever where nothing listens: `auto` may find the embedded Ray of another run, which is closed to us.

    Raises ClusterError.
    """
    found = address
    try:
        found = services.canonicalize_bootstrap_address(address) or address
        host, _, port = found.rpartition(":")
        knock(host.strip("[]"), int(port), KNOCK_LIMIT_S)
    except (OSError, ValueError) as error:  # the file of the last `ray start` may hold anything, or be another user's
        raise _none_at(address if found == address else f"{address} ({found})", first_line(error)) from error


def _none_at(address: str, why: object) -> ClusterError:
    found = ", which may be another run's own Ray" if address.startswith("auto (") else ""
    return ClusterError(
        f"no Ray cluster at --address {address}{found}: {why}; start one with `ray start --head`, or leave --address "
        "out for an embedded one"
    )


def open_meeting(host: str) -> TCPStore:
    """Where workers meet, on this machine. It asks for no token, so it listens at `host` alone, not everywhere."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def free_nodes(answering: bool = False) -> list[Node]:
    """Live nodes with what they have free. answering: only those that answer this machine now.

    Ray takes half a minute to call a node dead whose network is gone. One that was told to end (SIGTERM) works on for
    as long, or longer, and Ray places nothing there.
    """
    available, ending = available_resources_per_node(), state.get_draining_nodes()
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in ending]
    if answering and alive:
        with ThreadPoolExecutor(min(len(alive), MOST_PROBES)) as pool:
            alive = [node for node, there in zip(alive, pool.map(_answers, alive), strict=True) if there]
    nodes = []
    for node in alive:
        free = available.get(node["NodeID"], {})
        nodes.append(Node(node["NodeID"], node["NodeManagerAddress"], free.get("CPU", 0.0), free.get("GPU", 0.0)))
    return nodes


def _answers(node: dict[str, Any]) -> bool:
    return answers(node["NodeManagerAddress"], node["NodeManagerPort"], PROBE_LIMIT_S)


def gpu_index(name: int | str) -> int:
    """Where torch finds a GPU of Ray's name: among all, or among those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible.index(str(name)) if str(name) in visible else int(name)


def wait_for_room(
    sizes: Sequence[int],
    cpus: float,
    gpus: float,
    reporter: Reporter,
    wait_s: float,
    leave_if_stopped: Callable[[], None],
) -> int:
    """The largest of `sizes`, which rise, that the cluster has room for now; waits up to `wait_s` for the smallest.

    Raises TooFewResourcesError then, and what `leave_if_stopped` raises meanwhile.
    """
    deadline = time.monotonic() + wait_s
    said = False
    while True:
        nodes = free_nodes()
        fitting = [size for size in sizes if size <= room(nodes, cpus, gpus)]
        if fitting:
            return fitting[-1]
        try:
            assign(nodes, sizes[0], cpus, gpus)
        except TooFewResourcesError as error:
            if time.monotonic() >= deadline:
                raise TooFewResourcesError(f"after {wait_s:.0f} s: {error}") from error
        if not said:
            reporter.say(f"waiting up to {wait_s:.0f} s for the cluster to have room for {sizes[0]} workers")
            said = True
        leave_if_stopped()
        time.sleep(LOOK_EVERY_S)
