"""Columns as they come -> columns of the types that events need.  Checked by name and type; nothing is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from isthmus.errors import ColumnError, IsthmusError, SourceError, nearest
from isthmus.schema import Field

TEXTUAL = (pl.String, pl.Categorical, pl.Enum)


def lazy(frame: Any, columns: Iterable[str], what: str, *, rest: bool = False) -> pl.LazyFrame:
    """The named columns of any frame, lazily.

    Args:
        frame: a polars, pandas, pyarrow, ... frame, or a lazy one.
        columns: the columns wanted; a name may come twice.
        what: what the frame is, for messages.
        rest: all other columns too.

    Raises:
        ColumnError: a column is missing, or mixes types; or this is no frame.
        SourceError: a file behind a lazy frame is missing or damaged.
    """
    with reading(what):
        try:
            wrapped: Any = frame if isinstance(frame, pl.LazyFrame | pl.DataFrame) else nw.from_native(frame)
        except TypeError as error:
            raise ColumnError(f"{what} came as {type(frame).__name__}", "a polars, pandas or pyarrow frame", "convert it first") from error
        present = wrapped.collect_schema().names()
        wanted = list(dict.fromkeys([*columns, *(present if rest else ())]))
        for name in wanted:
            if name not in present:
                raise ColumnError(f"{what} have no column {name!r}", f"one of {present}", nearest(name, present))
        if isinstance(wrapped, pl.LazyFrame | pl.DataFrame):
            return wrapped.lazy().select(wanted)
        if isinstance(wrapped, nw.LazyFrame):
            return wrapped.select(wanted).collect(backend="polars").to_native().lazy()
        return pl.DataFrame([_eager(wrapped, name, what) for name in wanted]).lazy()


def _eager(frame: Any, name: str, what: str) -> pl.Series:
    try:
        return frame[name].to_polars()
    except (TypeError, ValueError) as error:  # pyarrow's refusals are ValueError and TypeError
        first = str(error).splitlines()[0]
        raise ColumnError(
            f"column {name!r} of the {what} cannot be read ({first})", "values of one type", "convert the column, e.g. to text"
        ) from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns a file reader's complaints into ``SourceError``; Isthmus' own errors pass.

    Args:
        what: what is read, for the message.
    """
    try:
        yield
    except IsthmusError:
        raise
    except (pl.exceptions.PolarsError, nw.exceptions.NarwhalsError, OSError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise SourceError(
            f"the {what} cannot be read ({first})", "whole, undamaged files", "copy or make them again: one may be truncated or missing"
        ) from error


def id_column(name: str, dtype: pl.DataType, what: str) -> pl.Expr:
    """Ids: text, or whole numbers as Int64 (UInt64 stays)."""
    if isinstance(dtype, TEXTUAL):
        return pl.col(name).cast(pl.String)
    if dtype.is_integer():
        return pl.col(name).cast(pl.UInt64 if dtype == pl.UInt64 else pl.Int64)
    raise ColumnError(
        f"{what} column {name!r} has type {dtype}", "text or whole numbers", "cast it, e.g. to Int64 (empty cells make pandas use floats)"
    )


def name_column(name: str, dtype: pl.DataType, what: str) -> pl.Expr:
    """Names of domains or behaviours, as text."""
    if isinstance(dtype, TEXTUAL) or dtype.is_integer() or dtype == pl.Boolean:
        return pl.col(name).cast(pl.String)
    raise ColumnError(f"{what} column {name!r} has type {dtype}", "text or whole numbers", "cast it to text")


def time_column(name: str, dtype: pl.DataType, unit: str) -> tuple[pl.Expr, str]:
    """Integer times and their unit: dates become microseconds since 1970 (UTC)."""
    if dtype.is_integer():
        return pl.col(name).cast(pl.Int64), unit
    if isinstance(dtype, pl.Datetime | pl.Date):
        return pl.col(name).dt.epoch("us"), "us"
    if dtype.is_float():
        return pl.col(name), unit  # cast when every value is known to be whole
    raise ColumnError(
        f"time column {name!r} has type {dtype}", "whole numbers, dates or datetimes", "parse it first, e.g. with str.to_datetime in polars"
    )


def label_column(name: str, dtype: pl.DataType) -> pl.Expr:
    """Labels as Float32."""
    if dtype.is_numeric() or dtype == pl.Boolean:
        return pl.col(name).cast(pl.Float32)
    raise ColumnError(f"label column {name!r} has type {dtype}", "numbers, or true and false", "convert it")


def as_fields(fields: Sequence[str | Field], dtypes: pl.Schema) -> tuple[Field, ...]:
    """Fields with their kinds: floats are numeric, lists are multi-valued, all else is categorical.

    A ``Field`` keeps the kind it was given.
    """
    return tuple(f if isinstance(f, Field) else Field(f, _kind(dtypes[f])) for f in fields)


def field_names(fields: Sequence[str | Field]) -> list[str]:
    """The columns of fields."""
    return [f.name if isinstance(f, Field) else f for f in fields]


def field_column(field: Field, dtype: pl.DataType) -> pl.Expr:
    """A field's values: Float32 (null for NaN), text or Int64, or lists of these.

    Raises:
        ColumnError: the type does not go with the field's kind.
    """
    column = pl.col(field.name)
    if field.kind == "numeric":
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            raise ColumnError(f"numeric field {field.name!r} has type {dtype}", "numbers", "convert it, or declare it categorical")
        return column.cast(pl.Float32).fill_nan(None)
    if field.kind == "multi":
        if not isinstance(dtype, pl.List | pl.Array):
            raise ColumnError(f"multi-valued field {field.name!r} has type {dtype}", "lists", "split it, e.g. with str.split in polars")
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return column.cast(pl.List(inner)).cast(pl.List(_category(field.name, inner)))
    return column.cast(_category(field.name, dtype))


def _kind(dtype: pl.DataType) -> Any:
    if isinstance(dtype, pl.List | pl.Array):
        return "multi"
    return "numeric" if dtype.is_float() else "categorical"


def _category(name: str, dtype: pl.DataType) -> type[pl.DataType]:
    """The type in which a field's categories are kept."""
    if dtype.is_nested() or dtype in (pl.Object, pl.Binary):
        raise ColumnError(f"field {name!r} holds {dtype}", "text, numbers, or lists of these", "convert it, or leave it out")
    return pl.Int64 if dtype.is_integer() and dtype != pl.UInt64 else pl.String


def locate(values: pl.Series, ids: pl.Series) -> np.ndarray:
    """Places of values among unique ids.

    Args:
        values: (N,) of the type of ``ids``; may hold nulls.
        ids: unique.

    Returns:
        (N,) int32; -1 for null and for what is not there.
    """
    known = pl.DataFrame({"id": ids}).with_row_index("place")
    place = pl.DataFrame({"id": values}).join(known, on="id", how="left", maintain_order="left")["place"]
    return place.cast(pl.Int32).fill_null(-1).to_numpy()


def take_lists(offsets: np.ndarray, flat: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some of N lists, in the order asked for.

    Args:
        offsets: (N + 1,) int64.
        flat: the lists end to end.
        rows: (M,) which lists.

    Returns:
        (M + 1,) int64 offsets, and the lists end to end.
    """
    length = np.diff(offsets)[rows]
    chosen = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    place = np.arange(chosen[-1]) + np.repeat(offsets[rows] - chosen[:-1], length)
    return chosen, flat[place]
