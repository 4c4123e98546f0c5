"""``Dictionary``: a column of ids becomes their places among all of them in ascending order, however many there are.

Ids get places in order of arrival, which a hash table finds.  When the table and its text take more than a share of memory, its ids are
put into temporary files in ascending order, as a run, and the next table begins empty: what a row holds is a place in the run of its time,
and an id may be in several runs.  At the end runs are merged, a range of ids after the other, so that in memory there is the table of one
run or of one range; files are read and written from front to back.  This is external merge sort (Knuth, The Art of Computer Programming 3,
5.4), with runs that know each id once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from isthmus.data.chunks import Growing, chunks, replace, share
from isthmus.data.ids import GrowingIds
from isthmus.data.places import Places

SAMPLES = 64  # ids that are looked at to find where a range ends


class Dictionary:
    """The ids of a column.

    Args:
        dtype: theirs: text, or 64-bit whole numbers.
        places: integers that hold their places.

    Attributes:
        dtype: as given.
    """

    def __init__(self, dtype: pl.DataType, places: Any) -> None:
        self.dtype = dtype
        self._table, self._column = Places(dtype), Growing(places)
        self._runs, self._rank = GrowingIds(dtype), Growing(np.int32)  # ids of all runs; by place in a table, that in its run
        self._ends, self._spent = [(0, 0)], 0  # rows and ids of all runs so far; bytes of their tables

    def __len__(self) -> int:
        """Ids met since the last run was written."""
        return len(self._table)

    @property
    def rows(self) -> int:
        """How many rows there are so far."""
        return self._column.size

    def append(self, values: pl.Series) -> None:
        """Ids (n,) to the end of the column; null has no place.

        Raises:
            StorageError: no room for the files.
        """
        if len(self) and self._table.nbytes > share():
            self._write()
        if values.null_count():
            place = np.full(len(values), -1, np.int32)
            place[values.is_not_null().to_numpy()] = self._table(values.drop_nulls())
        else:
            place = self._table(values)
        self._column.append(place)

    def finish(self) -> tuple[pl.Series, np.ndarray]:
        """All ids, unique and ascending, and the column: (rows,) places of the ids, -1 for null; nothing may come after it.

        Raises:
            StorageError: no room for the files.
        """
        self._write()
        ids, ranks = self._merged() if len(self._ends) > 2 else (self._runs.series(), [np.arange(len(self._runs), dtype=np.int32)])
        column = self._column.done()
        for ((begin, first), (end, last)), rank in zip(pairwise(self._ends), ranks, strict=True):
            place = np.append(rank.take(self._rank.values[first:last]), -1).astype(column.dtype)  # null is -1, the last one
            replace(column[begin:end], place)
        return ids, column

    def _write(self) -> None:
        """The table's ids become a run."""
        self._spent += self._table.nbytes
        ids, rank = self._table.ordered()
        self._table = Places(self.dtype)  # before there is a second copy of the text
        self._runs.append(ids)
        self._rank.append(rank)
        self._ends.append((self.rows, len(self._runs)))

    def _merged(self) -> tuple[pl.Series, Iterator[np.ndarray]]:
        """All ids, and for each run where its ids are among them."""
        every = self._runs.series()
        runs = [every[begin:end] for (_, begin), (_, end) in pairwise(self._ends)]
        cuts = _cuts(runs, 1 + self._spent // max(share(), 1))
        merged, ranks = GrowingIds(self.dtype), Growing(np.int32)
        for begin, end in pairwise(cuts):
            table, some = Places(self.dtype), pl.concat([run[b:e] for run, b, e in zip(runs, begin, end, strict=True)], rechunk=True)
            place = np.concatenate([table(some[rows]) for rows in chunks(len(some))])
            ids, rank = table.ordered()
            ranks.append(rank.take(place) + np.int32(len(merged)))
            merged.append(ids)
        size = np.diff(cuts, axis=0)
        ends = size.cumsum().reshape(size.shape)  # a range after the other, and in it a run
        of_runs = (
            np.concatenate([ranks.values[e - n : e] for e, n in zip(*spans, strict=True)]) for spans in zip(ends.T, size.T, strict=True)
        )
        return merged.series(), of_runs


def _cuts(runs: list[pl.Series], ranges: int) -> np.ndarray:
    """(at most ranges + 1, runs) where ranges of ids, about as long as each other, begin in ascending runs; and where the last ends."""
    every = max(1, sum(map(len, runs)) // (SAMPLES * ranges))
    some = pl.concat([run.gather_every(every) for run in runs]).unique().sort()
    bounds = some.gather_every(max(1, -(-len(some) // ranges)))[1:]
    return np.array([[0, *run.search_sorted(bounds, side="left"), len(run)] for run in runs]).T
