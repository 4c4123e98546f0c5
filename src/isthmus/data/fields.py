"""Fields as codes and standardised numbers, learnt from the training part alone.

A column of a side table and a context column are coded alike: each has values, categories as integers, and a
mask that says which of its entries may be learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.data import columns as col
from isthmus.data.chunks import chunks
from isthmus.data.events import ContextColumn
from isthmus.data.places import Places
from isthmus.data.vocabulary import Vocabulary, give_codes
from isthmus.schema import FIRST, PADDING, UNKNOWN, Entity, Field


@dataclass(frozen=True)
class Coder:
    """What training taught about a field.

    Attributes:
        field: with its size.
        vocabulary: categories seen in training; None for numeric fields.
        scaler: mean and standard deviation in training; None for others.
        code: (categories + 1,) int32, the code of each of the column's categories, and last that of null; None for numeric fields.
    """

    field: Field
    vocabulary: Vocabulary | None = None
    scaler: tuple[float, float] | None = None
    code: np.ndarray | None = None

    def __call__(self, entries: np.ndarray) -> np.ndarray:
        """A column's entries (n,), numbers or places of categories, as float32 standardised numbers (NaN for null) or int32 codes."""
        if self.code is not None:
            return self.code[entries]  # null has place -1
        assert self.scaler is not None
        mean, deviation = self.scaler
        return ((entries - mean) / deviation).astype(np.float32)

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Writes the vocabulary; returns what the manifest keeps."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / f"{name}.ids.arrow")
        return {} if self.scaler is None else {self.field.name: list(self.scaler)}


@dataclass(frozen=True)
class Coded:
    """A field's column, ready for a model.

    Attributes:
        coder: what it was coded by.
        values: (N,) int32 codes or float32 standardised numbers (NaN for null); flat codes when multi-valued.
        offsets: (N + 1,) int64 when multi-valued.
    """

    coder: Coder
    values: np.ndarray
    offsets: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Coded:
        """Some of the entries, in the order asked for."""
        if self.offsets is None:
            return replace(self, values=self.values[rows])
        offsets, values = col.take_lists(self.offsets, self.values, rows)
        return replace(self, values=values, offsets=offsets)

    def save(self, folder: Path, name: str) -> None:
        """Writes values and offsets; ``load_column`` reads them."""
        arrow.write(folder / f"{name}.values.arrow", {"value": self.values})
        if self.offsets is not None:
            arrow.write(folder / f"{name}.offsets.arrow", {"value": self.offsets})


def load_column(folder: Path, name: str, field: Field) -> Any:
    """(N,) values, or offsets and flat codes when multi-valued."""
    values = arrow.read(folder / f"{name}.values.arrow")["value"]
    return (arrow.read(folder / f"{name}.offsets.arrow")["value"], values) if field.kind == "multi" else values


def learn(column: ContextColumn, field: Field, train: np.ndarray, base: Coder | None = None) -> Coder:
    """Learns a field from what its training entries hold.

    Categories get codes by falling frequency in training, ties in ascending order; those not seen there are
    unknown, null is padding.

    Args:
        column: N entries.
        field: its description.
        train: (N,) bool, the entries to learn from.
        base: the same field of a data set to extend: its categories keep their codes, its scaler stays.

    Raises:
        ConfigError: categories of another type than the base's.
    """
    if column.index is None:
        return Coder(field, scaler=_scaler(column, train) if base is None else base.scaler)
    count = np.zeros(len(column.values), np.int64)
    for seen in _seen(column, train):
        count += np.bincount(seen[seen >= 0], minlength=len(count))
    old, learnt = None if base is None else base.vocabulary, np.flatnonzero(count)
    values = column.values if old is None or len(column.values) else column.values.cast(old.ids.dtype)
    vocabulary, _ = give_codes(values.gather(learnt), count[learnt], old)
    place = col.locate(values, vocabulary.ids)
    code = np.append(np.where(place < 0, UNKNOWN, place + FIRST), PADDING).astype(np.int32)
    return Coder(replace(field, size=vocabulary.size), vocabulary, code=code)


def _seen(column: ContextColumn, train: np.ndarray) -> Iterator[np.ndarray]:
    """The training entries, piece after piece."""
    for rows in chunks(len(train)):
        if column.offsets is None:
            yield column.entries[rows][train[rows]]
        else:
            offsets = column.offsets[rows.start : rows.stop + 1]
            yield column.entries[offsets[0] : offsets[-1]][np.repeat(train[rows], np.diff(offsets))]


def _scaler(column: ContextColumn, train: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the training numbers; 0 and 1 where there is nothing to learn."""
    count, total, square = 0, 0.0, 0.0
    for seen in _seen(column, train):
        known = seen[~np.isnan(seen)]
        count, total = count + len(known), total + float(known.sum(dtype=np.float64))
    mean = total / max(count, 1)
    for seen in _seen(column, train):
        square += float(np.nansum((seen - np.float64(mean)) ** 2))
    return mean, (square / max(count, 1)) ** 0.5 or 1.0


def code_entity(
    entity: Entity, table: pl.DataFrame | None, vocabulary: Vocabulary, base: tuple[Vocabulary, list[Coded]] | None = None
) -> list[Coded]:
    """Codes a side table, learning from the entities seen in training.

    Args:
        entity: its fields.
        table: ``id`` and the fields, or None.
        vocabulary: all ids of the entity.
        base: ids and coded fields of a data set to extend; what the table does not hold is as it was there.

    Returns:
        For each field, values by code: row 0 is padding; row 1, unknown, has code 1 or NaN; entities without a
        row in the table have nulls.

    Raises:
        ConfigError: categories of another type than the base's.
    """
    if table is None:
        return []
    row = np.full(vocabulary.size, len(table))  # the first row after the table is all null
    row[UNKNOWN] = len(table) + 1
    if base is not None:  # its rows by code stand behind that
        row[col.locate(base[0].ids, vocabulary.ids) + FIRST] = np.arange(FIRST, base[0].size) + len(table) + 2
    described, trained = Places(table["id"].dtype), np.zeros(len(table), bool)
    row_of = np.argsort(described(table["id"]))
    for some in chunks(len(vocabulary.ids)):  # no table of all of them is made
        place = described.find(vocabulary.ids[some])
        known = np.flatnonzero(place >= 0)
        code, here = known + some.start + FIRST, row_of[place[known]]
        row[code], trained[here] = here, code < vocabulary.trained
    columns = []
    for n, field in enumerate(entity.fields):
        old = None if base is None else base[1][n]
        column = _interned(table[field.name], field)
        coder = learn(column, field, trained, None if old is None else old.coder)
        coded = _with_defaults(Coded(coder, coder(column.entries), column.offsets))
        columns.append((coded if old is None else _joined(coded, old)).take(row))
    return columns


def _joined(coded: Coded, old: Coded) -> Coded:
    """The entries of both, the old ones last."""
    values = np.concatenate([coded.values, old.values])
    if coded.offsets is None or old.offsets is None:
        return replace(coded, values=values)
    return replace(coded, values=values, offsets=np.concatenate([coded.offsets, old.offsets[1:] + coded.offsets[-1]]))


def _interned(values: pl.Series, field: Field) -> ContextColumn:
    """A side table's column with its categories as integers."""
    if field.kind == "numeric":
        return ContextColumn(values.cast(pl.Float32).fill_null(np.nan).to_numpy())
    if field.kind == "categorical":
        ids = values.drop_nulls().unique().sort()
        return ContextColumn(ids, col.locate(values, ids))
    lists = values.list.drop_nulls()
    flat = lists.explode(empty_as_null=False, keep_nulls=False)
    ids = flat.unique().sort()
    offsets = np.concatenate([[0], lists.list.len().fill_null(0).to_numpy()]).cumsum(dtype=np.int64)
    return ContextColumn(ids, col.locate(flat, ids), offsets)


def _with_defaults(coded: Coded) -> Coded:
    """Two more entries: null, and unknown."""
    if coded.coder.field.kind == "numeric":
        return replace(coded, values=np.append(coded.values, np.full(2, np.nan, np.float32)))
    if coded.offsets is None:
        return replace(coded, values=np.append(coded.values, np.array([PADDING, UNKNOWN], np.int32)))
    end = coded.offsets[-1]
    return replace(coded, values=np.append(coded.values, np.int32(UNKNOWN)), offsets=np.append(coded.offsets, [end, end + 1]))
