"""``Table``: the columns that metrics read, as arrays; ``Blocks``: its groups ranked, ties kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
COMPARED = 4  # distinct scores of positives in a group, up to which comparing every row with each is faster than sorting


@dataclass(frozen=True)
class Table:
    """Scored rows of one domain (or of one user state of it).

    Attributes:
        user: (N,) which user, 0 .. users - 1.
        group: (N,) which query, 0 .. groups - 1; a group belongs to one user.
        label: (N,) 0/1, or ratings.
        score: (N,) higher is better; logits or ratings.
        users: number of users.
        rank: (N,) exact 1-based rank in the whole catalogue, for rankings of which only the first places and the positives
            are stored; tied items share their mean rank; infinite: outside the catalogue, never found.  None: the rows of a
            group are all that is ranked.
        tied: (N,) how many items of the whole catalogue have the row's score, itself included.  None: not known, so a rank
            stands for itself and only stored rows of the same rank are tied.
        relevant: (N,) the group's number of positives, listed or not.  None: all are listed.
        item: (N,) which item, any ids; None: not known.
        catalogue: number of items in the whole catalogue; None: not known.
        places: how many of the first places of a group are stored, at most; None: all.
    """

    user: Ints
    group: Ints
    label: Floats
    score: Floats
    users: int
    rank: Floats | None = None
    tied: Ints | None = None
    relevant: Ints | None = None
    item: NDArray[Any] | None = None
    catalogue: int | None = None
    places: int | None = None

    @classmethod
    def of(
        cls,
        label: ArrayLike,
        score: ArrayLike,
        group: ArrayLike | None = None,
        user: ArrayLike | None = None,
        rank: ArrayLike | None = None,
        tied: ArrayLike | None = None,
        relevant: ArrayLike | None = None,
        item: ArrayLike | None = None,
        catalogue: int | None = None,
        places: int | None = None,
    ) -> Table:
        """A table from any arrays.

        Args:
            label, score: (N,) numbers.
            group: (N,) any ids; None: all rows are one group.
            user: (N,) any ids; None: every group is a user.
            rank, tied, relevant, item: (N,), see the class.
            catalogue, places: see the class.
        """
        labels = np.asarray(label, np.float64)
        groups = _dense(np.zeros(len(labels)) if group is None else group)
        users = groups if user is None else _dense(user)
        return cls(
            users,
            groups,
            labels,
            np.asarray(score, np.float64),
            int(users.max(initial=-1)) + 1,
            None if rank is None else np.asarray(rank, np.float64),
            None if tied is None else np.asarray(tied, np.int64),
            None if relevant is None else np.asarray(relevant, np.int64),
            None if item is None else np.asarray(item),
            catalogue,
            places,
        )

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.group.max(initial=-1)) + 1

    @cached_property
    def group_user(self) -> Ints:
        """(G,) the user of each group."""
        user = np.zeros(self.groups, np.int64)
        user[self.group] = self.user
        return user

    @cached_property
    def group_positives(self) -> Ints:
        """(G,) number of positive rows of each group."""
        return np.bincount(self.group[self.label > 0], minlength=self.groups).astype(np.int64)

    @cached_property
    def group_relevant(self) -> Ints:
        """(G,) number of positives of each group, listed or not."""
        if self.relevant is None:
            return self.group_positives
        relevant = np.zeros(self.groups, np.int64)
        relevant[self.group] = self.relevant
        return relevant

    @cached_property
    def stored(self) -> Ints:
        """(N,) rows of the same group and ``rank``, the row itself included."""
        assert self.rank is not None
        order = np.lexsort((self.rank, self.group))
        count = np.diff(_starts(self.group[order], self.rank[order]), append=len(self))
        out = np.zeros(len(self), np.int64)
        out[order] = np.repeat(count, count)
        return out

    @cached_property
    def tie(self) -> tuple[Floats, Ints]:
        """(N,) items above the row's block of equal scores, and (N,) items in the block, by ``rank``."""
        assert self.rank is not None
        size = self.stored if self.tied is None else self.tied
        return np.maximum(self.rank - (size + 1) / 2, 0.0), size  # ranks from elsewhere may be their block's first place

    @cached_property
    def blocks(self) -> Blocks:
        """The groups ranked, best first."""
        return Blocks.exact(self) if self.rank is not None else Blocks.ranked(self)

    def per_user(self, value: Floats, *, by: Ints | None = None) -> Floats:
        """(U,) sums of row values (or, with ``by=group_user``, of group values) over each user."""
        return sums(self.user if by is None else by, value, self.users)


@dataclass(frozen=True)
class Blocks:
    """Maximal runs of equal scores within a group that hold a positive, best first, groups in order.

    Within a block every order is equally likely, so metrics take the expectation over the orders.

    Attributes:
        group: (T,) the block's group.
        above: (T,) items of the group ranked above the block.
        size: (T,) items in the block.
        positives: (T,) of them relevant.
    """

    group: Ints
    above: Floats
    size: Ints
    positives: Ints

    @classmethod
    def ranked(cls, table: Table) -> Blocks:
        """Places the positives among the rows of their group, by score."""
        hit = np.flatnonzero(table.label > 0)
        hit = hit[np.lexsort((-table.score[hit], table.group[hit]))]
        start = _starts(table.group[hit], table.score[hit])
        group, score = table.group[hit[start]], table.score[hit[start]]
        nth = np.arange(len(group)) - np.searchsorted(group, group)  # of its group's blocks
        place = _compared if nth.max(initial=0) < COMPARED else _sorted
        above, size = place(table, group, score, nth)
        return cls(group, above, size, np.diff(start, append=len(hit)).astype(np.int64))

    @classmethod
    def exact(cls, table: Table) -> Blocks:
        """Places the positives at their stored ranks; infinite ones are never found.  Blocks without a positive are left out."""
        assert table.rank is not None
        kept = np.flatnonzero(np.isfinite(table.rank) & (table.label > 0))
        kept = kept[np.lexsort((table.rank[kept], table.group[kept]))]
        start = _starts(table.group[kept], table.rank[kept])
        first, (above, size) = kept[start], table.tie
        return cls(table.group[first], above[first], size[first], np.diff(start, append=len(kept)).astype(np.int64))

    @cached_property
    def first(self) -> Ints:
        """Indices of each group's first block; groups without a positive are not in it."""
        return _starts(self.group)


def _compared(table: Table, group: Ints, score: Floats, nth: Ints) -> tuple[Floats, Ints]:
    """Rows above and rows in each block, by comparing every row with its group's first block, then its second, and so on."""
    above, size = np.zeros(len(group)), np.zeros(len(group), np.int64)
    for number in range(int(nth.max(initial=-1)) + 1):
        block = np.full(table.groups, -1)
        block[group[nth == number]] = np.flatnonzero(nth == number)
        own = block[table.group]
        held = own >= 0
        own, mine = (own, table.score) if held.all() else (own[held], table.score[held])
        bar = score[own]
        above += np.bincount(own[mine > bar], minlength=len(group))
        size += np.bincount(own[mine == bar], minlength=len(group))
    return above, size


def _sorted(table: Table, group: Ints, score: Floats, nth: Ints) -> tuple[Floats, Ints]:
    """The same by sorting all rows: for groups of many positives."""
    order = np.lexsort((-table.score, table.group))
    owner, value = table.group[order], table.score[order]
    start = _starts(owner, value)
    size = np.diff(start, append=len(order))
    hit = np.add.reduceat((table.label[order] > 0).astype(np.int64), start) > 0
    first = np.searchsorted(owner, group)
    return (start[hit] - first).astype(np.float64), size[hit].astype(np.int64)


def sums(index: Ints, value: ArrayLike, size: int) -> Floats:
    """(size,) sums of the values that share an index."""
    return np.bincount(index, np.asarray(value, np.float64), size).astype(np.float64, copy=False)


def _starts(*keys: NDArray[np.generic]) -> Ints:
    """Where a new run of equal keys begins."""
    new = np.ones(len(keys[0]), bool)
    if len(new):
        new[1:] = False
        for key in keys:
            new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def _dense(values: ArrayLike | Sequence[object]) -> Ints:
    """Any ids as 0 .. n - 1."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64).reshape(-1)
