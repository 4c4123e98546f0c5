"""The two readings of an event log: the first finds out what there is and checks it, the second turns ids to integers.

Both run in polars' streaming engine, and a lazy frame is never whole in memory: what grows with the number of
rows are the integer columns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isthmus.data import columns as col
from isthmus.data.chunks import empty
from isthmus.errors import ColumnError, ConfigError, DataError, LabelError, SourceError, nearest
from isthmus.schema import Field, LabelKind

CHUNK = 250_000  # rows read at once
MOST_NAMES = {"domain": 2**15 - 1, "behaviour": 2**7 - 2}  # what int16 holds; what int8 holds as codes from 1
DTYPES = {"user": np.int32, "item": np.int32, "domain": np.int16, "time": np.int64, "label": np.float32, "behaviour": np.int8}


@dataclass(frozen=True)
class Log:
    """A checked event log.

    Attributes:
        rows: canonical columns, and ``context:<name>`` for context fields.
        count: N, the number of rows.
        user_ids, item_ids: found in the log; unique, in no order.
        domains, behaviours: names in order.
        label_kind, time_unit: as declared or found.
        context: fields with their kinds.
        categories: by column of ``rows``, the categories of context fields; unique, ascending.
    """

    rows: pl.LazyFrame
    count: int
    user_ids: pl.Series
    item_ids: pl.Series
    domains: tuple[str, ...]
    behaviours: tuple[str, ...]
    label_kind: LabelKind
    time_unit: str
    context: tuple[Field, ...]
    categories: dict[str, pl.Series]

    def intern(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, Any]:
        """Reads the log again, as integers.

        Args:
            user_ids, item_ids: unique; the integers are places in these.

        Returns:
            Canonical name -> (N,) array; ``context:<name>`` -> arguments of its ``ContextColumn``.

        Raises:
            SourceError: the log has changed since it was checked.
        """
        ids = {"user": user_ids, "item": item_ids, "domain": pl.Series(self.domains, dtype=pl.String)}
        ids |= {"behaviour": pl.Series(self.behaviours, dtype=pl.String)} if self.behaviours else {}
        kinds = {f"context:{f.name}": f.kind for f in self.context}
        joined = ids | {name: values for name, values in self.categories.items() if kinds[name] == "categorical"}
        rows = self.rows
        for name, values in joined.items():
            if values.dtype == pl.String:  # twice as fast as a join
                rows = rows.with_columns(pl.col(name).cast(pl.Enum(values), strict=False).to_physical().alias(f"{name}#"))
            else:
                places = pl.LazyFrame({name: values}).with_row_index(f"{name}#")
                rows = rows.join(places, on=name, how="left", maintain_order="left")
        columns = [name for name in self.rows.collect_schema().names() if kinds.get(name) != "multi"]
        lists = [name for name, kind in kinds.items() if kind == "multi"]
        rows = rows.select(*(_number(name, name in joined) for name in columns), *lists)
        return self._collect(rows, columns, lists, kinds)

    def _collect(self, rows: pl.LazyFrame, columns: list[str], lists: list[str], kinds: dict[str, Any]) -> dict[str, Any]:
        """Fills the arrays, batch after batch."""
        dtypes = DTYPES | {name: np.float32 if kind == "numeric" else np.int32 for name, kind in kinds.items()}
        filled = {name: empty(self.count, dtypes[name]) for name in columns}
        flat: dict[str, list[np.ndarray]] = {name: [] for name in lists}
        lengths: dict[str, list[np.ndarray]] = {name: [] for name in lists}
        at = 0
        with col.reading("events"):
            for batch in rows.collect_batches(chunk_size=CHUNK, maintain_order=True, engine="streaming"):
                end = at + len(batch)
                if end > self.count or (batch["user"].min() or 0) < 0 or (batch["item"].min() or 0) < 0:  # type: ignore[operator]
                    break
                for name in columns:
                    filled[name][at:end] = batch[name].to_numpy()
                for name in lists:
                    lengths[name].append(batch[name].list.len().to_numpy())
                    flat[name].append(col.locate(batch[name].explode(empty_as_null=False), self.categories[name]))
                at = end
        if at != self.count:
            came = "the events changed while they were read"
            raise SourceError(came, "the same rows in two readings", "read them when nobody writes to them")
        out: dict[str, Any] = {name: filled[name] for name in columns if name not in kinds}
        for name, kind in kinds.items():
            if kind == "multi":
                offsets = np.concatenate([[0], *lengths[name]]).cumsum(dtype=np.int64)
                index = np.concatenate([np.zeros(0, np.int32), *flat[name]])
                out[name] = {"values": self.categories[name], "index": index, "offsets": offsets}
            elif kind == "numeric":
                out[name] = {"values": filled[name]}
            else:
                out[name] = {"values": self.categories[name], "index": filled[name]}
        return out


def read_log(
    frame: pl.LazyFrame,
    named: dict[str, str],
    context: Sequence[str | Field],
    label_kind: LabelKind | None,
    time_unit: str,
    domains: Sequence[str] | None,
    behaviours: Sequence[str] | None,
) -> Log:
    """The first reading: checks types and values, finds ids, names and categories.

    Args:
        frame: the columns used.
        named: canonical name -> the user's column.
        context, label_kind, time_unit, domains, behaviours: as ``read_events`` takes them.

    Raises:
        ColumnError, LabelError, DataError, SourceError: see ``read_events``.
    """
    with col.reading("events"):
        dtypes = frame.collect_schema()
        chosen, unit = _canonical(named, dtypes, time_unit)
        fields = col.as_fields(context, dtypes)
        chosen |= {f"context:{f.name}": col.field_column(f, dtypes[f.name]) for f in fields}
        for f in fields:
            if f.kind == "multi":
                name = f"context:{f.name}"
                chosen[name] = chosen[name].list.drop_nulls().fill_null(pl.lit([], dtype=pl.List(pl.Null)))
        rows = frame.select(expression.alias(name) for name, expression in chosen.items())
        facts = rows.select(_facts(rows.collect_schema(), fields)).collect(engine="streaming").row(0, named=True)
    _check_facts(facts, named, fields)
    kind = _label_kind(facts, label_kind, named)
    if "time" in named:
        rows = rows.with_columns(pl.col("time").cast(pl.Int64))
    with col.reading("events"):
        categories = {f"context:{f.name}": _categories(rows, f) for f in fields if f.kind != "numeric"}
        user_ids, item_ids = _unique(rows, "user"), _unique(rows, "item")
        positives = _positives(rows, kind)
        found = _unique(rows, "behaviour").to_list() if "behaviour" in named else []
    names = _ordered("domain", list(positives), domains)
    without = [name for name in names if not positives.get(name)]
    if without:
        came = f"domains {without} have no positive event"
        raise LabelError(came, "at least one in every domain", "leave these domains out, or check the label")
    behaviour_names = _ordered("behaviour", found, behaviours)
    return Log(rows, facts["rows"], user_ids, item_ids, names, behaviour_names, kind, unit, fields, categories)


def _canonical(named: dict[str, str], dtypes: pl.Schema, time_unit: str) -> tuple[dict[str, pl.Expr], str]:
    """An expression for each canonical column, and the unit of time."""
    chosen: dict[str, pl.Expr] = {}
    unit = time_unit
    for canonical, name in named.items():
        dtype = dtypes[name]
        if canonical in ("user", "item"):
            chosen[canonical] = col.id_column(name, dtype, canonical)
        elif canonical == "time":
            chosen[canonical], unit = col.time_column(name, dtype, time_unit)
        elif canonical == "label":
            chosen[canonical] = col.label_column(name, dtype)
        else:
            chosen[canonical] = col.name_column(name, dtype, canonical)
    return chosen, unit


def _facts(schema: pl.Schema, fields: Sequence[Field]) -> list[pl.Expr]:
    """One row of what must be known about the values."""
    facts = [pl.len().alias("rows")]
    for name in ("user", "item", "domain", "time", "label", "behaviour"):
        if name not in schema:
            continue
        column, dtype = pl.col(name), schema[name]
        missing = column.is_null() | column.is_nan() if dtype.is_float() else column.is_null()
        facts.append(missing.sum().alias(f"{name} missing"))
        if dtype == pl.String:
            facts.append((column == "").sum().alias(f"{name} empty"))
        if dtype.is_float():
            facts.append(column.is_infinite().sum().alias(f"{name} infinite"))
            facts.append((column.is_finite() & ((column != column.floor()) | (column.abs() >= 2.0**63))).sum().alias(f"{name} broken"))
    if "label" in schema:
        other = pl.col("label").is_in([0.0, 1.0]).not_()
        facts += [other.sum().alias("label other"), pl.col("label").filter(other).max().alias("label example")]
    facts += [pl.col(f"context:{f.name}").is_infinite().sum().alias(f"context {f.name}") for f in fields if f.kind == "numeric"]
    return facts


def _check_facts(facts: dict[str, Any], named: dict[str, str], fields: Sequence[Field]) -> None:
    """Refuses logs with missing, empty or infinite values."""
    total = facts["rows"]
    if not total:
        raise DataError("the events have no rows", "at least one event", "check the files, and any filter on them")
    for canonical, name in named.items():
        where = f"of {total:,} rows in column {name!r} ({canonical})"
        error = LabelError if canonical == "label" else ColumnError
        if count := facts[f"{canonical} missing"]:
            raise error(f"{count:,} {where} are null or not a number", "a value in every row", "drop or fill these rows")
        if count := facts.get(f"{canonical} empty", 0):
            raise error(f"{count:,} {where} are empty text", "a value in every row", "drop or fill these rows")
        if count := facts.get(f"{canonical} infinite", 0):
            raise error(f"{count:,} {where} are infinite", "finite numbers", "drop or correct these rows")
        if canonical == "time" and (count := facts.get("time broken", 0)):
            came = f"{count:,} {where} are fractions, or too large"
            raise error(came, "whole numbers below 2**63", "multiply into a finer unit, e.g. milliseconds, and round")
    for f in fields:
        if facts.get(f"context {f.name}"):
            raise ColumnError(f"numeric context field {f.name!r} holds infinity", "finite numbers or nulls", "replace it")


def _label_kind(facts: dict[str, Any], declared: LabelKind | None, named: dict[str, str]) -> LabelKind:
    if "label" not in named:
        return "implicit"
    if declared == "click" and facts["label other"]:
        raise LabelError(
            f"{facts['label other']:,} labels are neither 0 nor 1, e.g. {facts['label example']:g}",
            "clicks: 0 or 1",
            "map them to 0 and 1, or declare label_kind='rating'",
        )
    return declared or ("rating" if facts["label other"] else "click")


def _positives(rows: pl.LazyFrame, kind: LabelKind) -> dict[str, int]:
    """Number of positive events by domain name."""
    count = (pl.col("label") > 0.5).sum() if kind == "click" else pl.len()
    return dict(rows.group_by("domain").agg(count.alias("count")).collect(engine="streaming").sort("domain").iter_rows())


def _unique(rows: pl.LazyFrame, name: str) -> pl.Series:
    return rows.select(name).unique().collect(engine="streaming")[name]


def _categories(rows: pl.LazyFrame, f: Field) -> pl.Series:
    name = f"context:{f.name}"
    column = pl.col(name).explode(empty_as_null=False) if f.kind == "multi" else pl.col(name)
    found = rows.select(column).unique().collect(engine="streaming")[name]
    return found.drop_nulls().sort().rename("id")


def _ordered(what: str, found: list[str], declared: Sequence[str] | None) -> tuple[str, ...]:
    """Names in the order declared, or ascending."""
    names = tuple(sorted(found)) if declared is None else tuple(str(name) for name in declared)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ColumnError(f"{what} {unknown[0]!r} is in the events but was not declared", f"one of {names}", nearest(unknown[0], names))
    if len(set(names)) < len(names):
        raise ConfigError(f"{what} names {names}", "every name once", "remove the second one")
    if len(names) > MOST_NAMES[what]:
        raise ColumnError(f"{len(names):,} {what} names", f"at most {MOST_NAMES[what]:,}", f"check that this is the {what} column")
    return names


def _number(name: str, joined: bool) -> pl.Expr:
    """A column as numbers: places for what was joined, -1 for null."""
    if joined:
        return pl.col(f"{name}#").cast(pl.Int32).fill_null(-1).alias(name)
    return pl.col(name).fill_null(np.nan) if name.startswith("context:") else pl.col(name)
