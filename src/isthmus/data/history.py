"""Histories: every positive event stored once, and cut per row when a batch is made.

On disk and in memory (memory-mapped Arrow files), position 0 of every column is a padding event, so that an
empty slot is simply position 0::

    pairs.arrow    pair = user * domains + domain, ascending (sparse: only pairs that have events), and where
                   each pair's events begin; the last row is a sentinel
    events.arrow   item, time, behaviour, label of the events, ordered by (user, domain, time)
    merged.arrow   each user's events ordered by time over all domains: ``event`` (place among the user's
                   events above), ``domain``, and ``run`` (how many events in a row, up to and including this
                   one, are of this domain: a walk back in time jumps over a whole run at once)

Times that tie with the row's own never enter its history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.errors import DataError, SourceError
from isthmus.storage import read_json, write_json

COLUMNS = ("item", "time", "behaviour", "label", "domain")
NOBODY = -1  # a domain that no event has
BLOCK, MOST_BLOCKS = 1 << 21, 100  # events sorted at once, at least; and how many times at most the users are divided


@dataclass(frozen=True)
class History:
    """The positive events of all users, by user and domain.

    P pairs of a user and a domain, N events; position 0 of the event columns is padding.

    Attributes:
        domains: number of domains.
        pair: (P + 1,) int64, ``user * domains + domain`` ascending, then a sentinel.
        start: (P + 1,) int64, position of each pair's first event, then 1 + N.
        item: (1 + N,) int32.
        time: (1 + N,) int64, or None when events have no time.
        behaviour: (1 + N,) int8 codes, or None.
        label: (1 + N,) float32 ratings, or None.
        event, run: (1 + N,) int32 and ``domain`` (1 + N,) int16: see the module's page.
    """

    domains: int
    pair: np.ndarray
    start: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    behaviour: np.ndarray | None
    label: np.ndarray | None
    event: np.ndarray
    domain: np.ndarray
    run: np.ndarray

    def __len__(self) -> int:
        return len(self.item) - 1

    @staticmethod
    def write(
        folder: Path,
        *,
        user: np.ndarray,
        domain: np.ndarray,
        time: np.ndarray | None,
        item: np.ndarray,
        behaviour: np.ndarray | None,
        train: np.ndarray,
        domains: int,
        label: np.ndarray | None = None,
    ) -> None:
        """Writes the events that may enter histories.

        Args:
            folder: an existing folder, or one to make.
            user, item: (N,) integer codes.
            domain: (N,) domain indices.
            time: (N,) integers, or None.
            behaviour: (N,) codes from 1, or None.
            train: (N,) bool, events of the training part.
            domains: number of domains.
            label: (N,) ratings, or None.

        Raises:
            DataError: events without a time that are not training events (they could not be kept from the
                rows they would give away), or columns of different lengths.
        """
        if len({len(c) for c in (user, domain, time, item, behaviour, label, train) if c is not None}) > 1:
            raise DataError("history columns of different lengths", "one value per event", "pass the same events in every column")
        if time is None and not train.all():
            raise DataError("events without a time from outside the training part", "training events only", "leave the other parts out")
        size = len(user) + 1
        events: dict[str, np.ndarray] = {"item": np.zeros(size, np.int32)}
        if time is not None:
            events["time"] = np.zeros(size, np.int64)
        if behaviour is not None:
            events["behaviour"] = np.zeros(size, np.int8)
        if label is not None:
            events["label"] = np.zeros(size, np.float32)
        merged: dict[str, np.ndarray] = {
            "event": np.zeros(size, np.int32),
            "domain": np.full(size, NOBODY, np.int16),
            "run": np.zeros(size, np.int32),
        }
        pairs, starts, at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 1
        for rows in _blocks(user):
            block = _Block.of(rows, user, domain, time, item, domains)
            pair, first = np.unique(block.pair[block.order], return_index=True)
            pairs.append(pair)
            starts.append(first + at)
            end = at + len(block.rows)
            stored = block.rows[block.order]
            for name, column in (("item", item), ("time", time), ("behaviour", behaviour), ("label", label)):
                if column is not None:
                    events[name][at:end] = column[stored]
            for name, column in _merge(block).items():
                merged[name][at:end] = column
            at = end
        folder.mkdir(parents=True, exist_ok=True)
        arrow.write(folder / "events.arrow", {name: values[:at] for name, values in events.items()})
        pair, start = np.concatenate([*pairs, [np.iinfo(np.int64).max]]), np.concatenate([*starts, [at]])
        arrow.write(folder / "pairs.arrow", {"pair": pair, "start": start.astype(np.int64)})
        arrow.write(folder / "merged.arrow", {name: values[:at] for name, values in merged.items()})
        write_json(folder / "history.json", {"domains": domains})

    @classmethod
    def load(cls, folder: Path) -> History:
        """Memory-maps what ``write`` wrote.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        pairs, events, merged = (arrow.read(folder / f"{name}.arrow") for name in ("pairs", "events", "merged"))
        try:
            domains = int(read_json(folder / "history.json")["domains"])
            return cls(domains=domains, **pairs, **{"time": None, "behaviour": None, "label": None, **events}, **merged)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{folder} holds other columns ({error})", "a history that Isthmus wrote", "encode the data again") from error

    def cut(
        self,
        user: np.ndarray,
        time: np.ndarray | None,
        domain: np.ndarray | None,
        length: int | None,
        *,
        exclude_item: np.ndarray | None = None,
        others: bool = False,
        columns: Sequence[str] = COLUMNS,
    ) -> dict[str, np.ndarray]:
        """The last ``length`` events of each row's user strictly before the row's time.

        Args:
            user: (B,) user codes.
            time: (B,) int64; None, or events without times: all of the user's stored events count.
            domain: (B,) domain indices: the row's own domain; None: all domains, merged in order of time.
            length: L, or None for the longest history among these rows.
            exclude_item: (B,) item codes left out, for events without times: the row's own item.
            others: all domains but the row's own, merged in order of time (ties and events without times in
                the order they were stored).
            columns: which columns to return; those the data lack are left out.

        Returns:
            (B, L) arrays by column name, right-aligned (most recent last): ``item`` int32, ``time`` int64 and
            ``behaviour`` int8 and ``label`` float32 padded with 0, ``domain`` int16 (merged histories only) padded with -1.

        Raises:
            DataError: ``exclude_item`` with timed events, or with a merged history.
        """
        user = np.asarray(user, np.int64)
        if domain is None or others:
            if exclude_item is not None:
                raise DataError("exclude_item with a merged history", "the row's own domain", "leave exclude_item out")
            own = np.full(len(user), NOBODY, np.int16) if domain is None else np.asarray(domain, np.int16)
            place = self._merged_places(user, time, own, length)
            begin = self._start_of(user * self.domains)
            event = np.where(place > 0, begin[:, None] + self.event.take(place), 0)
        else:
            place, event = None, self._own_places(user, time, np.asarray(domain, np.int64), length, exclude_item)
        source = {"item": self.item, "time": self.time, "behaviour": self.behaviour, "label": self.label}
        out = {name: values.take(event) for name, values in source.items() if values is not None and name in columns}
        if place is not None and "domain" in columns:
            out["domain"] = self.domain.take(place)
        return out

    def users(self, domain: int) -> np.ndarray:
        """(U,) int64 ascending codes of the users with events in the domain."""
        pair = self.pair[:-1]
        return pair[pair % self.domains == domain] // self.domains

    def items(self, user: np.ndarray, time: np.ndarray | None, domain: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of all events in the domain strictly before each row's time.

        Args:
            user: (B,) user codes.
            time: (B,) int64; None, or events without times: all of the user's stored events count.
            domain: its index.

        Returns:
            For each event the row of its user in ``user`` and its item, both (total,) int64, in order of row.
        """
        user = np.asarray(user, np.int64)
        pair = user * self.domains + domain
        at = np.searchsorted(self.pair, pair)
        begin = self.start.take(at)
        length = self.start.take(at + (self.pair.take(at) == pair)) - begin
        row = np.repeat(np.arange(len(user)), length)
        event = np.arange(len(row)) + np.repeat(begin - np.cumsum(length) + length, length)
        if time is not None and self.time is not None:
            earlier = self.time.take(event) < np.asarray(time)[row]
            row, event = row[earlier], event[earlier]
        return row, self.item.take(event).astype(np.int64)

    def _own_places(
        self, user: np.ndarray, time: np.ndarray | None, domain: np.ndarray, length: int | None, exclude_item: np.ndarray | None
    ) -> np.ndarray:
        """(B, L) positions of each row's own-domain history; 0 where it is shorter."""
        pair = user * self.domains + domain
        at = np.searchsorted(self.pair, pair)
        begin, end = self.start.take(at), self.start.take(at + (self.pair.take(at) == pair))
        times = self.time
        if times is not None and exclude_item is not None:
            raise DataError("exclude_item with timed events", "events without times", "leave it out: the row's own moment stays out anyway")
        if times is not None and time is not None:
            end = _bisect(begin, end, time, lambda at: times.take(at, mode="clip"))
        length = _longest(end - begin) if length is None else length
        if exclude_item is None:
            return _tail(begin, end, length)
        # One more than asked for: the excluded item is stored at most once, and the slots before it move up.
        place = _tail(begin, end, length + 1)
        found = (self.item.take(place) == np.asarray(exclude_item)[:, None]).argmax(1)
        slot = np.arange(length)
        return np.take_along_axis(place, slot + (slot >= found[:, None]), axis=1)

    def _merged_places(self, user: np.ndarray, time: np.ndarray | None, own: np.ndarray, length: int | None) -> np.ndarray:
        """(B, L) positions in the merged order, walking back in time and jumping over the own domain's runs."""
        begin, end = self._start_of(user * self.domains), self._start_of((user + 1) * self.domains)
        times = self.time
        if times is not None and time is not None:
            end = _bisect(begin, end, time, lambda at: times.take(begin + self.event.take(at, mode="clip"), mode="clip"))
        length = _longest(end - begin) if length is None else length
        place = np.zeros((length, len(user)), np.int64)
        at = end - 1
        for slot in range(length - 1, -1, -1):
            at = np.where(self.domain.take(at) == own, at - self.run.take(at), at)
            place[slot] = np.where(at >= begin, at, 0)
            at = np.maximum(at - 1, 0)
        return place.T

    def _start_of(self, pair: np.ndarray) -> np.ndarray:
        """Position of the first event of this pair, or of the next one that has events."""
        return self.start.take(np.searchsorted(self.pair, pair))


def _tail(begin: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """(B, L): the last ``length`` positions of each [begin, end), right-aligned; 0 where there are fewer."""
    place = end[:, None] + np.arange(-length, 0)
    place *= place >= begin[:, None]
    return place


def _bisect(begin: np.ndarray, end: np.ndarray, moment: np.ndarray, time_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """For each row, the first position in [begin, end) whose time is not before ``moment``, or ``end``."""
    low, high = begin.copy(), end.copy()
    while (searching := low < high).any():
        middle = (low + high) >> 1
        before = time_at(middle) < moment
        low = np.where(searching & before, middle + 1, low)
        high = np.where(searching & ~before, middle, high)
    return low


def _longest(counts: np.ndarray) -> int:
    return int(counts.max(initial=0))


@dataclass(frozen=True)
class _Block:
    """The events of some users; n of them.

    Attributes:
        rows: (n,) which events.
        user, domain, pair: (n,) int64.
        time: (n,) int64, or None.
        order: (n,) order by pair, then time.
    """

    rows: np.ndarray
    user: np.ndarray
    domain: np.ndarray
    pair: np.ndarray
    time: np.ndarray | None
    order: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, user: np.ndarray, domain: np.ndarray, time: np.ndarray | None, item: np.ndarray, domains: int) -> _Block:
        """Takes the rows of one block."""
        pair = user[rows].astype(np.int64) * domains + domain[rows]
        if time is None:  # without a time a history is a set: one event per user, domain and item, the last one stored
            keep = _last_of_each(pair, item[rows])
            rows, pair = rows[keep], pair[keep]
        times = None if time is None else time[rows]
        return cls(rows, user[rows].astype(np.int64), domain[rows].astype(np.int64), pair, times, _order(pair, times))


def _blocks(user: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of one range of users after the other, so that what sorting needs does not grow with the data."""
    count = np.bincount(user, minlength=1)
    block_of = (np.cumsum(count) - count) // max(BLOCK, len(user) // MOST_BLOCKS)
    block = block_of.astype(np.uint8)[user]
    for number in range(int(block_of[-1]) + 1):
        yield np.flatnonzero(block == number)


def _order(key: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """Stable order by key, then time."""
    return np.argsort(key, kind="stable") if time is None else np.lexsort((time, key))


def _last_of_each(pair: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Ascending positions of the last event of each (pair, item)."""
    order = np.lexsort((item, pair))  # stable: equal ones stay in stored order
    pair, item = pair[order], item[order]
    last = np.ones(len(order), bool)
    last[:-1] = (pair[1:] != pair[:-1]) | (item[1:] != item[:-1])
    return np.sort(order[last])


def _merge(block: _Block) -> dict[str, np.ndarray]:
    """The columns of merged.arrow."""
    total = len(block.order)
    place = np.empty(total, np.int64)
    place[block.order] = np.arange(total)
    merged = _order(block.user, block.time)
    user, domain = block.user[merged], block.domain[merged]
    new_user = np.flatnonzero(np.diff(user, prepend=NOBODY))
    begin = np.repeat(new_user, np.diff(new_user, append=total))
    new_run = np.flatnonzero(np.diff(user, prepend=NOBODY) | np.diff(domain, prepend=NOBODY))
    run = np.arange(1, total + 1) - np.repeat(new_run, np.diff(new_run, append=total))
    return {"event": place[merged] - begin, "domain": domain, "run": run}
