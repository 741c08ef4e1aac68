"""Hosts without machines: each a network, mount, process and host-name namespace of its own, on one virtual switch.

To try something by hand in a cluster of two such hosts (as root), see `Network` in use in host_cluster.py:

    with Network("head", "worker") as network:
        network["head"].run(["ip", "address"])

A host's processes are its own: when its first process is killed, the kernel ends all the others.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")
NAMESPACES = ("--net", "--mount", "--pid", "--uts")
# 198.18.0.0/15 is set aside for tests of networks (RFC 2544)
SUBNET = "198.18.77"


def missing() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (packages iproute2, util-linux, hostname)"
    probe = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True)
    return None if probe.returncode == 0 else "this machine allows no namespaces"


class Host:
    """One host. It sees this machine's files, but has a host name, an address and a local disk `disk` of its own."""

    def __init__(self, name: str, address: str, disk: Path, names: Path):
        self.name = name
        self.address = address
        script = (
            'mount -t tmpfs tmpfs "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts'
            ' && hostname "$0" && ip link set lo up && echo up && exec sleep infinity'
        )
        self._process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", script, name, str(disk), str(names)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "up":
            raise RuntimeError(f"{name}: the host did not start")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def command(self, arguments: Sequence[str], cwd: str | Path | None = None) -> list[str]:
        """`arguments` as they have to be called from outside."""
        directory = [f"--wd={Path(cwd or Path.cwd()).absolute()}"]
        return ["nsenter", f"--target={self.pid}", *NAMESPACES, *directory, "--", *arguments]

    def run(self, arguments: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 120,
            cwd: str | Path | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run to its end; its output, both streams together, is `.stdout`."""
        return subprocess.run(
            self.command(arguments, cwd), env=env, timeout=timeout_s, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start(self, arguments: Sequence[str], log: IO[Any], env: Mapping[str, str] | None = None,
              cwd: str | Path | None = None) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start, and go on; the output goes to `log`."""
        return subprocess.Popen(self.command(arguments, cwd), env=env, stdout=log, stderr=subprocess.STDOUT)

    def link(self, up: bool) -> None:
        """Plug the cable in, or pull it."""
        self.run(["ip", "link", "set", "eth0", "up" if up else "down"]).check_returncode()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()


class Network:
    """Hosts by name, at SUBNET.1, SUBNET.2, ... on a switch (a host of its own); no way out of it.

    disk: a directory that every host has for itself, with a short path: for RAY_TMPDIR.
    """

    disk: Path

    def __init__(self, *names: str):
        self._names = names
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> "Network":
        self._directory = tempfile.TemporaryDirectory(prefix="tp", dir="/tmp")
        self.disk = Path(self._directory.name)
        self._table = tempfile.NamedTemporaryFile("w", prefix="hosts")
        self._table.write("127.0.0.1 localhost\n")
        self._table.writelines(f"{SUBNET}.{number} {name}\n" for number, name in enumerate(self._names, 1))
        self._table.flush()
        try:
            self._switch = self._host("switch", "")
            _check(self._switch.run(["ip", "link", "add", "br0", "type", "bridge"]))
            _check(self._switch.run(["ip", "link", "set", "br0", "up"]))
            for number, name in enumerate(self._names, 1):
                self._hosts[name] = self._plug(name, number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in [*self._hosts.values(), *([self._switch] if hasattr(self, "_switch") else [])]:
            host.close()
        self._table.close()
        self._directory.cleanup()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def _host(self, name: str, address: str) -> Host:
        return Host(name, address, self.disk, Path(self._table.name))

    def _plug(self, name: str, number: int) -> Host:
        host = self._host(name, f"{SUBNET}.{number}")
        switch, port = self._switch, f"port{number}"
        add = f"ip link add {port} type veth peer name eth0 netns {host.pid}"
        # within the switch's process namespace other numbers hold: only its network is entered
        _check(subprocess.run(
            ["nsenter", f"--target={switch.pid}", "--net", *add.split()], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ))  # fmt: skip
        _check(switch.run(["ip", "link", "set", port, "master", "br0", "up"]))
        _check(host.run(["ip", "address", "add", f"{host.address}/24", "dev", "eth0"]))
        _check(host.run(["ip", "link", "set", "eth0", "up"]))
        return host


def write_token(directory: Path, token: str) -> Path:
    """A token file as Ray wants it: mode 0600."""
    file = directory / "token"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(token)
    return file


def _check(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode:
        raise RuntimeError(f"{' '.join(result.args)}: {result.stdout}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that all hosts see."""
    with tempfile.TemporaryDirectory(prefix="tpdist-hosts-") as directory:
        yield Path(directory)
