"""What a run's workers tell Ray, read where Prometheus would read it."""

import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
import ray
from small_runs import interrupted, small

import tpdist
from tpdist.launch.auth import token_of_its_own
from tpdist.training.progress import Silent, Status

WANTED = {
    ("tpdist_tokens_per_second", 'worker="0"'),
    ("tpdist_tokens_per_second", 'worker="1"'),
    ("tpdist_waiting_share", 'on="neighbours"'),
    ("tpdist_waiting_share", 'on="gradients"'),
    ("tpdist_step", ""),
    ("tpdist_perplexity", ""),
    ("tpdist_primal_residual", ""),
    ("tpdist_dual_residual", ""),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Scraper(Silent):
    """Reads the node's metrics after every look at the run, until all that is wanted is there; then ends the run."""

    def __init__(self, port: int):
        self.url, self.found = f"http://127.0.0.1:{port}/metrics", {}

    def step(self, status: Status) -> None:
        if len(self.found) == len(WANTED):
            return
        text = urllib.request.urlopen(self.url, timeout=10).read().decode()
        for name, tag in WANTED:
            for tags, value in re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
                if tag in tags and 'run="told"' in tags:
                    self.found[name, tag] = float(value)
        if len(self.found) == len(WANTED):
            signal.raise_signal(signal.SIGINT)


def test_the_figures_of_a_run_are_metrics_of_ray(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    port = free_port()
    scraper = Scraper(port)
    parts = {"cluster": {"workers": 2, "mesh": [1, 2]}, "run": {"epochs": 100_000, "log_every": 1000}}
    with token_of_its_own():
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _metrics_export_port=port,
            _system_config={"metrics_report_interval_ms": 1000},
        )
        try:
            interrupted(lambda: tpdist.train(small(small_corpus, **parts), tmp_path / "told", scraper))
        finally:
            ray.shutdown()
    assert scraper.found.keys() == WANTED
    assert scraper.found["tpdist_tokens_per_second", 'worker="0"'] > 0
    assert scraper.found["tpdist_step", ""] >= 1
    assert scraper.found["tpdist_perplexity", ""] > 1
    assert scraper.found["tpdist_primal_residual", ""] > 0
    assert 0 < scraper.found["tpdist_waiting_share", 'on="neighbours"'] < 1
