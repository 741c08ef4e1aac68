"""Processes that try to get into a Ray with another token or none. Helpers of the tests beside it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tpdist.training.progress import Silent

DRIVER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("IN", len(ray.nodes()))
"""
SUBMIT = """
import sys
from ray.job_submission import JobSubmissionClient
print("IN", JobSubmissionClient(sys.argv[1]).submit_job(entrypoint="true"))
"""
NO_TOKENS: list[Mapping[str, str]] = [
    {"RAY_AUTH_MODE": "disabled"},
    {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
]


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def attempt(script: str, address: str, home: Path, **token: str) -> str:
    """What a process of its own, with this token or none, gets to see at `address`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **token}
    done = subprocess.run(
        [sys.executable, "-c", script, address], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr
