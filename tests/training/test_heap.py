"""Page faults before and after, in processes of their own."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tpdist.training.heap import keep_freed_memory

COUNT = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, where the kernel gives them to everybody
from tpdist.training.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(20_000_000)  # 80 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
for _ in range(8):  # the heap grows by some holes first
    faults()
print(first, faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc on Linux alone"
)
@pytest.mark.parametrize("own_choice", [False, True])
def test_freed_memory_stays_unless_the_user_chose_otherwise(own_choice: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if own_choice:
        environment["MALLOC_TRIM_THRESHOLD_"] = "131072"
    found = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert before > 5000  # a fault for at most every 16 KB
    assert after < before / 10 or own_choice
    assert after > before / 2 or not own_choice


def test_c_libraries_that_keep_less_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older glibc refuses to keep larger blocks than 32 MiB in its heap; other libraries have no mallopt at all."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    kept: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        taken = parameter != -3 or value <= 32 << 20
        kept.update({parameter: value} if taken else {})
        return taken

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert kept[-3] == 32 << 20
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
