"""``Places``: ids to whole numbers in order of arrival, many at once."""

from __future__ import annotations

import secrets

import numpy as np
import polars as pl

from isthmus.data.chunks import Growing, chunks
from isthmus.data.ids import GrowingIds

SEEDS = (secrets.randbits(64), secrets.randbits(64))  # nothing depends on them, and nobody can look for ids that collide
SLOTS = 3  # at least so many for an id


class Places:
    """The place of each id among those met so far, found in a hash table (open addressing, linear probing) by numpy.

    A hash says where to look for an id.  What is found there is the same id where a second, independent hash of 64 bits is the same: of
    10^9 texts one is taken for another with a probability below 10^-10.  Whole numbers are compared themselves.  Looking a million ids up
    at once takes numpy a fraction of the time that polars takes for one after the other, because the processor waits for many pieces of
    memory at the same time.

    Args:
        dtype: of the ids: text, or 64-bit whole numbers.
    """

    def __init__(self, dtype: pl.DataType) -> None:
        self._slots = np.full(1 << 8, -1, np.int32)
        self._first, self._second = Growing(np.uint64), Growing(np.uint64)
        self._ids = GrowingIds(dtype)

    def __len__(self) -> int:
        return self._first.size

    def __call__(self, values: pl.Series) -> np.ndarray:
        """Places of ids; new ones get the next places.

        Args:
            values: (n,) ids, none null.

        Returns:
            (n,) int32.
        """
        first, second = _keys(values)
        place = self._find(first, second)
        while len(new := np.flatnonzero(place < 0)):  # twice when two new ids share one of the hashes
            self._add(new[np.unique(first[new], return_index=True)[1]], first, second, values)
            place[new] = self._find(first[new], second[new])
        return place

    @property
    def nbytes(self) -> int:
        """What the table and the ids take."""
        return self._slots.nbytes + self._first.values.nbytes + self._second.values.nbytes + self._ids.nbytes

    def find(self, values: pl.Series) -> np.ndarray:
        """Places of ids (n,), none null: (n,) int32, -1 for those not met so far."""
        return self._find(*_keys(values))

    def ids(self) -> pl.Series:
        """All ids, by place: to be used until more come."""
        return self._ids.series()

    def ordered(self) -> tuple[pl.Series, np.ndarray]:
        """All ids in ascending order, and by place (n,) int32 where each is among them."""
        ids = self.ids().sort()
        rank = np.empty(len(ids), np.int32)
        for rows in chunks(len(ids)):
            rank[self.find(ids[rows])] = np.arange(rows.start, rows.stop, dtype=np.int32)
        return ids, rank

    def _find(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(n,) int32 places, -1 for new ids."""
        if not len(self):
            return np.full(len(first), -1, np.int32)
        slot = self._slot(first)
        place = self._slots.take(slot)
        rows = np.flatnonzero(self._others(place, second))
        while len(rows):
            slot[rows] = after = slot.take(rows) + 1 & len(self._slots) - 1
            place[rows] = found = self._slots.take(after)
            rows = rows.take(np.flatnonzero(self._others(found, second.take(rows))))
        return place

    def _slot(self, first: np.ndarray) -> np.ndarray:
        """Where looking for ids begins: the upper bits of their first hash."""
        return (first >> np.uint64(65 - len(self._slots).bit_length())).view(np.int64)

    def _others(self, place: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(n,) bool: another id than the one looked for has this place."""
        differs = self._second.values.take(place, mode="wrap") != second
        differs &= place >= 0
        return differs

    def _add(self, rows: np.ndarray, first: np.ndarray, second: np.ndarray, values: pl.Series) -> None:
        """New ids, each once."""
        begin = len(self)
        self._first.append(first[rows])
        self._second.append(second[rows])
        self._ids.append(values.gather(rows))
        if SLOTS * len(self) > len(self._slots):
            self._slots, begin = np.full(1 << (SLOTS * len(self)).bit_length(), -1, np.int32), 0
        place = np.arange(begin, len(self), dtype=np.int32)
        slot = self._slot(self._first.values[begin:])
        while len(place):
            free = self._slots[slot] < 0
            self._slots[slot[free]] = place[free]
            left = self._slots[slot] != place  # taken, or the last of several had it
            place, slot = place[left], slot[left] + 1 & len(self._slots) - 1


def _keys(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Where to look for ids, and what tells them apart: (n,) uint64 each."""
    second = values.hash(SEEDS[1]) if values.dtype == pl.String else values.reinterpret(signed=False)
    return values.hash(SEEDS[0]).to_numpy(), second.to_numpy()
