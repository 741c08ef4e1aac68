"""Sweeps of the paper's tables on a GPU that is lent for minutes: all end in time, and nothing that is done is lost.

They run side by side, under NVIDIA's MPS where it is there. What they have done is packed every few seconds into one
small archive: the figures and the configuration of every point. Unpacked in another clone, it is what `tpdist
reproduce` goes on from.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PACK_EVERY_S = 15.0
TO_STOP_S = 45.0  # sixteen processes with a GPU's memory each take their time to end
SMALL = {"config.yaml", "metrics.jsonl", "result.json", "versions.json", "results.json", "results.parquet"}
ARCHIVE = "sweeps.tar.xz"


def run_sweeps(commands: Sequence[str], device: str, root: Path, out: Path, deadline: float) -> bool:
    """Each command is what follows `tpdist reproduce`, such as "table2 --set run.epochs=5". -> whether all ended well.

    root: of a clone that has the stores; runs go into its `runs/`. deadline: by the monotonic clock.
    """
    budget = deadline - time.monotonic() - TO_STOP_S
    if budget <= 0:
        print("sweeps: no time left")
        return False
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    if device == "cuda" and (mps := shutil.which("nvidia-cuda-mps-control")):
        subprocess.run([mps, "-d"], check=False)
    out.mkdir(parents=True, exist_ok=True)
    running = {}
    for number, command in enumerate(commands):
        words = ["reproduce", *shlex.split(command), "--device", device, "--budget", f"{int(budget)}s"]
        program = [sys.executable, "-m", "tpdist", *words]
        with (out / f"sweep-{number}.txt").open("w") as log:
            running[command] = subprocess.Popen(
                program, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
    while any(one.poll() is None for one in running.values()) and time.monotonic() < deadline - PACK_EVERY_S:
        time.sleep(min(PACK_EVERY_S, max(0.0, deadline - time.monotonic() - PACK_EVERY_S)))
        pack(root, out)
    for one in running.values():
        one.kill()  # does nothing to one that has ended
    for number, (command, one) in enumerate(running.items()):
        print(f"{command}: exit code {one.wait()}")
        print("".join((out / f"sweep-{number}.txt").read_text().splitlines(keepends=True)[-5:]), end="")
    pack(root, out)
    return all(one.returncode == 0 for one in running.values())


def pack(root: Path, out: Path) -> None:
    """The small files, whole or not at all."""
    new = out / f"{ARCHIVE}.new"
    with tarfile.open(new, "w:xz") as archive:
        for file in root.glob("runs/**/*"):
            if file.name in SMALL:
                with suppress(FileNotFoundError):  # of a run that is being removed
                    archive.add(file, file.relative_to(root))
    new.replace(out / ARCHIVE)
