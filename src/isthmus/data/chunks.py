"""Columns too long to be copied: worked on piece by piece, and counted."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.ahead import ahead
from isthmus.storage import storage_errors

CHUNK = 1 << 19  # rows worked on at once: few for the cache, many for the files that they are divided among
LARGE = 1 << 20  # rows counted at once where there is much to count: each time all numbers are gone through
THREADS = min(2, os.cpu_count() or 1)  # that work on chunks; more of them would need more memory, and the disk is slower than they are
ALL = slice(None)  # rows
MANY = 1 << 22  # different numbers of which ``tally`` keeps one count alone
SHARE = 16  # a column larger than the machine's memory divided by this lies in a temporary file
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of memory, where a container sets one


def chunks(size: int, least: int = 0) -> Iterator[slice]:
    """0 .. size - 1, piece after piece; each has at least so many, if there are so many."""
    piece = max(CHUNK, least)
    for begin in range(0, size, piece):
        yield slice(begin, min(begin + piece, size))


def count(values: np.ndarray, size: int, where: Callable[[slice], np.ndarray] | None = None) -> np.ndarray:
    """How often each number occurs.

    Args:
        values: (N,) integers from 0 to size - 1.
        size: how many numbers there are.
        where: rows -> (n,) bool, which of them count; None: all.

    Returns:
        (size,) int64.
    """

    def counted(rows: slice) -> np.ndarray:
        place = np.add(values[rows], 1, dtype=np.int64)
        if where is not None:
            place *= where(rows)  # 0: not counted; faster than choosing those that are
        return place

    return tally(counted, len(values), size + 1)[1:]


def tally(counted: Callable[[slice], np.ndarray], rows: int, size: int) -> np.ndarray:
    """How often each number occurs among those that threads find out piece by piece.

    Args:
        counted: rows -> (n,) integers from 0 to size - 1.
        rows: how many there are in all.
        size: how many numbers there are.

    Returns:
        (size,) int64.
    """
    if size > MANY:
        total = np.zeros(size, np.int64)
        for piece in chunks(rows):
            np.add.at(total, counted(piece), 1)  # slower, but nothing else is as long as ``size``
        return total

    def some(first: int) -> np.ndarray:
        total = np.zeros(size, np.int64)
        for piece in islice(chunks(rows, min(size, LARGE)), first, None, THREADS):
            total += np.bincount(counted(piece), minlength=size)
        return total

    return sum(ahead(some, range(THREADS), THREADS, THREADS), np.zeros(size, np.int64))


def replace(column: np.ndarray, values: np.ndarray) -> None:
    """Puts in every number's stead, in its own column (N,), what stands at that place of ``values`` (n,)."""

    def some(rows: slice) -> None:
        column[rows] = values.take(column[rows])

    for _ in ahead(some, chunks(len(column)), THREADS, THREADS):
        pass


def by_bin(bin_of: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in order of their bins, those of a bin as they come.

    Args:
        bin_of: (n,) integers from 0; rows with ``bins`` are left out.  Small types are put in order several times as fast.
        bins: how many there are.

    Returns:
        (m,) int64 rows, and (bins,) how many of each.
    """
    size = np.bincount(bin_of, minlength=bins + 1)[:-1]
    return np.argsort(bin_of, kind="stable")[: size.sum()], size


class Growing:
    """A column that comes piece after piece: in memory, or in a temporary file (folder ``TMPDIR``) where it would fill the memory.

    Args:
        dtype: of its numbers.

    Attributes:
        size: how many there are so far.
    """

    def __init__(self, dtype: Any) -> None:
        self.size, self._room, self._file = 0, np.empty(0, dtype), None

    @property
    def values(self) -> np.ndarray:
        """(size,) the numbers so far, until more of them come."""
        return self._room[: self.size]

    def append(self, values: np.ndarray) -> None:
        """Numbers (n,) to the end.

        Raises:
            StorageError: no room for the file.
        """
        end = self.size + len(values)
        if end > len(self._room):
            self._make_room(end + end // 8)
        self._room[self.size : end] = values
        self.size = end

    def done(self) -> np.ndarray:
        """(size,) all numbers, without room for more."""
        self._make_room(self.size)
        return self._room

    def _make_room(self, size: int) -> None:
        needed = size * self._room.itemsize
        if self._file is None and needed <= share():
            self._room.resize(size, refcheck=False)  # without a copy: ``values`` are not kept
            return
        with storage_errors(Path(tempfile.gettempdir())):
            before = self._room[:0] if self._file is not None else self.values
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="isthmus-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.truncate(needed)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, needed)  # now, and not when a page is written
            self._room = np.frombuffer(mmap.mmap(self._file.fileno(), needed), before.dtype)
            self._room[: len(before)] = before


def share() -> int:
    """Bytes of memory that one column, or one table of ids, may take."""
    return memory() // SHARE


def memory() -> int:
    """Bytes of memory that this process may use, as far as the system tells."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    limits = [limit.read_text().strip() for limit in map(Path, LIMITS) if limit.is_file()]
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])  # without a limit it says "max"
