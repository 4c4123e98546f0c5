"""Histories: every positive event stored once, and cut per row when a batch is made.

On disk and in memory (memory-mapped Arrow files, one for each column), position 0 of every column of events is a padding event, so that
an empty slot is simply position 0::

    pair, start             pair = user * domains + domain, ascending (sparse: only pairs that have events), and where
                            each pair's events begin; the last entry is a sentinel
    item, time, behaviour, label    of the events, ordered by (user, domain, time)
    event, domain, run      each user's events ordered by time over all domains: ``event`` (place among the user's
                            events above), ``domain``, and ``run`` (how many events in a row, up to and including this
                            one, are of this domain: a walk back in time jumps over a whole run at once)

``isthmus.data.by_user`` writes them.
Times that tie with the row's own never enter its history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.errors import DataError, SourceError
from isthmus.storage import read_json

COLUMNS = ("item", "time", "behaviour", "label", "domain")
NOBODY = -1  # a domain that no event has


@dataclass(frozen=True)
class History:
    """The positive events of all users, by user and domain.

    P pairs of a user and a domain, N events; position 0 of the event columns is padding.

    Attributes:
        domains: number of domains.
        pair: (P + 1,) int64, ``user * domains + domain`` ascending, then a sentinel.
        start: (P + 1,) int64, position of each pair's first event, then 1 + N.
        item: (1 + N,) int32.
        time: (1 + N,) int32 or int64, or None when events have no time.
        behaviour: (1 + N,) int8 codes, or None.
        label: (1 + N,) float32 ratings, or None.
        event, domain, run: (1 + N,) integers, of types as small as their numbers allow: see the module's page.
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

    @classmethod
    def load(cls, folder: Path) -> History:
        """Memory-maps a folder's columns.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        known = read_json(folder / "history.json")
        try:
            columns = {name: arrow.read(folder / f"{name}.arrow")["value"] for name in known["columns"]}
            return cls(**{"domains": int(known["domains"]), "time": None, "behaviour": None, "label": None, **columns})
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
            (B, L) arrays of the columns' own types by name, right-aligned (most recent last): ``item``, ``time``,
            ``behaviour`` and ``label`` padded with 0, ``domain`` (merged histories only) with -1.

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
