"""The reading of an event log: once, in a stream, which turns ids to integers as it meets them and finds out what there is.

A lazy frame is never whole in memory: what grows with the number of rows are the integer columns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isthmus.allocator import keep_blocks
from isthmus.data import columns as col
from isthmus.data.ahead import ahead
from isthmus.data.chunks import THREADS, Growing, chunks, count
from isthmus.data.places import Places
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
        columns: by canonical name, and ``context:<name>`` for context fields: (N,) numbers, or places in ``found``, flat when multi-valued.
        found: by column: its ids, names or categories in order of arrival, unique.
        offsets: by multi-valued column, (N + 1,) int64.
        domains, behaviours: names in order.
        label_kind, time_unit: as declared or found.
        context: fields with their kinds.
    """

    columns: dict[str, np.ndarray]
    found: dict[str, pl.Series]
    offsets: dict[str, np.ndarray]
    domains: tuple[str, ...]
    behaviours: tuple[str, ...]
    label_kind: LabelKind
    time_unit: str
    context: tuple[Field, ...]

    def intern(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, Any]:
        """The columns with the places that are theirs for good, instead of those in order of arrival; to be asked for once.

        Args:
            user_ids, item_ids: unique; the integers are places in these.

        Returns:
            Canonical name -> (N,) array; ``context:<name>`` -> arguments of its ``ContextColumn``.
        """
        known = {name: found.drop_nulls().sort().rename("id") for name, found in self.found.items() if name not in IDS}
        known |= {"user": user_ids, "item": item_ids, "domain": pl.Series(self.domains, dtype=pl.String)}
        known |= {"behaviour": pl.Series(self.behaviours, dtype=pl.String)} if self.behaviours else {}
        out: dict[str, Any] = {name: column for name, column in self.columns.items() if not name.startswith("context:")}
        places = {name: col.locate(self.found[name], values).astype(self.columns[name].dtype) for name, values in known.items()}

        def replace(name: str) -> None:
            column = self.columns[name]
            for rows in chunks(len(column)):
                column[rows] = places[name].take(column[rows])

        list(ahead(replace, known, THREADS, THREADS))
        for name in self.columns.keys() - out.keys():
            column = self.columns[name]
            out[name] = {"values": known[name], "index": column, "offsets": self.offsets.get(name)} if name in known else {"values": column}
        return out


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
        self.columns = {name: Growing(dtypes[name]) for name in schema.names()}
        interned = {*IDS, *(name for name, kind in kinds.items() if kind != "numeric")}
        self.places = {name: Places(getattr(dtype, "inner", dtype)) for name, dtype in schema.items() if name in interned}
        self.ends = {name: Growing(np.int64) for name, kind in kinds.items() if kind == "multi"}
        self._facts, self._found = _facts(schema, fields), list[pl.DataFrame]()
        self._threads = {name: stack.enter_context(ThreadPoolExecutor(1, f"isthmus-{name}")) for name in self.places}
        self._waiting = list[Future[None]]()

    def take(self, batch: pl.DataFrame) -> None:
        """Puts a batch at the end of all columns; each column's ids are looked up in a thread of its own while the next batch is read.

        Raises:
            ColumnError: the batch before has more names than there may be.
        """
        self.wait()
        self._waiting = [thread.submit(self._intern, name, batch[name]) for name, thread in self._threads.items()]
        self._found.append(batch.select(self._facts))
        for name in self.columns.keys() - self.places.keys():
            numbers = batch[name].cast(pl.Int64, strict=False).fill_null(0) if name == "time" else batch[name]
            self.columns[name].append(numbers.to_numpy())

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
            end.append(values.list.len().to_numpy().cumsum(dtype=np.int64) + self.columns[name].size)
            values = values.explode(empty_as_null=False)
        place, most = self.places[name](values), MOST_NAMES.get(name)
        if most is not None and len(self.places[name]) > most + 1:  # one of them may be null
            raise _too_many(name, f"more than {most:,}")
        self.columns[name].append(place)

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
    if not reading.columns["user"].size:
        raise DataError("the events have no rows", "at least one event", "check the files, and any filter on them")
    columns = {name: column.done() for name, column in reading.columns.items()}
    found = {name: places.ids() for name, places in reading.places.items()}
    offsets = {name: np.append(0, end.done()) for name, end in reading.ends.items()}
    facts = reading.facts() | _gaps(columns, found)
    _check_facts(facts, len(columns["user"]), named, fields)
    kind = _label_kind(facts, label_kind, named)
    names = _ordered("domain", found["domain"], domains)
    positives = dict(zip(found["domain"], _positives(columns, len(found["domain"]), kind), strict=True))
    without = [name for name in names if not positives.get(name)]
    if without:
        came = f"domains {without} have no positive event"
        raise LabelError(came, "at least one in every domain", "leave these domains out, or check the label")
    behaviour_names = _ordered("behaviour", found.get("behaviour", pl.Series([], dtype=pl.String)), behaviours)
    return Log(columns, found, offsets, names, behaviour_names, kind, unit, fields)


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
    facts = []
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


def _gaps(columns: dict[str, np.ndarray], found: dict[str, pl.Series]) -> dict[str, int]:
    """How many ids and names are missing or empty."""
    gaps = {}
    for name in set(IDS) & found.keys():
        for what, gap in (("missing", found[name].is_null()), ("empty", found[name].cast(pl.String) == "")):
            gaps[f"{name} {what}"] = sum(int((columns[name] == place).sum()) for place in gap.arg_true())
    return gaps


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


def _ordered(what: str, found: pl.Series, declared: Sequence[str] | None) -> tuple[str, ...]:
    """Names in the order declared, or ascending."""
    names = tuple(sorted(found)) if declared is None else tuple(str(name) for name in declared)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ColumnError(f"{what} {unknown[0]!r} is in the events but was not declared", f"one of {names}", nearest(unknown[0], names))
    if len(set(names)) < len(names):
        raise ConfigError(f"{what} names {names}", "every name once", "remove the second one")
    if len(names) > MOST_NAMES[what]:
        raise _too_many(what, f"{len(names):,}")
    return names
