"""What is asked of a file system: to write through to the disk, to lock a file; how it says that it is full or away.

And JSON from files that may be damaged.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there
    fcntl = None

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# a file system that lies elsewhere, and has gone from this machine. The last two: what Lustre says on a node that was
# cut off, and what is said of one of FUSE (a bucket, say) whose own process has died
UNREACHABLE = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
UNREACHABLE |= {errno.ESHUTDOWN, errno.ENOTCONN}


def unwritable(directory: Path) -> str | None:
    """Why nothing can be written in a directory, which may have to be made, as far as that can be seen untried.

    None where nothing speaks against it.
    """
    try:
        os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return error.strerror
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return os.strerror(errno.ENOTDIR)
    if hasattr(os, "statvfs") and os.statvfs(nearest).f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS)
    return None if os.access(nearest, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def parse_json(text: str | bytes) -> Any:
    """The value that `text` is. Raises ValueError where it is none, or is nested deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


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
