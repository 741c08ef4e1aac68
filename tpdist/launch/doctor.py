"""`tpdist doctor`: what this machine has, and what to mend before a run. Starts nothing and joins nothing.

Ray is not imported: its version is the package's, and the cluster that it would join stands in a file.
"""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
import torch
import torch.cuda.nccl
from packaging.requirements import Requirement

from tpdist.errors import first_line
from tpdist.launch.auth import token_file
from tpdist.launch.network import answers
from tpdist.launch.placement import own_cores

LEAST_FREE_GIB = 1.0
LEAST_SHARED_MIB = 512.0
CONNECT_S = 1.0
RAY_PORTS = {  # what each is, and how to start a head without it
    6379: ("the head", "--port"),
    8265: ("the dashboard", "--dashboard-port"),
    52365: ("the agent that jobs need", "--dashboard-agent-listen-port"),
}


@dataclass(frozen=True)
class Finding:
    """What was found in one place. fine, note: worth knowing; bad: a run would fail. mend: what to do about it."""

    what: str
    state: Literal["fine", "note", "bad"]
    found: str
    mend: str = ""

    def text(self) -> str:
        line = f"{self.state:<4}  {self.what:<9} {self.found}"
        return f"{line}\n{'':<15} -> {self.mend}" if self.mend else line


def examine() -> list[Finding]:
    """Look at everything; fast where there is no GPU."""
    return [
        *packages(),
        *devices(),
        *threads(os.environ, own_cores()),
        *ray_cluster(os.environ),
        *network(),
        *ports(lambda host, port: answers(host, port, CONNECT_S)),
        *disk(),
    ]


def packages() -> Iterator[Finding]:
    """Python, this package, and whether what it needs is there in a version that does."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", "fine", f"tpdist {version('tpdist')}, Python {python}, torch {torch.__version__}")
    for text in requires("tpdist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            mend = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("versions", "bad", f"{requirement.name} {found}, needed {requirement.specifier}", mend)


def devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("devices", "fine", f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}")
        if torch.distributed.is_nccl_available():
            nccl = ".".join(map(str, torch.cuda.nccl.version()))
            yield Finding("devices", "fine", f"NCCL {nccl}")
        else:
            mend = "install a torch build with NCCL, or the workers use Gloo, which is slower between GPUs"
            yield Finding("devices", "note", "torch has no NCCL", mend)
    elif shutil.which("nvidia-smi"):
        mend = "install torch's CUDA build for the driver that nvidia-smi names, or write run.device: cpu"
        yield Finding("devices", "note", "a CPU; there is an NVIDIA driver, but torch sees no GPU", mend)
    else:
        yield Finding("devices", "fine", f"a CPU with {own_cores()} cores for this process, no GPU")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        yield Finding("devices", "bad", "torch has no Gloo, which several workers need", "install another torch build")


def threads(environment: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Threads that wait for each other cost more than they bring."""
    given = environment.get("OMP_NUM_THREADS")
    count = torch.get_num_threads()
    found = f"{count} a process, OMP_NUM_THREADS {given or 'not set'}, {cores} cores"
    if given is not None and not given.isdigit():
        yield Finding("threads", "bad", found, "set OMP_NUM_THREADS to a whole number")
    elif count > cores:
        yield Finding("threads", "note", found, f"set OMP_NUM_THREADS={cores}")
    elif count > 1 and psutil.getloadavg()[0] > cores:
        load = f"{found}; other programs keep the cores busy (load {psutil.getloadavg()[0]:.1f})"
        yield Finding("threads", "note", load, "set OMP_NUM_THREADS=1")
    else:
        yield Finding("threads", "fine", found)


def ray_cluster(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The token, and the cluster that `--address auto` would join."""
    yield from _token(environment)
    file = Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    address, source, mend = environment.get("RAY_ADDRESS", ""), "RAY_ADDRESS", "correct it, or unset it"
    if address in ("", "auto"):
        mend = "ray start --head, or leave --address out"
        try:
            address, source = file.read_text(encoding="utf-8").strip(), str(file)
        except FileNotFoundError:
            yield Finding("ray", "fine", "no cluster here; runs start an embedded one, which ends with them")
            return
        except (OSError, ValueError) as error:  # another user's, or not Ray's
            yield Finding("ray", "note", f"{file} cannot be read: {first_line(error)}", mend)
            return
    host, _, port = address.rpartition(":")
    if port.isdecimal() and answers(host, int(port), CONNECT_S):
        yield Finding("ray", "fine", f"--address auto joins {address} ({source})")
    else:
        yield Finding("ray", "note", f"{source} names {address}, and nothing answers there", mend)


def network() -> Iterator[Finding]:
    """Gloo looks its own host up by name, where no network interface has the address that Ray goes by."""
    name = socket.gethostname()
    try:
        yield Finding("network", "fine", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        mend = f"add 127.0.0.1 {name} to /etc/hosts, or set GLOO_SOCKET_IFNAME=lo for workers of one machine"
        yield Finding("network", "note", f"the name of this machine, {name}, has no address", mend)


def ports(answers: Callable[[str, int], bool]) -> Iterator[Finding]:
    """Those of `ray start --head`; a run itself takes free ones, and an agent's only where it is free."""
    taken = [port for port in RAY_PORTS if answers("127.0.0.1", port)]
    if taken:
        found = ", ".join(f"{port} ({RAY_PORTS[port][0]})" for port in taken)
        options = " ".join(f"{RAY_PORTS[port][1]} PORT" for port in taken)
        yield Finding("ports", "note", f"in use: {found}", f"if that is not your Ray: ray start --head {options}")
    else:
        yield Finding("ports", "fine", f"free: {', '.join(map(str, RAY_PORTS))}")


def disk() -> Iterator[Finding]:
    """Where runs and stores go, and what Ray keeps objects in."""
    for name in ("runs", "stores"):
        place = Path(name) if Path(name).is_dir() else Path(".")
        free = shutil.disk_usage(place).free / 2**30
        if not os.access(place, os.W_OK):
            yield Finding("disk", "bad", f"{place.absolute()} cannot be written", "change into a directory of yours")
        elif free < LEAST_FREE_GIB:
            yield Finding("disk", "bad", f"{free:.2f} GiB free for {name}", f"free some, or put {name} elsewhere")
        else:
            yield Finding("disk", "fine", f"{free:,.0f} GiB free for {name}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (mib := shutil.disk_usage(shared).free / 2**20) < LEAST_SHARED_MIB:
        mend = "in Docker: --shm-size=1g; several workers need it, for Ray"
        yield Finding("disk", "note", f"{mib:.0f} MiB free in {shared}", mend)


def _token(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Where Ray would find its token; never the token itself."""
    mode, named = environment.get("RAY_AUTH_MODE", "not set"), environment.get("RAY_AUTH_TOKEN_PATH")
    given, file = bool(environment.get("RAY_AUTH_TOKEN")), token_file(environment)
    # unlike Path.is_file, os.path's is without an error of its own, such as of a directory that is another user's
    there = os.path.isfile(file) and not given
    source = "in RAY_AUTH_TOKEN" if given else f"in {file}" if there else "nowhere"
    yield Finding("ray", "fine", f"RAY_AUTH_MODE {mode}, token {source}")
    if there and not os.access(file, os.R_OK):
        yield Finding("ray", "bad", f"you cannot read {file}", "let it belong to you, mode 0600")
    elif there and file.stat().st_mode & 0o077:
        yield Finding("ray", "note", f"others on this machine can read {file}", f"chmod 600 {file}")
    elif named and not (there or given):
        wrong = f"RAY_AUTH_TOKEN_PATH names {named}, where there is no file that you can see"
        yield Finding("ray", "bad", wrong, "correct it, or unset it")
    elif mode == "token" and not (there or given):
        mend = "write the cluster's token to ~/.ray/auth_token (mode 0600), or name its file in RAY_AUTH_TOKEN_PATH"
        yield Finding("ray", "bad", "RAY_AUTH_MODE asks for a token, and there is none", mend)
