"""How the process keeps its memory: blocks that one training step frees are there for the next one."""

from __future__ import annotations

import ctypes
import os
from functools import cache

TRIM, MMAP = -1, -3  # names of glibc's settings, see mallopt(3)
BLOCK, KEPT = 32 << 20, 512 << 20  # bytes: the largest block that glibc may keep, and what may lie free before it gives some back
OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_blocks() -> bool:
    """Tells glibc to keep freed blocks of up to 32 MiB, for the whole process.

    Every step frees and asks for the same blocks.  By default glibc gives each large one back to the system at once, which then
    clears it anew, page by page: a quarter of the time of training DIN, half of that of its peers (``docs/log.md``).

    Returns:
        False where nothing was changed: no glibc, or one of its own environment variables is set, which then holds.
    """
    if any(name in os.environ for name in OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP, BLOCK)) and bool(mallopt(TRIM, KEPT))
