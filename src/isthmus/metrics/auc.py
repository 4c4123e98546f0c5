"""Area under the ROC curve, over all rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import numpy as np
from scipy import sparse

from isthmus.metrics._base import LISTED, Metric, Statistic, Undefined
from isthmus.metrics._table import Floats, Ints, Table, sums

CELLS = 1 << 22  # runs x resamples held at once: 32 MiB per array


@final
class AUC(Metric):
    """Area under the ROC curve: how often a positive row stands above a negative one, all rows of a domain pooled.

    Equation::

        AUC = 1 / (P N) * sum_i sum_j ( [s_i > s_j] + 1/2 [s_i = s_j] )

    Symbols: i runs over the P positive rows, j over the N negative rows, s are scores.

    Example: positives at 3 and 1, negatives at 2 and 1.  Of the four pairs two are won (3 > 2, 3 > 1), one is tied
    (1 = 1) and one is lost (1 < 2): 2.5 / 4.

    >>> AUC().value(Table.of(label=[1, 1, 0, 0], score=[3, 1, 2, 1]))
    0.625

    A resample of users takes their rows along; pairs of rows of different users count by the product of the users' weights.
    """

    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = LISTED

    def statistic(self, table: Table) -> Statistic:
        positives = int(np.count_nonzero(table.label > 0))
        if positives in (0, len(table)):
            return Undefined("no rows" if not len(table) else f"one class only ({len(table)} rows, {positives} positive)")
        order = np.argsort(table.score)
        positive = table.label[order] > 0
        return _Pairs(_runs(table.score[order], positive), positive, table.user[order], table.users)


@dataclass(frozen=True)
class _Pairs:
    """Rows in ascending order of score, cut into runs.

    Attributes:
        run: (N,) ascending run of each row.
        positive: (N,) bool.
        user: (N,)
        users: number of users.
    """

    run: Ints
    positive: np.ndarray
    user: Ints
    users: int
    note: str | None = None

    @property
    def value(self) -> float:
        runs = int(self.run[-1]) + 1
        above = sums(self.run, self.positive, runs)
        below = sums(self.run, ~self.positive, runs)
        return float(_won(above[:, None], below[:, None])[0])

    def resampled(self, weight: Floats) -> Floats:
        step = max(1, CELLS // (int(self.run[-1]) + 1))
        above, below = self._counts
        parts = [weight[:, start : start + step] for start in range(0, weight.shape[1], step)]
        return np.concatenate([_won(above @ part, below @ part) for part in parts])

    @cached_property
    def _counts(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """(runs, users) numbers of positive and of negative rows."""
        shape = (int(self.run[-1]) + 1, self.users)

        def count(rows: np.ndarray) -> sparse.csr_array:
            return sparse.csr_array((np.ones(int(rows.sum())), (self.run[rows], self.user[rows])), shape=shape)

        return count(self.positive), count(~self.positive)


def _won(above: Floats, below: Floats) -> Floats:
    """Share of pairs won, from the weights (runs, R) of positives and negatives in ascending runs."""
    pairs = above.sum(0) * below.sum(0)
    won = np.einsum("kr,kr->r", above, np.cumsum(below, 0) - 0.5 * below)
    return np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def _runs(score: Floats, positive: np.ndarray) -> Ints:
    """(N,) run of each row: equal scores stay together, and neighbours of one class are merged.

    Merging changes no pair, since only pairs of different classes count, and leaves far fewer runs than scores.
    """
    new = np.ones(len(score), bool)
    new[1:] = score[1:] != score[:-1]
    block = np.cumsum(new) - 1
    start = np.flatnonzero(new)
    share = np.add.reduceat(positive.astype(np.int64), start) / np.diff(start, append=len(score))
    fresh = np.ones(len(share), bool)
    fresh[1:] = (share[1:] != share[:-1]) | ((share[1:] > 0) & (share[1:] < 1))
    return (np.cumsum(fresh) - 1)[block]
