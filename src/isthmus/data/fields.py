"""Fields as codes and standardised numbers, learnt from the training part alone.

A column of a side table and a context column are coded alike: each has values, categories as integers, and a
mask that says which of its entries may be learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.data import columns as col
from isthmus.data.events import ContextColumn
from isthmus.data.vocabulary import Vocabulary, give_codes
from isthmus.schema import FIRST, PADDING, UNKNOWN, Entity, Field


@dataclass(frozen=True)
class Coded:
    """A field's column, ready for a model.

    Attributes:
        field: with its size.
        values: (N,) int32 codes or float32 standardised numbers (NaN for null); flat codes when multi-valued.
        offsets: (N + 1,) int64 when multi-valued.
        vocabulary: categories seen in training; None for numeric fields.
        scaler: mean and standard deviation in training; None for others.
    """

    field: Field
    values: np.ndarray
    offsets: np.ndarray | None = None
    vocabulary: Vocabulary | None = None
    scaler: tuple[float, float] | None = None

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
            arrow.write(folder / f"{name}.offsets.arrow", {"offset": self.offsets})

    def save_learnt(self, folder: Path, name: str) -> dict[str, Any]:
        """Writes the vocabulary; returns what the manifest keeps."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / f"{name}.ids.arrow")
        return {} if self.scaler is None else {self.field.name: list(self.scaler)}


def load_column(folder: Path, name: str, field: Field) -> Any:
    """(N,) values, or offsets and flat codes when multi-valued."""
    values = arrow.read(folder / f"{name}.values.arrow")["value"]
    return (arrow.read(folder / f"{name}.offsets.arrow")["offset"], values) if field.kind == "multi" else values


def code_column(column: ContextColumn, field: Field, train: np.ndarray, base: Coded | None = None) -> Coded:
    """Codes a column by what its training entries hold.

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
        return _standardised(column.values, field, train, None if base is None else base.scaler)
    learn = train if column.offsets is None else np.repeat(train, np.diff(column.offsets))
    seen = column.index[learn]
    count = np.bincount(seen[seen >= 0], minlength=len(column.values))
    old, learnt = None if base is None else base.vocabulary, np.flatnonzero(count)
    values = column.values if old is None or len(column.values) else column.values.cast(old.ids.dtype)
    vocabulary, _ = give_codes(values.gather(learnt), count[learnt], old)
    place = col.locate(values, vocabulary.ids)
    code = np.append(np.where(place < 0, UNKNOWN, place + FIRST), PADDING).astype(np.int32)  # null has index -1
    return Coded(replace(field, size=vocabulary.size), code[column.index], column.offsets, vocabulary)


def _standardised(values: np.ndarray, field: Field, train: np.ndarray, scaler: tuple[float, float] | None) -> Coded:
    """(x - mean) / standard deviation of the training entries, or as ``scaler`` says; NaN stays."""
    seen = values[train]
    seen = seen[~np.isnan(seen)].astype(np.float64)
    mean, deviation = scaler or ((float(seen.mean()), float(seen.std()) or 1.0) if len(seen) else (0.0, 1.0))
    return Coded(field, ((values - mean) / deviation).astype(np.float32), scaler=(mean, deviation))


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
    place = col.locate(table["id"], vocabulary.ids) + FIRST
    row[place] = np.arange(len(table))
    columns = []
    for n, field in enumerate(entity.fields):
        old = None if base is None else base[1][n]
        coded = _with_defaults(code_column(_interned(table[field.name], field), field, place < vocabulary.trained, old))
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
    if coded.field.kind == "numeric":
        return replace(coded, values=np.append(coded.values, np.full(2, np.nan, np.float32)))
    if coded.offsets is None:
        return replace(coded, values=np.append(coded.values, np.array([PADDING, UNKNOWN], np.int32)))
    end = coded.offsets[-1]
    return replace(coded, values=np.append(coded.values, np.int32(UNKNOWN)), offsets=np.append(coded.offsets, [end, end + 1]))
