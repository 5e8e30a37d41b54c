"""Keeps freed memory for the next image, instead of giving it back to the system each time.

glibc maps every array above 128 KiB anew and unmaps it when it is freed. A decoded image has some
hundred pages, each of which then costs a page fault.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MMAP_BYTES = 32 * 2**20  # the largest that glibc takes
_TRIM_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Raises malloc's thresholds of this process; says whether it did.

    Arrays up to 32 MiB then come from memory that the process keeps once it had it: at most what
    it once used. Nothing is done where the user has set malloc's own variables, or without glibc.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
