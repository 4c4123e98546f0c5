"""``Segments``: sorted item codes by key, with membership and lookup for many keys at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.errors import DataError, SourceError
from isthmus.sorting import order_of, starts


@dataclass(frozen=True)
class Segments:
    """S keys, each with its own sorted values: V values in all.

    Attributes:
        keys: (S,) int64, ascending and unique; a key without values is not stored.
        offsets: (S + 1,) int64; the values of key s are ``values[offsets[s]:offsets[s + 1]]``.
        values: (V,) int32, ascending and unique within a key.
    """

    keys: np.ndarray
    offsets: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.keys) + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise DataError(
                f"{len(self.keys)} keys, {len(self.offsets)} offsets, {len(self.values)} values",
                "one offset more than keys, from 0 to the number of values",
                "make the segments with Segments.build",
            )

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def build(cls, keys: np.ndarray, values: np.ndarray) -> Segments:
        """Sorts pairs of a key and a value; repeated pairs count once.

        Args:
            keys: (N,) integers.
            values: (N,) integers from 0 to 2**31 - 1.
        """
        order = order_of(keys, values)
        key, value = keys.take(order), values.take(order)
        new = starts(key, value)
        key = key.take(new)
        first = starts(key)
        return cls(key.take(first).astype(np.int64), np.append(first, len(key)), value.take(new).astype(np.int32))

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the values of each key begin and end.

        Args:
            keys: (B,) integers; unknown ones have no values.

        Returns:
            (B,) int64 and (B,) int64, positions in ``values``.
        """
        if not len(self.keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        start = self.offsets.take(at)
        return start, np.where(self.keys.take(at) == keys, self.offsets.take(at + 1), start)

    def count(self, keys: np.ndarray) -> np.ndarray:
        """(B,) int64 number of values of each key."""
        start, end = self.lookup(keys)
        return end - start

    def contains(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Which values belong to their row's key.

        Args:
            keys: (B,) integers.
            values: (B, C) integers.

        Returns:
            (B, C) bool.
        """
        start, end = self.lookup(keys)
        low = np.broadcast_to(start[:, None], values.shape).copy()
        high = np.broadcast_to(end[:, None], values.shape).copy()
        if not len(self.values):
            return np.zeros(values.shape, bool)
        # Halving the longest segment halves all of them: as many rounds as its length has binary digits.
        for _ in range(int((end - start).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            below = (self.values.take(middle, mode="clip") < values) & (low < high)
            np.copyto(low, middle + 1, where=below)
            np.copyto(high, middle, where=~below)
        return (low < end[:, None]) & (self.values.take(low, mode="clip") == values)

    def gather(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All values of many keys.

        Args:
            keys: (B,) integers.

        Returns:
            The values, int32, and for each the row of its key in ``keys``, int64; both (total,), in order of row.
        """
        start, end = self.lookup(keys)
        length = end - start
        row = np.repeat(np.arange(len(keys)), length)
        before = np.cumsum(length) - length
        return self.values.take(np.arange(len(row)) + (start - before).take(row)), row

    @classmethod
    def load(cls, folder: Path) -> Segments:
        """Memory-maps a folder's columns.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        try:
            return cls(*(arrow.read(folder / f"{name}.arrow")["value"] for name in ("keys", "offsets", "values")))
        except (KeyError, DataError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{folder} holds other columns ({error})", "files that Isthmus wrote", "encode the data again") from error


def places(codes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where codes stand in an ascending list, and whether they do.

    Args:
        codes: (n,) ascending.
        wanted: (B,).

    Returns:
        (B,) int64 places, which mean nothing where the code is absent, and (B,) bool.
    """
    place = np.searchsorted(codes, wanted)
    return place, (codes.take(place, mode="clip") == wanted) if len(codes) else np.zeros(len(wanted), bool)
