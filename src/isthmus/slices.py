"""``cut``: a table of scores by domain and user state, as the tables that metrics read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isthmus.metrics import Table
from isthmus.metrics._table import Ints

ALL = "all"
STATES = ("new", "few", "many")  # by training events in the domain
SOURCE_STATES = ("source <5", "source 5-19", "source 20+")  # by training events in the other domains


class Scored(Protocol):
    """What is read of ``isthmus.score.Scores``.

    Attributes:
        frame: columns group, user, item, domain, label, score; state and relevant where known; rank (and tied
            where known) when kind is "full".
        kind: "rows", "lists", "sampled" or "full".
        lists: the name of the candidate lists in each domain, or None.
        catalogue: the number of items in each domain's catalogue, or None.
        places: how many first places of a full ranking are kept, or None.
    """

    @property
    def frame(self) -> pl.DataFrame: ...
    @property
    def kind(self) -> str: ...
    @property
    def lists(self) -> Mapping[str, str] | None: ...
    @property
    def catalogue(self) -> Mapping[str, int] | None: ...
    @property
    def places(self) -> int | None: ...


@dataclass(frozen=True)
class Slice:
    """The rows of one domain and user state.

    Attributes:
        domain, state: names; the state "all" is every user.
        whole: all rows of the domain; where a group has rows of several states, those of this state only.
        whole_users: (whole.users,) their codes among all users of the scores.
        kept: (whole.groups,) bool, the groups of this state; None: all.
    """

    domain: str
    state: str
    whole: Table
    whole_users: Ints
    kept: NDArray[np.bool_] | None = None

    @cached_property
    def _users(self) -> tuple[Ints, Ints]:
        """Users of the whole that are in the slice, and for each of its groups the place among them."""
        owner = self.whole.group_user if self.kept is None else self.whole.group_user[self.kept]
        return compact(owner, self.whole.users)

    @property
    def users(self) -> Ints:
        """(U,) codes among all users of the scores, ascending."""
        return self.whole_users[self._users[0]]

    @property
    def group_user(self) -> Ints:
        """(G,) the place in ``users`` of each group of the slice."""
        return self._users[1]

    @cached_property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.group_user)

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.whole) if self.kept is None else int(np.count_nonzero(self.kept[self.whole.group]))

    @cached_property
    def table(self) -> Table:
        """Its rows; users and groups are counted from 0 within it."""
        return self.whole if self.kept is None else taken(self.whole, self.kept[self.whole.group])[0]


def cut(scores: Scored, *, states: bool) -> tuple[list[Slice], int]:
    """The scores by domain (in order of appearance) and, where known and wanted, by user state; and the number of users."""
    user = dense(scores.frame["user"])
    names = _states(scores.frame) if states and "state" in scores.frame.columns else ()
    slices: list[Slice] = []
    for name, rows in by_domain(scores.frame):
        frame = scores.frame[rows]
        table, users = _table(scores, name, frame, user[rows])
        slices.append(Slice(name, ALL, table, users))
        if names:
            whole = slices[-1]
            slices += [_of_state(whole, state, (frame["state"] == state).fill_null(False).to_numpy()) for state in names]
    return slices, int(user.max()) + 1


def _states(frame: pl.DataFrame) -> tuple[str, ...]:
    """The states that the scores tell apart: those by other domains where any row has one."""
    return SOURCE_STATES if frame["state"].is_in(SOURCE_STATES).any() else STATES


def by_domain(frame: pl.DataFrame) -> Iterator[tuple[str, slice | Ints]]:
    """Each domain's name and rows: a slice where they lie together, which copies nothing."""
    runs = frame["domain"].rle().struct.unnest()
    start = np.cumsum(runs["len"].to_numpy().astype(np.int64)) - runs["len"].to_numpy()
    if runs["value"].n_unique() == runs.height:
        for name, first, length in zip(runs["value"], start.tolist(), runs["len"], strict=True):
            yield str(name), slice(first, first + length)
    else:
        for name in frame["domain"].unique(maintain_order=True):
            yield str(name), (frame["domain"] == name).arg_true().to_numpy().astype(np.int64)


def _table(scores: Scored, domain: str, frame: pl.DataFrame, user: Ints) -> tuple[Table, Ints]:
    """A domain's rows, and the codes of its users."""
    users, user = compact(user, int(user.max(initial=-1)) + 1)
    label, score = (frame[name].cast(pl.Float64).to_numpy() for name in ("label", "score"))
    rank, item = (frame["rank"].cast(pl.Float64).to_numpy(), frame["item"].to_numpy()) if scores.kind == "full" else (None, None)
    tied = frame["tied"].cast(pl.Int64).to_numpy() if scores.kind == "full" and "tied" in frame.columns else None
    relevant = frame["relevant"].cast(pl.Int64).to_numpy() if "relevant" in frame.columns else None
    catalogue = (scores.catalogue or {}).get(domain)
    table = Table(user, dense(frame["group"]), label, score, len(users), rank, tied, relevant, item, catalogue, scores.places)
    return table, users


def _of_state(all_users: Slice, state: str, mask: NDArray[np.bool_]) -> Slice:
    """The rows of one state: whole groups, as a rule, so that nothing need be ranked again."""
    whole = all_users.whole
    kept = np.zeros(whole.groups, bool)
    kept[whole.group[mask]] = True
    if np.array_equal(kept[whole.group], mask):
        return Slice(all_users.domain, state, whole, all_users.whole_users, kept)
    table, users = taken(whole, mask)
    return Slice(all_users.domain, state, table, all_users.whole_users[users])


def taken(table: Table, mask: NDArray[np.bool_]) -> tuple[Table, Ints]:
    """Some rows of a table, users and groups counted anew; and which users they are of."""

    def some(values: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if values is None else values[mask]

    users, user = compact(table.user[mask], table.users)
    _, group = compact(table.group[mask], table.groups)
    label, score, rank, tied, relevant, item = (
        some(values) for values in (table.label, table.score, table.rank, table.tied, table.relevant, table.item)
    )
    assert label is not None
    assert score is not None
    return Table(user, group, label, score, len(users), rank, tied, relevant, item, table.catalogue, table.places), users


def compact(codes: Ints, size: int) -> tuple[Ints, Ints]:
    """The codes (below ``size``) that occur, ascending, and the place of each value among them; without sorting."""
    there = np.zeros(size, bool)
    there[codes] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[codes]


def dense(ids: pl.Series) -> Ints:
    """Any ids as 0 .. n - 1, in their order."""
    low, high = ids.min(), ids.max()
    if isinstance(low, int) and isinstance(high, int) and not ids.null_count() and high - low < 4 * len(ids):
        return compact(ids.cast(pl.Int64).to_numpy() - low, high - low + 1)[1]
    return (ids.rank("dense") - 1).cast(pl.Int64).to_numpy()
