"""What ``encode`` sorts by domain: the rows of the parts, and the items that each domain shows.

Events are read once, in stored order.  A chunk's rows go to their places in the files, which hold a part's domains one after the other;
nothing of them stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.data import columns as col
from isthmus.data.ahead import ahead
from isthmus.data.chunks import THREADS, by_bin, chunks, distinct
from isthmus.data.events import Events
from isthmus.data.fields import Coder
from isthmus.data.split import PARTS, TEST, Split

KEPT = PARTS[: TEST + 1]  # the parts that have rows
ITEM_BITS, PART_BITS = 31, 2
MANY = 1 << 23  # items found by chunks that are looked through for repeated ones at once

Lists = tuple[np.ndarray, np.ndarray]  # (n + 1,) offsets, and the flat values


@dataclass(frozen=True)
class Codes:
    """What events become in a data set.

    Attributes:
        user, item: codes of the events' ids.
        context: for each context field, how its entries become codes or numbers.
    """

    user: np.ndarray
    item: np.ndarray
    context: Sequence[Coder]


class Shown:
    """The items that each domain shows, and the first part that knows each."""

    def __init__(self) -> None:
        self._found, self._new = np.zeros(0, np.int64), list[np.ndarray]()

    def add(self, domain: np.ndarray | int, item: np.ndarray, part: np.ndarray | int) -> None:
        """Items (n,), each in a domain and a part."""
        self.add_keys(self.keys(domain, item, part))

    @staticmethod
    def keys(domain: np.ndarray | int, item: np.ndarray, part: np.ndarray | int) -> np.ndarray:
        """One number, each once, for each domain, item and part."""
        return distinct(((np.asarray(domain, np.int64) << ITEM_BITS | item) << PART_BITS) | part)

    def add_keys(self, keys: np.ndarray) -> None:
        """What ``keys`` gave."""
        self._new.append(keys)
        if sum(map(len, self._new)) > max(MANY, len(self._found)):
            self._gather()

    def by_domain(self, domains: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each domain's items begin (D + 1,), int64; items int32, ascending in each domain; and their first parts, int8."""
        self._gather()
        pair, first = np.unique(self._found >> PART_BITS, return_index=True)
        offsets = np.searchsorted(pair, np.arange(domains + 1, dtype=np.int64) << ITEM_BITS)
        item = (pair & ((1 << ITEM_BITS) - 1)).astype(np.int32)
        return offsets.astype(np.int64), item, (self._found[first] & ((1 << PART_BITS) - 1)).astype(np.int8)

    def _gather(self) -> None:
        self._found, self._new = distinct(np.concatenate([self._found, *self._new])), []


@dataclass(frozen=True)
class _Chunk:
    """Some events with rows, ordered by bin.

    Attributes:
        size: (bins,) rows of each.
        columns: by file name.
        lists: multi-valued columns by file name.
        shown: see ``Shown.keys``.
    """

    size: np.ndarray
    columns: dict[str, np.ndarray]
    lists: dict[str, Lists]
    shown: np.ndarray


def write_by_domain(folder: Path, events: Events, split: Split, codes: Codes) -> Shown:
    """Writes ``train``, ``valid`` and ``test``.

    Args:
        folder: of the data set.
        events: the events.
        split: which of them train, validate and test.
        codes: what they become.

    Returns:
        The items of the rows.
    """
    bins = _Bins(events, split)
    shown = Shown()
    with ExitStack() as stack:
        files, pieces = _Files(stack, folder, bins), list(chunks(len(events)))
        for chunk in ahead(lambda n: _read(pieces[n], events, bins, codes), range(len(pieces)), THREADS, THREADS):
            files.put(chunk)
            shown.add_keys(chunk.shown)
    return shown


class _Bins:
    """A bin for each part and domain, and the last one for events without a row.

    Attributes:
        domains: D.
        number: of bins, the last one left out.
        size: (number,) rows of each.
        flat: by multi-valued context field, (number,) values of each.
    """

    def __init__(self, events: Events, split: Split) -> None:
        self._part, self._domain = split.part, events.domain
        self.domains = len(events.schema.domains)
        self.number = len(KEPT) * self.domains
        self._type = np.min_scalar_type(self.number)  # numpy sorts small numbers by radix
        self.size = np.zeros(self.number, np.int64)
        found = {n: events.context[f.name].offsets for n, f in enumerate(events.schema.context)}
        lists = {n: offsets for n, offsets in found.items() if offsets is not None}
        self.flat = {n: np.zeros(self.number, np.int64) for n in lists}
        for rows in chunks(len(events)):
            where = self.of(rows)
            self.size += np.bincount(where, minlength=self.number + 1)[:-1]
            for n, offsets in lists.items():
                length = np.diff(offsets[rows.start : rows.stop + 1])
                self.flat[n] += np.bincount(where, length, self.number + 1)[:-1].astype(np.int64)

    def of(self, rows: slice) -> np.ndarray:
        """(n,) the bins of events."""
        part = self._part[rows]
        return np.where(part <= TEST, part * np.int64(self.domains) + self._domain[rows], self.number).astype(self._type)

    def begin(self, size: np.ndarray) -> np.ndarray:
        """(number,) where each bin begins in its part's file, given their sizes."""
        by_part = size.reshape(len(KEPT), self.domains)
        return (np.cumsum(by_part, axis=1) - by_part).ravel()


def _read(rows: slice, events: Events, bins: _Bins, codes: Codes) -> _Chunk:
    """A chunk, coded and ordered."""
    where = bins.of(rows)
    order, size = by_bin(where, bins.number)
    columns = {
        "user": codes.user[events.user[rows][order]],
        "item": codes.item[events.item[rows][order]],
        "domain": events.domain[rows][order],
        "row": (order + rows.start).astype(np.int32 if len(events) < 2**31 else np.int64),
    }
    for name, column in (("time", events.time), ("label", events.label)):
        if column is not None:
            columns[name] = column[rows][order]
    if events.behaviour is not None:
        columns["behaviour"] = events.behaviour[rows][order] + np.int8(1)
    lists = {}
    for n, (field, code) in enumerate(zip(events.schema.context, codes.context, strict=True)):
        column = events.context[field.name]
        if column.offsets is None:
            columns[f"context.{n}.values"] = code(column.entries[rows][order])
        else:
            offsets = column.offsets[rows.start : rows.stop + 1]
            flat = column.entries[offsets[0] : offsets[-1]]
            begin, flat = col.take_lists(offsets - offsets[0], flat, order)
            lists[f"context.{n}"] = (begin, code(flat))
    return _Chunk(size, columns, lists, Shown.keys(columns["domain"], columns["item"], where[order] // bins.domains))


class _Files:
    """The files of all parts, being written."""

    def __init__(self, stack: ExitStack, folder: Path, bins: _Bins) -> None:
        self._stack, self._folder, self._domains = stack, folder, bins.domains
        self._columns = dict[tuple[str, str], arrow.Column]()
        self._at = bins.begin(bins.size)
        self._flat_at = {f"context.{n}": bins.begin(size) for n, size in bins.flat.items()}
        for part, size in zip(KEPT, bins.size.reshape(len(KEPT), bins.domains), strict=True):
            self._open(part, "offsets", np.int64).append(np.append(0, np.cumsum(size)))

    def put(self, chunk: _Chunk) -> None:
        """A chunk's rows, each bin's after those of the chunks before."""
        if (KEPT[0], "user") not in self._columns:
            self._open_all(chunk)
        ends = np.cumsum(chunk.size)
        for n in np.flatnonzero(chunk.size).tolist():
            part, at, end = KEPT[n // self._domains], int(self._at[n]), int(ends[n])
            begin = end - int(chunk.size[n])
            for name, values in chunk.columns.items():
                self._columns[part, name].put(at, values[begin:end])
            for name, (offsets, flat) in chunk.lists.items():
                there, piece = int(self._flat_at[name][n]), flat[offsets[begin] : offsets[end]]
                self._columns[part, f"{name}.values"].put(there, piece)
                self._columns[part, f"{name}.offsets"].put(at + 1, offsets[begin + 1 : end + 1] - offsets[begin] + there)
                self._flat_at[name][n] += len(piece)
            self._at[n] += end - begin

    def _open_all(self, chunk: _Chunk) -> None:
        """Every part has every column, be it without rows."""
        for part in KEPT:
            for name, values in chunk.columns.items():
                self._open(part, name, values.dtype)
            for name, (_, flat) in chunk.lists.items():
                self._open(part, f"{name}.values", flat.dtype)
                self._open(part, f"{name}.offsets", np.int64).append(np.zeros(1, np.int64))

    def _open(self, part: str, name: str, dtype: np.dtype | type) -> arrow.Column:
        found = self._columns[part, name] = self._stack.enter_context(arrow.column(self._folder / part / f"{name}.arrow", dtype))
        return found
