"""What ``encode`` sorts by domain: the rows of the parts, and the items that each domain shows.

Events are read once, in stored order.  A chunk's rows go to their places in the files, which hold a part's domains one after the other;
nothing of them stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.data import columns as col
from isthmus.data.chunks import by_bin, chunks
from isthmus.data.events import Events
from isthmus.data.fields import Coder
from isthmus.data.split import PARTS, TEST, Split
from isthmus.data.widths import Widths
from isthmus.sorting import distinct

KEPT = PARTS[: TEST + 1]  # the parts that have rows
FEW = 16  # a domain with fewer rows than all items divided by this has them put in order; looking through all items would take longer

Lists = tuple[np.ndarray, np.ndarray]  # (n + 1,) offsets, and the flat values


class Shown:
    """Finds the items that a domain shows, and the first part that knows each.

    Args:
        items: number of codes.
    """

    def __init__(self, items: int) -> None:
        self._first = np.zeros(items, np.uint8)  # by item: one more than its part; 0 again for the next domain

    def find(self, by_part: Sequence[Iterable[np.ndarray]], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of a domain.

        Args:
            by_part: for each part, codes that it shows, piece after piece.
            rows: about how many there are.

        Returns:
            (S,) int32 codes, ascending, and (S,) int8 their first parts.
        """
        few = list[np.ndarray]() if rows < len(self._first) // FEW else None
        for part, pieces in reversed([*enumerate(by_part)]):  # the first part has the last word
            for items in pieces:
                self._first[items] = part + 1
                if few is not None:
                    few.append(items)
        found = np.flatnonzero(self._first) if few is None else distinct(np.concatenate([np.zeros(0, np.int32), *few]))
        part = self._first.take(found).astype(np.int8) - np.int8(1)
        self._first[found] = 0
        return found.astype(np.int32), part


@dataclass(frozen=True)
class Chunk:
    """Some events with rows, ordered by bin.

    Attributes:
        size: (bins,) rows of each.
        columns: by file name.
        lists: multi-valued columns by file name.
    """

    size: np.ndarray
    columns: dict[str, np.ndarray]
    lists: dict[str, Lists]


class _Bins:
    """A bin for each part and domain, and the last one for events without a row.

    Attributes:
        domains: D.
        number: of bins, the last one left out.
        size: (number,) rows of each.
        flat: by file name of multi-valued context fields, (number,) values of each.
    """

    def __init__(self, events: Events, split: Split, number: np.ndarray) -> None:
        self._part, self._domain = split.part, events.domain
        self.domains = len(events.schema.domains)
        self.number = len(KEPT) * self.domains
        self._type = np.min_scalar_type(self.number)  # numpy sorts small numbers by radix
        self.size = number[: len(KEPT)].ravel()
        found = {f"context.{n}": events.context[f.name].offsets for n, f in enumerate(events.schema.context)}
        self.flat = {name: self._flat(offsets) for name, offsets in found.items() if offsets is not None}

    def _flat(self, offsets: np.ndarray) -> np.ndarray:
        """(number,) how many values a column of lists has in each bin."""
        total = np.zeros(self.number + 1, np.int64)
        for rows in chunks(len(offsets) - 1):
            total += np.bincount(self.of(rows), np.diff(offsets[rows.start : rows.stop + 1]), self.number + 1).astype(np.int64)
        return total[:-1]

    def of(self, rows: slice) -> np.ndarray:
        """(n,) the bins of events."""
        part = self._part[rows]
        return np.where(part <= TEST, part * np.int64(self.domains) + self._domain[rows], self.number).astype(self._type)

    def by_part(self, size: np.ndarray) -> np.ndarray:
        """(parts, domains) something of each bin."""
        return size.reshape(len(KEPT), self.domains)

    def begin(self, size: np.ndarray) -> np.ndarray:
        """(number,) where each bin begins in its part's file, given their sizes."""
        by_part = self.by_part(size)
        return (np.cumsum(by_part, axis=1) - by_part).ravel()


class Parts:
    """The files of ``train``, ``valid`` and ``test``, being written.

    Args:
        stack: of the files.
        folder: of the data set.
        events: the events.
        split: which of them train, validate and test.
        number: (parts, domains) of them.
        context: for each context field, how its entries become codes or numbers.
        widths: of columns.
    """

    def __init__(
        self, stack: ExitStack, folder: Path, events: Events, split: Split, number: np.ndarray, context: Sequence[Coder], widths: Widths
    ) -> None:
        self._stack, self._folder, self._events, self._context, self._widths = stack, folder, events, context, widths
        self._bins = _Bins(events, split, number)
        self._columns = dict[tuple[str, str], arrow.Column]()
        self._begin = self._bins.begin(self._bins.size)
        self._at = self._begin.copy()
        self._flat_at = {name: self._bins.begin(size) for name, size in self._bins.flat.items()}
        for part, size in zip(KEPT, self._bins.by_part(self._bins.size), strict=True):
            self._open(part, "offsets", np.int64).append(np.append(0, np.cumsum(size)))

    def read(self, rows: slice, user: np.ndarray, item: np.ndarray) -> Chunk:
        """A chunk of events with their codes, ordered by bin; in any thread."""
        events, where = self._events, self._bins.of(rows)
        order, size = by_bin(where, self._bins.number)
        columns = {
            "user": user.take(order),
            "item": item.take(order),
            "domain": events.domain[rows].astype(self._widths.domain).take(order),
            "row": (order + rows.start).astype(np.int32 if len(events) < 2**31 else np.int64),
        }
        if events.time is not None:
            columns["time"] = events.time[rows].astype(self._widths.time).take(order)
        if events.label is not None:
            columns["label"] = events.label[rows].take(order)
        if events.behaviour is not None:
            columns["behaviour"] = events.behaviour[rows].take(order) + np.int8(1)
        lists = {}
        for n, (field, code) in enumerate(zip(events.schema.context, self._context, strict=True)):
            column = events.context[field.name]
            if column.offsets is None:
                columns[f"context.{n}.values"] = code(column.entries[rows].take(order))
            else:
                offsets = column.offsets[rows.start : rows.stop + 1]
                flat = column.entries[offsets[0] : offsets[-1]]
                begin, flat = col.take_lists(offsets - offsets[0], flat, order)
                lists[f"context.{n}"] = (begin, code(flat))
        return Chunk(size, columns, lists)

    def place(self, chunk: Chunk) -> list[arrow.Piece]:
        """Where a chunk's rows go: each bin's behind those of the chunks before."""
        if (KEPT[0], "user") not in self._columns:
            self._open_all(chunk)
        ends, pieces = np.cumsum(chunk.size), list[arrow.Piece]()
        for n in np.flatnonzero(chunk.size).tolist():
            part, at, end = KEPT[n // self._bins.domains], int(self._at[n]), int(ends[n])
            begin = end - int(chunk.size[n])
            for name, values in chunk.columns.items():
                pieces.append((self._columns[part, name], at, values[begin:end]))
            for name, (offsets, flat) in chunk.lists.items():
                there, piece = int(self._flat_at[name][n]), flat[offsets[begin] : offsets[end]]
                pieces.append((self._columns[part, f"{name}.values"], there, piece))
                pieces.append((self._columns[part, f"{name}.offsets"], at + 1, offsets[begin + 1 : end + 1] - offsets[begin] + there))
                self._flat_at[name][n] += len(piece)
            self._at[n] += end - begin
        return pieces

    def items(self, part: int, domain: int) -> Iterator[np.ndarray]:
        """The items of the rows of a part and a domain, piece after piece, when all have been written."""
        n = part * self._bins.domains + domain
        begin = int(self._begin[n])
        for rows in chunks(int(self._bins.size[n])):
            yield self._columns[KEPT[part], "item"].get(begin + rows.start, begin + rows.stop)

    def rows(self, domain: int) -> int:
        """How many rows of a domain there are in all parts."""
        return int(self._bins.by_part(self._bins.size)[:, domain].sum())

    def _open_all(self, chunk: Chunk) -> None:
        """Every part has every column, be it without rows."""
        for n, (part, size) in enumerate(zip(KEPT, self._bins.by_part(self._bins.size).sum(1).tolist(), strict=True)):
            for name, values in chunk.columns.items():
                self._open(part, name, values.dtype).room(size)
            for name, (_, flat) in chunk.lists.items():
                self._open(part, f"{name}.values", flat.dtype).room(int(self._bins.by_part(self._bins.flat[name])[n].sum()))
                offsets = self._open(part, f"{name}.offsets", np.int64)
                offsets.append(np.zeros(1, np.int64))
                offsets.room(size)

    def _open(self, part: str, name: str, dtype: np.dtype | type) -> arrow.Column:
        found = self._columns[part, name] = self._stack.enter_context(arrow.column(self._folder / part / f"{name}.arrow", dtype))
        return found
