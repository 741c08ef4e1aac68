"""A watch over code that reads what a stranger wrote: what it opens, changes or starts, and whether it ends."""

import os
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

LIMIT_S = 20.0  # of processor time, whatever other programs do
# event: which of its arguments are paths, each with the place of the directory that it is relative to
CHANGES = {
    "os.remove": {0: 1},
    "os.rmdir": {0: 1},
    "os.mkdir": {0: 2},
    "os.rename": {0: 2, 1: 3},
    "os.link": {0: 2, 1: 3},
    "os.symlink": {1: 2},
    "os.truncate": {0: 9},
    "os.chmod": {0: 2},
}
STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "socket.connect",
    "pickle.find_class",
}
# modules are imported when they are first needed
CODE = tuple({os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
PACKAGE = str(Path(__file__).parents[1] / "tpdist")

_inside: Path | None = None
_seen: list[str] = []


@contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """Fail if Python opens a file outside `directory`, starts something, finds a class to unpickle, or takes too long.

    What C++ opens by itself goes unseen; it gets its paths from Python.
    """
    global _inside
    _inside, _seen[:] = Path(os.path.realpath(directory)), []
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        _inside = None
    assert not _seen, list(_seen)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _inside is None:
        return
    if event in STARTS:
        _seen.append(f"{event} {arguments}")
    elif event in CHANGES:
        for place, relative in CHANGES[event].items():
            base = arguments[relative] if relative < len(arguments) else -1
            _check(event, arguments[place], base if isinstance(base, int) else -1, (str(_inside),))
    elif event == "open":
        path, mode, flags = arguments
        if mode is None and isinstance(path, str) and not os.path.isabs(path):
            return  # os.open in a directory that is open; it does not say which
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        _check(event, path, -1, (str(_inside),) if writes else (str(_inside), *CODE, PACKAGE))


def _check(event: str, path: Any, base: int, allowed: tuple[str, ...]) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor that is open already
    where = os.readlink(f"/proc/self/fd/{base}") if base >= 0 else ""
    real = os.path.realpath(os.path.join(where, os.fsdecode(path)))
    if not any(real == root or real.startswith(root + os.sep) for root in allowed):
        _seen.append(f"{event} {real}")


def _too_long(_: int, frame: FrameType | None) -> NoReturn:
    raise AssertionError(f"did not end within {LIMIT_S:.0f} s")


sys.addaudithook(_watch)
