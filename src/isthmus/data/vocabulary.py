"""``Vocabulary``: ids to codes and back.  0 is padding, 1 unknown, real ids begin at 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.data import columns as col
from isthmus.data.ids import contiguous, gathered
from isthmus.errors import ColumnError, ConfigError, SourceError
from isthmus.schema import FIRST, PADDING, UNKNOWN
from isthmus.sorting import order_of


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of one entity, or the values of one field; the code of ``ids[n]`` is ``2 + n``.

    Attributes:
        ids: unique, text or whole numbers.
        trained: codes below this one were seen in training.
    """

    ids: pl.Series
    trained: int

    @property
    def size(self) -> int:
        """Number of codes, padding and unknown included."""
        return FIRST + len(self.ids)

    def __len__(self) -> int:
        return self.size

    def encode(self, values: Sequence[Any] | np.ndarray | pl.Series) -> np.ndarray:
        """Codes of ids.

        Args:
            values: (N,) ids; what can be cast to the type of the vocabulary is.

        Returns:
            (N,) int32; 1 for an unknown id, 0 for null.

        Raises:
            ColumnError: fractions, where the ids are whole numbers.
        """
        given = pl.Series("id", values)
        if given.dtype.is_float() and given.drop_nulls().len():
            raise ColumnError(f"ids of type {given.dtype}", f"ids of type {self.ids.dtype}", "cast them to whole numbers or text first")
        known = pl.DataFrame({"id": self.ids}).with_row_index("code", FIRST)
        asked = given.cast(self.ids.dtype, strict=False).to_frame()
        code = asked.join(known, on="id", how="left", maintain_order="left")["code"].cast(pl.Int32).fill_null(UNKNOWN).to_numpy()
        return np.where(given.is_null().to_numpy(), np.int32(PADDING), code)

    def decode(self, codes: Sequence[int] | np.ndarray) -> pl.Series:
        """Ids of codes.

        Args:
            codes: (N,) integers.

        Returns:
            (N,) ids; null for padding and unknown.
        """
        code = np.asarray(codes, np.int64)
        return self.ids.gather(pl.Series(code - FIRST).set(pl.Series(code < FIRST), None))

    def save(self, path: str | Path) -> None:
        """Writes an Arrow file, whole or not at all."""
        arrow.write_series(path, contiguous(self.ids))

    @classmethod
    def load(cls, path: str | Path, trained: int | None = None) -> Vocabulary:
        """Reads what ``save`` wrote.

        Args:
            path: the file.
            trained: codes below this one were seen in training; None: all.

        Raises:
            SourceError: the file is missing, truncated or foreign.
        """
        ids = arrow.read_series(path)
        if trained is not None and trained > FIRST + len(ids):
            raise SourceError(f"{path} holds {len(ids):,} ids", f"at least {trained - FIRST:,}", "encode the data again")
        return cls(ids, FIRST + len(ids) if trained is None else trained)


def frequency_order(count: np.ndarray) -> tuple[np.ndarray, int]:
    """The order of codes: seen in training first, by falling frequency, ties by place; then all others by place.

    Args:
        count: (n,) number of training occurrences of each id.

    Returns:
        (n,) int64 order of places, and the first code that was not seen in training.
    """
    return order_of(np.negative(count, dtype=np.int64)), FIRST + int(np.count_nonzero(count))


def give_codes(ids: pl.Series, count: np.ndarray, base: Vocabulary | None = None) -> tuple[Vocabulary, np.ndarray]:
    """Gives out codes: to ids seen in training by falling frequency, then to all others by place.

    Args:
        ids: (n,) unique.
        count: (n,) number of training occurrences of each.
        base: what it has trained keeps its codes; ids newly trained get the next ones, then come all others, its own first.

    Returns:
        The vocabulary, which holds all of the base's ids too, and (n,) int32 the code of each of ``ids``.

    Raises:
        ConfigError: ids of another type than the base's.
    """
    order, trained = frequency_order(count)
    if base is None:
        code = np.empty(len(ids), np.int32)
        code[order] = np.arange(FIRST, FIRST + len(ids), dtype=np.int32)
        return Vocabulary(gathered(ids, order), trained), code
    if ids.dtype != base.ids.dtype:
        raise ConfigError(f"ids of type {ids.dtype}", f"{base.ids.dtype}, as in the data set to extend", "cast them")
    kept = base.trained - FIRST
    place = col.locate(ids, base.ids)
    order = order[(place[order] < 0) | (place[order] >= kept)]
    new, rest = ids.gather(order[count[order] > 0]), order[count[order] == 0]
    later = base.ids[kept:]
    later = later.filter(pl.Series(col.locate(later, new) < 0))
    every = pl.concat([one.rename("id") for one in (base.ids[:kept], new, later, ids.gather(rest[place[rest] < 0]))])
    return Vocabulary(every, base.trained + len(new)), col.locate(ids, every) + np.int32(FIRST)
