"""A worker that nobody asks any more ends itself, whatever becomes of its last word."""

import subprocess
import sys

import pytest

from tpdist.launch.actor import LEASE_ENDED

# the class beneath Ray's, in a process of its own; its log is a pipe that nobody reads, or a disk without room
WORKER = """
import os, sys, time
from tpdist.launch.actor import SpanActor

out, into = os.pipe()
if sys.argv[1] == "hangs":
    os.set_blocking(into, False)
    try:
        while True:
            os.write(into, bytes(4096))
    except BlockingIOError:
        os.set_blocking(into, True)
else:
    into = os.open("/dev/full", os.O_WRONLY)
os.dup2(into, 1)
worker = SpanActor.__ray_metadata__.modified_class(lease_s=0.5)
time.sleep(60)
"""


@pytest.mark.parametrize("log", ["hangs", "is full"])
def test_a_worker_that_is_cut_off_ends_though_its_log(log: str) -> None:
    done = subprocess.run([sys.executable, "-c", WORKER, log], stderr=subprocess.DEVNULL)
    assert done.returncode == LEASE_ENDED
