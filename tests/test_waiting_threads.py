"""Threads that wait for each other sleep soon, unless the user chose otherwise; in processes of their own."""

import os
import subprocess
import sys

import pytest

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def _shown(program: str, **chosen: str) -> str:
    """What libgomp says it goes by, once torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **chosen}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return found.stderr


@pytest.mark.parametrize(
    ("program", "chosen", "spins"),
    [
        ("import tpdist, torch", {}, "1000"),
        ("import tpdist.training.worker", {}, "1000"),
        ("import tpdist, torch", {"GOMP_SPINCOUNT": "20"}, "20"),
        ("import tpdist, torch", {"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_how_often_a_thread_looks_before_it_sleeps(program: str, chosen: dict[str, str], spins: str) -> None:
    shown = _shown(program, **chosen)
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch does not bring libgomp")
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
