"""Side tables of users and items, and given lists of items, with their ids in the type of the events' ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from isthmus.data import columns as col
from isthmus.errors import ColumnError, ConfigError, DataError, nearest
from isthmus.schema import Field


def side_table(
    frame: Any, id_name: str, fields: Sequence[str | Field], dtype: pl.DataType, what: str
) -> tuple[pl.DataFrame | None, tuple[Field, ...]]:
    """Reads the table of users or items.

    Args:
        frame: any frame, or None.
        id_name: its id column.
        fields: the columns to use; empty: all but the id.
        dtype: type of the events' ids.
        what: ``users`` or ``items``, for messages.

    Returns:
        The table with columns ``id`` and the fields, and the fields with their kinds; None and no fields
        without a frame.

    Raises:
        ColumnError: a column is missing or of the wrong type, or an id is null.
        DataError: an id comes twice.
        ConfigError: fields without a table, or a field named ``id``.
    """
    names = col.field_names(fields)
    if frame is None:
        if fields:
            raise ConfigError(f"fields {names} of {what} without their table", f"{what}=<a frame>", "give the table, or no fields")
        return None, ()
    rows = col.lazy(frame, [id_name, *names], what, rest=not names)
    with col.reading(what):
        dtypes = rows.collect_schema()
        described = col.as_fields(fields or [name for name in dtypes if name != id_name], dtypes)
        if "id" in (f.name for f in described):
            raise ConfigError(f"a field of the {what} named 'id'", "another name: the table's ids get this one", "rename the column")
        ids = col.id_column(id_name, dtypes[id_name], what).alias("id")
        table = rows.select(ids, *(col.field_column(f, dtypes[f.name]) for f in described)).collect(engine="streaming")
    table = table.with_columns(as_ids(table["id"], dtype, what))
    if table["id"].is_duplicated().any():
        twice = table["id"].filter(table["id"].is_duplicated())
        raise DataError(f"{what} table: id {twice[0]!r} comes more than once ({twice.n_unique():,} ids do)", "one row per id", "drop rows")
    for f in described:
        if f.kind == "numeric" and table[f.name].is_infinite().any():
            raise ColumnError(f"numeric field {f.name!r} of the {what} holds infinity", "finite numbers or nulls", "replace it")
    return table, described


def as_ids(values: Sequence[Any] | pl.Series, dtype: pl.DataType, what: str) -> pl.Series:
    """Ids in the type of the events' ids.

    Raises:
        ColumnError: nulls, or values that are no ids of that type.
    """
    raw = values if isinstance(values, pl.Series) else pl.Series("id", list(values))
    if raw.dtype == pl.Null and not len(raw):
        return pl.Series("id", [], dtype)
    ids = raw.to_frame("id").select(col.id_column("id", raw.dtype, what).cast(dtype, strict=False))["id"]
    if ids.null_count() or (ids.dtype == pl.String and (ids == "").any()):
        bad = raw.filter(ids.is_null() | (ids.cast(pl.String) == ""))[0]
        raise ColumnError(f"{what}: {bad!r} is no id like those of the events", f"ids of type {dtype}", "correct or drop it")
    return ids


def shown_items(
    shows: Mapping[str, Sequence[Any] | pl.Series] | None, domains: Sequence[str], dtype: pl.DataType
) -> list[pl.Series] | None:
    """The ids that each domain may show, in order of the domains.

    Raises:
        ConfigError: a domain is missing or unknown.
    """
    if shows is None:
        return None
    for name in shows:
        if name not in domains:
            raise ConfigError(f"shows names the domain {name!r}", f"domains of the events: {tuple(domains)}", nearest(name, domains))
    missing = [name for name in domains if name not in shows]
    if missing:
        raise ConfigError(f"shows leaves out the domains {missing}", "items for every domain", "add them, or leave shows out")
    return [as_ids(shows[name], dtype, f"shows[{name!r}]") for name in domains]
