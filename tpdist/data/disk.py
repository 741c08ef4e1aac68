"""What data and training ask of a file system: to write through to the disk, to lock a file; how it says it is full."""

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there
    fcntl = None

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sync(path: Path) -> None:
    """Force a file, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(handle: int) -> bool | None:
    """Lock an open file, until it is closed or its process ends, in whatever way.

    False where another process holds it; None where files cannot be locked, as on some network file systems.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
