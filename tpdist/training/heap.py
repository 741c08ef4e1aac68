"""A worker keeps the memory that it frees: the next update asks for the same again."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
LARGEST, LARGEST_OF_OLD = 1 << 30, 32 << 20  # bytes of a block that still comes from the heap; glibc's age decides


def keep_freed_memory() -> None:
    """For the whole process, on Linux with glibc: freed blocks of up to 1 GiB are not handed back to the system.

    By itself glibc hands back large blocks, and every page of the next costs a fault: up to a quarter of an update
    (mallopt(3)). In return the heap may keep some holes of the largest blocks' size. Those who set MALLOC_...
    themselves are left alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
        if not mallopt(MMAP_THRESHOLD, LARGEST):
            mallopt(MMAP_THRESHOLD, LARGEST_OF_OLD)
