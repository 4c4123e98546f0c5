"""The reading of an event log: once, in a stream, which turns ids to integers as it meets them and finds out what there is.

A lazy frame is never whole in memory: what grows with the number of rows are the integer columns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from isthmus.allocator import keep_blocks
from isthmus.data import columns as col
from isthmus.data.chunks import Growing, count, replace
from isthmus.data.dictionary import Dictionary
from isthmus.errors import ColumnError, ConfigError, DataError, LabelError, nearest
from isthmus.schema import Field, LabelKind

CHUNK = 250_000  # rows read at once
MOST_NAMES = {"domain": 2**15 - 1, "behaviour": 2**7 - 2}  # what int16 holds; what int8 holds as codes from 1
DTYPES = {"user": np.int32, "item": np.int32, "domain": np.int16, "time": np.int64, "label": np.float32, "behaviour": np.int8}
IDS = ("user", "item", "domain", "behaviour")


@dataclass(frozen=True)
class Log:
    """A checked event log of N rows.

    Attributes:
        columns: by canonical name, and ``context:<name>`` for context fields: (N,) numbers, or places in ``domains``, ``behaviours``
            and ``categories``, flat when multi-valued.
        ids: of users and items: with N rows, and not finished.
        categories: by column: unique, ascending.
        offsets: by multi-valued column, (N + 1,) int64.
        domains, behaviours: names in order.
        label_kind, time_unit: as declared or found.
        context: fields with their kinds.
    """

    columns: dict[str, np.ndarray]
    ids: dict[str, Dictionary]
    categories: dict[str, pl.Series]
    offsets: dict[str, np.ndarray]
    domains: tuple[str, ...]
    behaviours: tuple[str, ...]
    label_kind: LabelKind
    time_unit: str
    context: tuple[Field, ...]

    def finish(self, name: str, others: Sequence[pl.Series]) -> tuple[pl.Series, np.ndarray, list[np.ndarray]]:
        """The ids of users or items; to be asked for once.

        Args:
            name: whose.
            others: ids that need not be in the log.

        Returns:
            All ids, unique and ascending; the log's (N,) places among them; and those of each of the others.
        """
        ids = self.ids[name]
        ends = [ids.rows]
        for more in others:
            ids.append(more)
            ends.append(ids.rows)
        known, place = ids.finish()
        return known, place[: ends[0]], [place[begin:end] for begin, end in pairwise(ends)]


class _Reading:
    """The columns of a log, batch after batch.

    Args:
        stack: of the threads.
        schema: of the batches.
        fields: those of the context.
    """

    def __init__(self, stack: ExitStack, schema: pl.Schema, fields: Sequence[Field]) -> None:
        kinds = {f"context:{f.name}": f.kind for f in fields}
        dtypes = DTYPES | {name: np.float32 if kind == "numeric" else np.int32 for name, kind in kinds.items()}
        interned = {*IDS, *(name for name, kind in kinds.items() if kind != "numeric")}
        self.columns = {name: Growing(dtypes[name]) for name in schema.names() if name not in interned}
        self.ids = {name: Dictionary(getattr(dtype, "inner", dtype), dtypes[name]) for name, dtype in schema.items() if name in interned}
        self.ends = {name: Growing(np.int64) for name, kind in kinds.items() if kind == "multi"}
        self._facts, self._found = _facts(schema, fields), list[pl.DataFrame]()
        self._threads = {name: stack.enter_context(ThreadPoolExecutor(1, f"isthmus-{name}")) for name in self.ids}
        self._waiting = list[Future[None]]()

    def take(self, batch: pl.DataFrame) -> None:
        """Puts a batch at the end of all columns; each column's ids are looked up in a thread of its own while the next batch is read.

        Raises:
            ColumnError: the batch before has more names than there may be.
        """
        self.wait()
        self._waiting = [thread.submit(self._intern, name, batch[name]) for name, thread in self._threads.items()]
        self._found.append(batch.select(self._facts))
        for name, column in self.columns.items():
            numbers = batch[name].cast(pl.Int64, strict=False).fill_null(0) if name == "time" else batch[name]
            column.append(numbers.to_numpy())

    def wait(self) -> None:
        """Until the batch is at the end of all columns.

        Raises:
            ColumnError: it has more names than there may be.
        """
        for column in self._waiting:
            column.result()

    def _intern(self, name: str, values: pl.Series) -> None:
        if name in self.ends:
            end = self.ends[name]
            end.append(values.list.len().to_numpy().cumsum(dtype=np.int64) + self.ids[name].rows)
            values = values.explode(empty_as_null=False)
        self.ids[name].append(values)
        if len(self.ids[name]) > MOST_NAMES.get(name, np.inf) + 1:  # one too many is told of with the number, by ``_ordered``
            raise _too_many(name, f"more than {MOST_NAMES[name]:,}")

    def facts(self) -> dict[str, Any]:
        """What ``_facts`` asks, of all rows."""
        facts, example = pl.concat(self._found), "label example"
        return facts.sum().row(0, named=True) | {name: facts[name].max() for name in facts.columns if name == example}


def read_log(
    frame: pl.LazyFrame,
    named: dict[str, str],
    context: Sequence[str | Field],
    label_kind: LabelKind | None,
    time_unit: str,
    domains: Sequence[str] | None,
    behaviours: Sequence[str] | None,
) -> Log:
    """Reads and checks a log.

    Args:
        frame: the columns used.
        named: canonical name -> the user's column.
        context, label_kind, time_unit, domains, behaviours: as ``read_events`` takes them.

    Raises:
        ColumnError, LabelError, DataError, SourceError: see ``read_events``.
    """
    keep_blocks()
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
        with ExitStack() as stack:
            reading = _Reading(stack, rows.collect_schema(), fields)
            for batch in rows.collect_batches(chunk_size=CHUNK, maintain_order=True, engine="streaming"):
                reading.take(batch)
            reading.wait()
    size = reading.ids["user"].rows
    if not size:
        raise DataError("the events have no rows", "at least one event", "check the files, and any filter on them")
    facts = reading.facts()
    _check_facts(facts, size, named, fields)
    kind = _label_kind(facts, label_kind, named)
    columns, categories = {name: column.done() for name, column in reading.columns.items()}, dict[str, pl.Series]()
    for name in reading.ids.keys() - {"user", "item"}:
        categories[name], columns[name] = reading.ids[name].finish()
    names = _ordered("domain", categories.pop("domain"), columns["domain"], domains)
    positives = _positives(columns, len(names), kind)
    without = [name for name, number in zip(names, positives, strict=True) if not number]
    if without:
        came = f"domains {without} have no positive event"
        raise LabelError(came, "at least one in every domain", "leave these domains out, or check the label")
    behaviour_names = _ordered("behaviour", categories.pop("behaviour"), columns["behaviour"], behaviours) if "behaviour" in named else ()
    offsets = {name: np.append(0, end.done()) for name, end in reading.ends.items()}
    ids = {name: reading.ids[name] for name in ("user", "item")}
    return Log(columns, ids, categories, offsets, names, behaviour_names, kind, unit, fields)


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
    """One row of what must be known about the numbers."""
    texts = [name for name in IDS if schema.get(name) == pl.String]
    facts = [pl.col(name).is_null().sum().alias(f"{name} missing") for name in IDS if name in schema]
    facts += [(pl.col(name) == "").sum().alias(f"{name} empty") for name in texts]
    for name in ("time", "label"):
        if name not in schema:
            continue
        column, dtype = pl.col(name), schema[name]
        missing = column.is_null() | column.is_nan() if dtype.is_float() else column.is_null()
        facts.append(missing.sum().alias(f"{name} missing"))
        if dtype.is_float():
            facts.append(column.is_infinite().sum().alias(f"{name} infinite"))
            facts.append((column.is_finite() & ((column != column.floor()) | (column.abs() >= 2.0**63))).sum().alias(f"{name} broken"))
    if "label" in schema:
        other = pl.col("label").is_in([0.0, 1.0]).not_()
        facts += [other.sum().alias("label other"), pl.col("label").filter(other).max().alias("label example")]
    facts += [pl.col(f"context:{f.name}").is_infinite().sum().alias(f"context {f.name}") for f in fields if f.kind == "numeric"]
    return facts


def _check_facts(facts: dict[str, Any], total: int, named: dict[str, str], fields: Sequence[Field]) -> None:
    """Refuses logs with missing, empty or infinite values."""
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


def _positives(columns: dict[str, np.ndarray], domains: int, kind: LabelKind) -> np.ndarray:
    """(domains,) number of positive events, by place of the domain."""
    return count(columns["domain"], domains, (lambda rows: columns["label"][rows] > 0.5) if kind == "click" else None)


def _too_many(what: str, came: str) -> ColumnError:
    return ColumnError(f"{came} {what} names", f"at most {MOST_NAMES[what]:,}", f"check that this is the {what} column")


def _ordered(what: str, found: pl.Series, column: np.ndarray, declared: Sequence[str] | None) -> tuple[str, ...]:
    """Names in the order declared, or ascending; places in ``found``, which are ascending, become places among them."""
    names = tuple(found) if declared is None else tuple(str(name) for name in declared)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ColumnError(f"{what} {unknown[0]!r} is in the events but was not declared", f"one of {names}", nearest(unknown[0], names))
    if len(set(names)) < len(names):
        raise ConfigError(f"{what} names {names}", "every name once", "remove the second one")
    if len(names) > MOST_NAMES[what]:
        raise _too_many(what, f"{len(names):,}")
    if declared is not None:
        replace(column, col.locate(found, pl.Series(names, dtype=pl.String)).astype(column.dtype))
    return names
