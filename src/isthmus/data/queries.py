"""Queries: who is asked about, when, and which items are right; and the lists of items that answer them.

A query is a user in a domain of a part, asked at the moment of her first event there; all items of her positive
events there are relevant.  Or (``each="event"``) a positive event of the part, asked at its own moment; its item alone is relevant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from isthmus.errors import ConfigError, DataError
from isthmus.segments import Segments
from isthmus.sorting import order_of, starts

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

EARLIER = {"train": (), "valid": ("train",), "test": ("train", "valid")}
Each = Literal["user", "event"]
TRIES = 100  # rounds of drawing again before sampled items are declared not to exist


@dataclass(frozen=True)
class Queries:
    """The queries of one domain, with a flat list of items each: the relevant ones, or a list to rank.

    Q queries; those of query q are at ``offsets[q]:offsets[q + 1]`` of the flat columns.

    Attributes:
        domain: its index.
        group: (Q,) int64 what tells queries apart, the same in every scoring of a data set.
        user: (Q,) int64 user codes; ascending where they were not given otherwise.
        first: (Q,) int64 position in the part of the event that gives the moment and the context: the user's first one there, or the
            query's own.
        offsets: (Q + 1,) int64.
        item: flat int64 item codes.
        label: flat float32, 1 for the relevant.
        row: flat int64 row of the event that made the item relevant (its first); -1 for others.
        relevant: (Q,) int64 number of relevant items, in the list or not.
    """

    domain: int
    group: np.ndarray
    user: np.ndarray
    first: np.ndarray
    offsets: np.ndarray
    item: np.ndarray
    label: np.ndarray
    row: np.ndarray
    relevant: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: np.ndarray) -> Self:
        """Some of the queries, by position."""
        length = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(length)])
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], length)
        columns = (self.item[flat], self.label[flat], self.row[flat])
        return type(self)(self.domain, self.group[chosen], self.user[chosen], self.first[chosen], offsets, *columns, self.relevant[chosen])

    def limited(self, most: int | None) -> Self:
        """At most so many queries, chosen at random but always alike; None: all."""
        if most is None or len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng(self.domain).choice(len(self), most, replace=False)))

    def blocks(self, size: int) -> Iterator[Self]:
        """The queries in order, so many at a time."""
        return (self.take(np.arange(start, min(start + size, len(self)))) for start in range(0, len(self), size))

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, C) items padded with 0, and where they are real."""
        length = np.diff(self.offsets)
        real = np.arange(length.max(initial=0)) < length[:, None]
        item = np.zeros(real.shape, np.int64)
        item[real] = self.item
        return item, real


def relevant_items(dataset: Dataset, part: str, domain: int, each: Each = "user") -> Queries:
    """The queries of a part, each with its relevant items in order of their codes."""
    if each == "event":
        return _events(dataset, part, domain)
    rows = dataset.part(part)
    own = rows.of(domain)
    place = own.start + np.flatnonzero(rows.positive(dataset.schema.label, own))
    user, item = rows.user.take(place).astype(np.int64), rows.item.take(place).astype(np.int64)
    time = np.zeros(len(place), np.int64) if rows.time is None else rows.time.take(place)
    order = order_of(user, item, time)
    user, item, place = user[order], item[order], place[order]
    new = starts(user, item)
    user, item, place = user[new], item[new], place[new]
    query_start = starts(user)
    # A query is asked before the first of all its events, whatever their labels.
    whole_user = rows.user[own].astype(np.int64)
    whole_time = np.zeros(len(whole_user), np.int64) if rows.time is None else rows.time[own]
    by_time = order_of(whole_user, whole_time)
    users = user[query_start]
    first = own.start + by_time[np.searchsorted(whole_user[by_time], users)]
    offsets = np.append(query_start, len(user))
    row, group = rows.row.take(place).astype(np.int64), dataset.key(domain, users)
    return Queries(domain, group, users, first, offsets, item, np.ones(len(user), np.float32), row, np.diff(offsets))


def _events(dataset: Dataset, part: str, domain: int) -> Queries:
    """A query for each positive event, by user and in order of time."""
    rows = dataset.part(part)
    own = rows.of(domain)
    place = own.start + np.flatnonzero(rows.positive(dataset.schema.label, own))
    time = np.zeros(len(place), np.int64) if rows.time is None else rows.time.take(place)
    place = place[order_of(rows.user.take(place), time)]
    user, item, row = (column.take(place).astype(np.int64) for column in (rows.user, rows.item, rows.row))
    one = np.ones(len(place), np.int64)
    return Queries(domain, row, user, place, np.arange(len(place) + 1), item, one.astype(np.float32), row, one)


def seen_items(dataset: Dataset, part: str, domain: int) -> Segments:
    """The items of each user's positive events in the domain in the parts before this one."""
    users, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for earlier in EARLIER[part]:
        rows = dataset.part(earlier)
        own = rows.of(domain)
        kept = rows.positive(dataset.schema.label, own)
        users.append(rows.user[own][kept])
        items.append(rows.item[own][kept])
    return Segments.build(np.concatenate(users), np.concatenate(items))


def chosen_before(dataset: Dataset, part: str, queries: Queries) -> Segments:
    """By group, the items of the user's positive events in the part's domain before the query's moment.

    None where a query is a user, asked before all of them, and in untimed data.
    """
    rows = dataset.part(part)
    if rows.time is None:
        return Segments.build(np.zeros(0, np.int64), np.zeros(0, np.int64))
    own = rows.of(queries.domain)
    place = own.start + np.flatnonzero(rows.positive(dataset.schema.label, own))
    user, item, moments = rows.user.take(place).astype(np.int64), rows.item.take(place), np.unique(rows.time[own])

    def key(user: np.ndarray, time: np.ndarray) -> np.ndarray:
        return user * len(moments) + np.searchsorted(moments, time)

    order = order_of(when := key(user, rows.time.take(place)))
    begin = np.searchsorted(user[order], queries.user)
    end = np.searchsorted(when[order], key(queries.user, rows.time.take(queries.first)))
    length = end - begin
    flat = np.arange(length.sum()) + np.repeat(begin - (np.cumsum(length) - length), length)
    return Segments.build(np.repeat(queries.group, length), item[order][flat])


def given_lists(dataset: Dataset, part: str, domain: int, each: Each = "user") -> Queries:
    """The lists given with the data, exactly as they are.

    Of queries by event a list is its user's who chose its first relevant item.

    Raises:
        DataError: there are none, or a list is for a user, or an event, that this part and domain do not have.
    """
    given = dataset.candidates(part)
    if given is None:
        raise DataError(f"no lists for part {part!r}", "candidates given with the split", 'rank the whole catalogue: candidates="full"')
    right = relevant_items(dataset, part, domain, each)
    chosen = np.flatnonzero(given.domain == domain)
    user, length = given.user[chosen].astype(np.int64), np.diff(given.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(length)])
    flat = np.arange(offsets[-1]) + np.repeat(given.offsets[:-1][chosen] - offsets[:-1], length)
    item, label = given.item[flat].astype(np.int64), given.label[flat].astype(np.float32)
    asked, wanted = right.user, user
    if each == "event":
        asked, wanted = asked << 31 | right.item, user << 31 | _first_relevant(offsets, item, label)
    order = order_of(asked)
    place = np.searchsorted(asked[order], wanted)
    known = asked[order].take(place, mode="clip") == wanted if len(right) else np.zeros(len(user), bool)
    if not known.all():
        who = "users without events" if each == "user" else "choices that are no events"
        came = f"{int((~known).sum()):,} lists in {dataset.schema.domain_names[domain]!r} for {who} in part {part!r}"
        raise DataError(came, "lists of users with events there", "drop these lists")
    query = order[place]
    row = np.where(label > 0, _rows_of(right, np.repeat(query, length), item), -1)
    return Queries(domain, right.group[query], user, right.first[query], offsets, item, label, row, right.relevant[query])


def sampled_lists(dataset: Dataset, part: str, domain: int, n: int, seed: int, each: Each = "user") -> Queries:
    """Each query's relevant items followed by n others, uniform without replacement from the domain's catalogue.

    Left out are the items that the user has seen in earlier parts.  The draw depends on the seed and domain alone.

    Raises:
        ConfigError: the catalogue does not have n such items for some user.
    """
    right, catalogue = relevant_items(dataset, part, domain, each), dataset.catalogue(domain, part)
    seen = seen_items(dataset, part, domain)
    query = np.repeat(np.arange(len(right)), np.diff(right.offsets))
    wrong = Segments.build(query, right.item)
    rng = np.random.default_rng((seed, domain))
    drawn = np.zeros((len(right), n), np.int64)
    again = np.ones(drawn.shape, bool)
    for _ in range(TRIES if len(catalogue) else 0):
        drawn[again] = catalogue[rng.integers(len(catalogue), size=int(again.sum()))]
        drawn.sort(axis=1)
        again = seen.contains(right.user, drawn) | wrong.contains(np.arange(len(right)), drawn)
        again[:, 1:] |= drawn[:, 1:] == drawn[:, :-1]
        if not again.any():
            break
    if again.any():
        came = f"{n} sampled items per query in {dataset.schema.domain_names[domain]!r}, whose catalogue has {len(catalogue):,}"
        raise ConfigError(came, "fewer than are left after what a user has seen", "sample fewer, or rank the full catalogue")
    offsets = right.offsets + n * np.arange(len(right) + 1)
    is_right = np.zeros(offsets[-1], bool)
    is_right[np.arange(len(right.item)) + n * query] = True
    item, row = np.zeros(len(is_right), np.int64), np.full(len(is_right), -1)
    item[is_right], item[~is_right], row[is_right] = right.item, drawn.ravel(), right.row
    return Queries(domain, right.group, right.user, right.first, offsets, item, is_right.astype(np.float32), row, right.relevant)


def _first_relevant(offsets: np.ndarray, item: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The first relevant item of each list; 0 where there is none."""
    found = np.zeros(len(offsets) - 1, np.int64)
    place = np.flatnonzero(label > 0)[::-1]
    found[np.searchsorted(offsets, place, side="right") - 1] = item[place]
    return found


def _rows_of(right: Queries, query: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The event rows of (query, item) pairs; -1 where the item is not relevant."""
    key = (np.repeat(np.arange(len(right)), np.diff(right.offsets)) << 31) | right.item
    wanted = (query << 31) | item
    place = np.searchsorted(key, wanted)
    found = key.take(place, mode="clip") == wanted if len(key) else np.zeros(len(wanted), bool)
    return np.where(found, right.row.take(place, mode="clip") if len(key) else -1, -1)
