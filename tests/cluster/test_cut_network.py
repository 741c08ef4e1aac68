"""A run over two hosts goes on alone when the cable is pulled, and with both when it is back.

A host that joins without the shared directory is passed over.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import hosts
import pytest
import yaml
from host_cluster import ROOT, two_hosts

GO_ON_LIMIT_S = 60
GROW_LIMIT_S = 180
CONFIG = {
    "data": {"recipe": "synthetic", "synthetic": {"types": 12, "states": 4, "branching": 2, "tokens": 20_000}},
    "model": {"hidden": 8},
    "objective": {"block": 5},
    "batching": {"streams": 4, "blocks": 8},
    "run": {"epochs": 100_000, "checkpoint_every": 20, "device": "cpu"},
    "cluster": {"workers": {"min": 1, "max": 2}, "heartbeat_s": 8, "rejoin_s": 5},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=hosts.missing() or ""),
]


def wait_for(log: Path, pattern: str, limit_s: float, count: int = 1) -> tuple[float, str]:
    """The seconds until `count` lines of `log` match, and the last of them."""
    began = time.monotonic()
    while len(found := [line for line in log.read_text().splitlines() if re.search(pattern, line)]) < count:
        assert time.monotonic() - began < limit_s, f"no {pattern!r} within {limit_s} s:\n{log.read_text()}"
        time.sleep(0.2)
    return time.monotonic() - began, found[-1]


def test_the_cable_is_pulled_and_plugged_in_again(tmp_path: Path) -> None:
    with two_hosts() as cluster:
        run, log = tmp_path / "run", tmp_path / "driver.log"
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({**CONFIG, "data": {**CONFIG["data"], "store": str(tmp_path / "store")}}))
        command = ["tpdist", "train", str(config), "--run-dir", str(run), "--address", cluster.address]
        with log.open("wb") as file:
            driver = cluster.network["head"].start(command, file, cluster.environment, ROOT)
        cluster.processes.append(driver)
        wait_for(log, "2 workers: 2 along stream", 120)
        wait_for(log, r"epoch +2 ", 120)

        cluster.network["worker"].link(up=False)
        seconds, line = wait_for(log, "went on from step", GO_ON_LIMIT_S)
        # the survivor hangs in a message, which nobody can interrupt: its process is replaced too
        assert re.search(r"worker 1 \(\S+, process \d+\) .*, 1 worker went on from step \d+", line), line
        print(f"cut: on alone after {seconds:.1f} s: {line}")
        before = len(epochs(run))
        wait_until(lambda: len(epochs(run)) > before, 60)

        cluster.network["worker"].link(up=True)
        began = time.monotonic()
        node = cluster.processes[1]
        while "the cluster has room for more" not in log.read_text():
            assert time.monotonic() - began < GROW_LIMIT_S, log.read_text()
            if node.poll() is not None:  # Ray has given the node up: whoever looks after the host starts it anew
                cluster.start("worker", "worker.sh", TPDIST_CPUS="1")
                node = cluster.processes[-1]
            time.sleep(0.5)
        seconds = time.monotonic() - began
        _, line = wait_for(log, "the cluster has room for more", 1)
        assert re.search(r": 1 new, 1 kept, 2 workers went on from step \d+", line), line
        print(f"link back: two workers again after {seconds:.1f} s: {line}")
        before = len(epochs(run))
        wait_until(lambda: len(epochs(run)) > before, 60)

        inside = cluster.network["head"].run(["pgrep", "-f", "bin/tpdist train"]).stdout.split()
        cluster.network["head"].run(["kill", f"-{int(signal.SIGINT)}", inside[0]]).check_returncode()
        assert driver.wait(60) == 130, log.read_text()
        assert epochs(run) == list(range(1, len(epochs(run)) + 1)), "every epoch once"


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("shared", "failed: RunError: the worker on late says"),
        ("code", "failed: ConfigError: .*cannot load 'own_cells:"),
    ],
)
def test_a_host_that_lacks_what_the_others_have_is_no_end_of_the_run(
    lacks: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, code, log = tmp_path / "shared", tmp_path / "code", tmp_path / "driver.log"
    shared.mkdir()
    code.mkdir()
    (code / "own_cells.py").write_text("from tpdist.models import GRU as Own\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(code), str(ROOT)]))
    with two_hosts(workers=(), others=("late",)) as cluster:
        own = {"hidden": 8, "cell": "own_cells:Own", "allow_cells_from": ["own_cells"]}
        data = {**CONFIG["data"], "store": str(shared / "store")}
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({**CONFIG, "data": data, "model": own}))
        command = ["tpdist", "train", str(config), "--run-dir", str(shared / "run"), "--address", cluster.address]
        with log.open("wb") as file:
            driver = cluster.network["head"].start(command, file, cluster.environment, ROOT)
        cluster.processes.append(driver)
        wait_for(log, r"epoch +1 ", 120)

        cluster.network["late"].run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / lacks)]).check_returncode()
        cluster.logs["late"] = tmp_path / "late.log"
        cluster.start("late", "worker.sh", TPDIST_CPUS="1")
        _, line = wait_for(log, said, GROW_LIMIT_S)
        assert re.search(r"1 worker went on from step \d+", line), line
        before = len(epochs(shared / "run"))
        wait_until(lambda: len(epochs(shared / "run")) > before + 2, 60)
        assert driver.poll() is None
        assert len(re.findall(said, log.read_text())) == 1


def epochs(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return [row["epoch"] for row in rows if row["kind"] == "epoch"]


def wait_until(true: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.2)
