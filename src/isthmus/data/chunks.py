"""Columns too long to be copied: worked on piece by piece, counted and put in order."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.storage import storage_errors

CHUNK = 1 << 20  # rows worked on at once
THREADS = min(2, os.cpu_count() or 1)  # that work on chunks; more of them would need more memory, and the disk is slower than they are
SHARE = 16  # a column larger than the machine's memory divided by this lies in a temporary file
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of memory, where a container sets one


def chunks(size: int) -> Iterator[slice]:
    """0 .. size - 1, piece after piece."""
    for begin in range(0, size, CHUNK):
        yield slice(begin, min(begin + CHUNK, size))


def count(values: np.ndarray, size: int, where: Callable[[slice], np.ndarray] | None = None) -> np.ndarray:
    """How often each number occurs.

    Args:
        values: (N,) integers from 0 to size - 1.
        size: how many numbers there are.
        where: rows -> (n,) bool, which of them count; None: all.

    Returns:
        (size,) int64.
    """
    total = np.zeros(size, np.int64)
    for rows in chunks(len(values)):
        total += np.bincount(values[rows] if where is None else values[rows][where(rows)], minlength=size)
    return total


def distinct(values: np.ndarray) -> np.ndarray:
    """What ``np.unique`` gives for integers, by sorting: many times as fast as by the hash table that numpy uses for them."""
    ordered = np.sort(values)
    return ordered[starts(ordered)]


def starts(*keys: np.ndarray) -> np.ndarray:
    """Where a row differs from the one before.

    Args:
        keys: at least one; each (N,).

    Returns:
        (S,) int64 ascending places; the first is 0, if there are rows.
    """
    new = np.zeros(len(keys[0]), bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def order_of(*keys: np.ndarray) -> np.ndarray:
    """The stable order by the first key, then by the second, and so on.

    What ``np.lexsort`` does with the keys turned round, in a part of the time: a key and a place are packed into one number where they
    fit, and numbers sort faster than places; what is in order already is left alone.

    Args:
        keys: at least one; each (N,) integers.

    Returns:
        (N,) int64 places.
    """
    order = None
    for key in reversed(keys):
        moved = key if order is None else key[order]
        if len(moved) < 2 or (moved[1:] >= moved[:-1]).all():
            continue
        place = _places(moved)
        order = place if order is None else order[place]
    return np.arange(len(keys[0])) if order is None else order


def _places(key: np.ndarray) -> np.ndarray:
    """Stable order by one key."""
    low, bits = int(key.min()), len(key).bit_length()
    if (int(key.max()) - low).bit_length() + bits > 63:
        return np.argsort(key, kind="stable")
    packed = key.astype(np.int64)
    packed -= low
    packed <<= bits
    packed |= np.arange(len(key))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def empty(size: int, dtype: Any) -> np.ndarray:
    """Room for a column of events (size,): in memory, or in a temporary file (folder ``TMPDIR``) where it would fill the memory.

    Raises:
        StorageError: no room for the file.
    """
    needed = size * np.dtype(dtype).itemsize
    if needed <= memory() // SHARE:
        return np.empty(size, dtype)
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile(prefix="isthmus-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed)  # now, and not when a page is written
        else:
            file.truncate(needed)
        return np.frombuffer(mmap.mmap(file.fileno(), needed), dtype)


def memory() -> int:
    """Bytes of memory that this process may use, as far as the system tells."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    limits = [limit.read_text().strip() for limit in map(Path, LIMITS) if limit.is_file()]
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])  # without a limit it says "max"
