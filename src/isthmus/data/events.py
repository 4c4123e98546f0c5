"""``Events``: every id string is met once, in a stream; from here on there are integers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from isthmus.data import columns as col
from isthmus.data.chunks import ALL
from isthmus.data.intern import Log, read_log
from isthmus.data.tables import as_ids, shown_items, side_table
from isthmus.errors import ConfigError
from isthmus.schema import Domain, Entity, Field, LabelKind, Schema

CANONICAL = ("user", "item", "domain", "time", "label", "behaviour")


@dataclass(frozen=True)
class ContextColumn:
    """One context field of N events.

    Attributes:
        values: numeric fields: (N,) float32, NaN for null.  Others: a series of the categories, unique and ascending.
        index: categorical fields: (N,) int32 places in ``values``, -1 for null.  Multi-valued: the same, flat.
        offsets: multi-valued fields: (N + 1,) int64; event n has ``index[offsets[n]:offsets[n + 1]]``.
    """

    values: Any
    index: np.ndarray | None = None
    offsets: np.ndarray | None = None

    @property
    def entries(self) -> np.ndarray:
        """The numbers, or the places of the categories; flat when multi-valued."""
        return self.values if self.index is None else self.index


@dataclass
class Events:
    """N events of users and items, as integers, in the order in which they came.

    Attributes:
        schema: fields, label kind, time unit, behaviours; sizes are still 0.
        user: (N,) int32 places in ``user_ids``.
        item: (N,) int32 places in ``item_ids``.
        domain: (N,) int16 index of the domain.
        time: (N,) int64, or None.
        label: (N,) float32, or None when every event is a positive.
        behaviour: (N,) int8 places in ``schema.behaviours`` (from 0), or None.
        context: a column for each field of ``schema.context``.
        user_ids, item_ids: all known ids, those found only in side tables or given lists included; unique,
            ascending; text or whole numbers.
        users, items: side tables: ``id`` and a column for each field; multi-valued fields are lists.
        shows: for each domain the sorted items that it may show; None: those observed.
        dropped: rows that the source left out, by reason.
    """

    schema: Schema
    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    time: np.ndarray | None
    label: np.ndarray | None
    behaviour: np.ndarray | None
    context: dict[str, ContextColumn]
    user_ids: pl.Series
    item_ids: pl.Series
    users: pl.DataFrame | None = None
    items: pl.DataFrame | None = None
    shows: list[np.ndarray] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    _digested: tuple[str, tuple[np.ndarray | None, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.user)

    def digest(self) -> str:
        """16 hex digits over who met what, where and when; remembered until one of these columns is replaced."""
        columns = (self.user, self.item, self.domain, self.time)
        if not self._digested or any(now is not then for now, then in zip(columns, self._digested[1], strict=True)):
            digest = hashlib.sha256()
            for column in columns:
                digest.update(b"none" if column is None else np.ascontiguousarray(column).data)
            self._digested = digest.hexdigest()[:16], columns
        return self._digested[0]

    def positive(self, rows: slice = ALL) -> np.ndarray:
        """(n,) bool, by default of all events: every one, or for clicks those with label 1."""
        if self.schema.label == "click" and self.label is not None:
            return self.label[rows] == 1
        return np.ones(len(self.user[rows]), bool)

    def frame(self, rows: np.ndarray | None = None) -> pl.DataFrame:
        """The events with their original ids.

        Args:
            rows: indices or mask of the events wanted; None for all.

        Returns:
            Columns ``user``, ``item``, ``domain``, then ``time``, ``label``, ``behaviour`` if the events have
            them, then the context fields.
        """
        chosen = np.arange(len(self)) if rows is None else np.arange(len(self))[rows]
        out = {
            "user": self.user_ids.gather(self.user[chosen]),
            "item": self.item_ids.gather(self.item[chosen]),
            "domain": pl.Series(self.schema.domain_names, dtype=pl.String).gather(self.domain[chosen]),
        }
        for name, values in (("time", self.time), ("label", self.label)):
            if values is not None:
                out[name] = pl.Series(values[chosen])
        if self.behaviour is not None:
            out["behaviour"] = pl.Series(self.schema.behaviours, dtype=pl.String).gather(self.behaviour[chosen])
        for described in self.schema.context:
            out[described.name] = _original(self.context[described.name], chosen)
        return pl.DataFrame(out)


def _original(column: ContextColumn, chosen: np.ndarray) -> pl.Series:
    """A context column's values as they came."""
    if column.index is None:
        return pl.Series(column.values[chosen]).fill_nan(None)
    if column.offsets is None:
        return column.values.gather(pl.Series(column.index[chosen]).replace(-1, None))
    offsets, index = col.take_lists(column.offsets, column.index, chosen)
    flat = pl.DataFrame({"row": np.repeat(np.arange(len(chosen)), np.diff(offsets)), "value": column.values.gather(index)})
    rows = pl.DataFrame({"row": np.arange(len(chosen))})
    lists = rows.join(flat.group_by("row", maintain_order=True).agg("value"), on="row", how="left", maintain_order="left")
    return lists["value"].fill_null(pl.Series([[]], dtype=lists["value"].dtype).first())


def read_events(
    frame: Any,
    *,
    user: str,
    item: str,
    domain: str,
    time: str | None = None,
    label: str | None = None,
    label_kind: LabelKind | None = None,
    behaviour: str | None = None,
    behaviours: Sequence[str] | None = None,
    context: Sequence[str | Field] = (),
    users: Any = None,
    user_id: str | None = None,
    user_fields: Sequence[str | Field] = (),
    items: Any = None,
    item_id: str | None = None,
    item_fields: Sequence[str | Field] = (),
    shows: Mapping[str, Sequence[Any] | pl.Series] | None = None,
    time_unit: str = "s",
    domains: Sequence[str] | None = None,
    extra_items: Sequence[Any] | pl.Series | None = None,
) -> Events:
    """Reads an event log; a lazy polars frame is read in a stream, never whole.

    Args:
        frame: the events: a polars (eager or lazy), pandas or pyarrow frame.
        user, item: id columns: text or whole numbers.
        domain: column with the domain's name; whole numbers become text.
        time: column of whole numbers (in ``time_unit``), or of dates (the unit becomes ``us``).
        label: column of clicks (0 and 1) or ratings.
        label_kind: ``implicit``, ``click`` or ``rating``; by default ``implicit`` without a label column,
            ``click`` when every label is 0 or 1, else ``rating``.
        behaviour: column with the kind of event.
        behaviours: their names in order; by default those found, ascending.
        context: columns that vary by event, by name or as ``Field``.
        users, items: side tables, any eager or lazy frame.
        user_id, item_id: their id columns; by default named as in the events.
        user_fields, item_fields: columns of the side tables to use, by name or as ``Field``; by default all but
            the id.  From a name alone floats are numeric, lists multi-valued and all else is categorical.
        shows: by domain name, the ids of the items that it may show; by default those observed.
        time_unit: ``s``, ``ms``, ``us``, ``ns``, or ``step`` when only the order counts.
        domains: names in order; by default those found, ascending.
        extra_items: ids that occur only in given candidate lists.

    Raises:
        ColumnError: a column is missing, of the wrong type, or has nulls, empty ids or unknown names.
        LabelError: a label that its kind does not allow, or a domain without a positive.
        ConfigError: arguments that contradict each other.
        SourceError: a file is missing, truncated or foreign.
        DataError: no rows at all, or an id twice in a side table.
    """
    _check_arguments(label, label_kind, behaviour, behaviours, context)
    named = {"user": user, "item": item, "domain": domain, "time": time, "label": label, "behaviour": behaviour}
    used = {canonical: name for canonical, name in named.items() if name is not None}
    rows = col.lazy(frame, [*used.values(), *col.field_names(context)], "events")
    log = read_log(rows, used, context, label_kind, time_unit, domains, behaviours)
    user_table, user_kinds = side_table(users, user_id or user, user_fields, log.ids["user"].dtype, "users")
    item_table, item_kinds = side_table(items, item_id or item, item_fields, log.ids["item"].dtype, "items")
    schema = Schema(
        user=Entity("user", user_kinds),
        item=Entity("item", item_kinds),
        domains=tuple(Domain(name) for name in log.domains),
        label=log.label_kind,
        timed=time is not None,
        time_unit=log.time_unit,
        behaviours=log.behaviours,
        context=log.context,
    )
    extra = None if extra_items is None else as_ids(extra_items, log.ids["item"].dtype, "extra_items")
    shown = shown_items(shows, schema.domain_names, log.ids["item"].dtype)
    user_ids, user_place, _ = log.finish("user", [] if user_table is None else [user_table["id"]])
    others = [] if item_table is None else [item_table["id"]]
    item_ids, item_place, places = log.finish("item", [*(shown or []), *others, *([] if extra is None else [extra])])
    return Events(
        schema=schema,
        user=user_place,
        item=item_place,
        domain=log.columns["domain"],
        time=log.columns.get("time"),
        label=log.columns.get("label"),
        behaviour=log.columns.get("behaviour"),
        context={f.name: _context(log, f"context:{f.name}") for f in log.context},
        user_ids=user_ids,
        item_ids=item_ids,
        users=user_table,
        items=item_table,
        shows=None if shown is None else [np.unique(place) for place in places[: len(shown)]],
    )


def _context(log: Log, name: str) -> ContextColumn:
    """A context field's column."""
    column = log.columns[name]
    return ContextColumn(log.categories[name], column, log.offsets.get(name)) if name in log.categories else ContextColumn(column)


def _check_arguments(
    label: str | None,
    label_kind: LabelKind | None,
    behaviour: str | None,
    behaviours: Sequence[str] | None,
    context: Sequence[str | Field],
) -> None:
    """Refuses arguments that contradict each other."""
    if label_kind is not None and (label is None) != (label_kind == "implicit"):
        raise ConfigError(f"label={label!r} with label_kind={label_kind!r}", "a label column for clicks and ratings only", "change one")
    if behaviours is not None and behaviour is None:
        raise ConfigError(f"behaviours={behaviours!r} without a behaviour column", "behaviour='...'", "name the column")
    clash = sorted(set(col.field_names(context)) & set(CANONICAL))
    if clash:
        raise ConfigError(f"context fields named {clash}", f"names other than {CANONICAL}", "rename the columns")
