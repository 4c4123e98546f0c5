"""``Ids``: the ids of users, items or categories, and their codes, both ways, for a few at a time or for thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.schema import FIRST, UNKNOWN

Id = str | int
WIDEST = 2**63  # whole numbers are kept in 64 bits


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids in order of their codes: ``ids[n]`` has code ``2 + n``.

    Beside the ids, which stay on disk, lookup takes 12 bytes of memory for each: its hash, and where it stands.

    Attributes:
        ids: unique, text or whole numbers.
    """

    ids: pl.Series
    _hash: np.ndarray = field(init=False)
    _place: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        hashes = self.ids.hash().to_numpy()
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        object.__setattr__(self, "_hash", hashes[order])
        object.__setattr__(self, "_place", order)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> bool:
        """Ids are text, not whole numbers."""
        return self.ids.dtype == pl.String

    def codes(self, values: Sequence[Id]) -> np.ndarray:
        """(N,) int64 codes; 1 for an id that is not among them.  Text and whole numbers stand for each other."""
        if not len(values):
            return np.zeros(0, np.int64)
        asked = pl.Series("id", [self._alike(value) for value in values], dtype=self.ids.dtype)
        hashes = asked.hash().to_numpy()
        place = np.searchsorted(self._hash, hashes)
        code = np.full(len(values), UNKNOWN, np.int64)
        left = np.flatnonzero(asked.is_not_null().to_numpy() & (place < len(self._hash)))
        while len(left := left[self._hash[place[left]] == hashes[left]]):  # of equal hashes one may be the id's
            found = self._place[place[left]]
            same = (self.ids.gather(found) == asked.gather(left)).to_numpy()
            code[left[same]] = found[same] + FIRST
            left = left[~same]
            place[left] += 1
            left = left[place[left] < len(self._hash)]
        return code

    def names(self, codes: np.ndarray) -> list[Any]:
        """(N,) codes of known ids -> the ids."""
        return self.ids.gather(np.asarray(codes, np.int64) - FIRST).to_list()

    def _alike(self, value: Id) -> Id | None:
        """An id in the type of these; None where none of them can be meant."""
        if self.text:
            return str(value)
        try:
            number = int(value)
        except ValueError:
            return None
        return number if -WIDEST <= number < WIDEST and str(number) == str(value).strip() else None

    def save(self, path: Path) -> None:
        """Writes an Arrow file, whole or not at all."""
        arrow.write_series(path, self.ids)

    @classmethod
    def load(cls, path: Path) -> Ids:
        """Reads what ``save`` wrote.

        Raises:
            SourceError: the file is missing, truncated or foreign.
        """
        return cls(arrow.read_series(path))
