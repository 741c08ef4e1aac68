"""A lock on a file, which the system lifts when the process that holds it ends, in whatever way."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpdist.data.disk import try_lock
from tpdist.errors import RunError

LOOK_EVERY_S = 0.2
# for the end of a process that is replaced: of one on a lost node, a file server lifts the lock once its lease is over,
# which by NFS's default takes 90 s
PATIENCE_S = 120.0


@contextmanager
def locked(file: Path, refusal: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of `file`, which is made. patience_s: how long to wait for another process to end.

    Raises RunError with `refusal` where another process holds it still, and where the file cannot be written.
    """
    try:
        handle = os.open(file, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RunError(f"{file.parent}: cannot be written: {error.strerror}") from error
    try:
        deadline = time.monotonic() + patience_s
        while try_lock(handle) is False:
            if time.monotonic() >= deadline:
                raise RunError(refusal)
            time.sleep(LOOK_EVERY_S)
        yield
    finally:
        os.close(handle)
