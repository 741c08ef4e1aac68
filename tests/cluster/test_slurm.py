"""cluster/slurm.sh on three hosts out of namespaces, with a stand-in for Slurm."""

import contextlib
import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hosts
import pytest
from host_cluster import GCS_PORT, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=hosts.missing() or ""),
]

SRUN = """
import json, os, socket, sys
words = sys.argv[1:]
name = next(word.removeprefix("--nodelist=") for word in words if word.startswith("--nodelist="))
command = words[next(i for i, word in enumerate(words) if not word.startswith("--")):]
if "docker/" in " ".join(command):
    assert {"--cpus-per-task=1", "--cpu-bind=none"} < set(words), "Slurm would give all workers of a node one core"
with socket.socket(socket.AF_UNIX) as control:
    control.connect(os.environ["SLURM_STAND_IN"])
    stream = control.makefile("rwb")
    step = {"host": name, "command": command, "environment": dict(os.environ), "directory": os.getcwd()}
    stream.write(json.dumps(step).encode() + b"\\n")
    stream.flush()
    *output, code = iter(stream.readline, b"")
    sys.stdout.buffer.writelines(output)
sys.exit(int(code))
"""


@contextmanager
def slurm_stand_in(network: hosts.Network, path: Path) -> Iterator[list[tuple[str, str]]]:
    """Runs, on the hosts, the steps that SRUN sends from any of them to the socket `path`: (host, first word) each."""
    steps: list[tuple[str, str]] = []

    class Step(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            step = json.loads(self.rfile.readline())
            steps.append((step["host"], step["command"][0]))
            done = network[step["host"]].run(step["command"], step["environment"], 300, step["directory"])
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(f"{done.stdout}\n{done.returncode}\n".encode())

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Step) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield steps
        server.shutdown()


def test_slurm_sh_starts_a_head_workers_and_the_training(tmp_path: Path) -> None:
    """With stand-ins for `srun`, `scontrol` and `tpdist`: the batch script runs on the first of three hosts."""
    with hosts.Network("n1", "n2", "n3") as network, slurm_stand_in(network, tmp_path / "slurm") as steps:
        binaries = tmp_path / "env" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text("")
        python = f"#!{sys.executable}\n"
        scripts = {
            "srun": python + SRUN,
            "scontrol": "#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n",
            "tpdist": f"{python}import ray, sys, time\nray.init(sys.argv[-1], logging_level='ERROR')\n"
            "while sum(n['Alive'] for n in ray.nodes()) < 3: time.sleep(0.5)\n"
            "print('TRAINED', *sys.argv[1:], ray.cluster_resources()['CPU'], flush=True)\n"
            "import os\nprint('the token is', os.environ.get('RAY_AUTH_TOKEN', 'its own'), flush=True)\n",
        }
        for name, text in scripts.items():
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TPDIST_"))}
        environment |= {
            "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "RAY_TMPDIR": str(network.disk / "r"),
            "TPDIST_ENV": str(tmp_path / "env"), "SLURM_STAND_IN": str(tmp_path / "slurm"),
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "1", "RAY_AUTH_TOKEN": "the user's", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200",
        }  # fmt: skip
        done = network["n1"].run(["cluster/slurm.sh", "a.yaml", "--set", "cluster.workers=3"], environment, 300, ROOT)
        address = f"{network['n1'].address}:{GCS_PORT}"
    assert done.returncode == 0, done.stdout
    assert f"TRAINED train a.yaml --set cluster.workers=3 --address {address} 3.0" in done.stdout
    assert "the token is its own\n" in done.stdout
    assert not list(ROOT.glob(".tpdist-42-*"))
    assert [host for host, command in steps if command == "rm"] == ["n1", "n2", "n3"]  # what Ray left in /tmp
