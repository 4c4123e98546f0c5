"""Recall: the share of a query's positives found in the first k places."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from isthmus.metrics._base import PerGroup
from isthmus.metrics._table import Floats, Table, sums


@final
class Recall(PerGroup):
    """The share of a query's positives that stand in the first k places, averaged over queries.

    Equation::

        recall@k = 1/Q * sum_q ( positives of q in the first k places ) / R_q

    Symbols: q runs over the Q queries with a positive, R_q is the query's number of positives (not cut at k, so it can stay
    below 1; positives missing from a given list count).  Ties count in expectation over their orders: of a block
    of t equal scores, m of them positive, of which c fit into the first k places, m c / t are found.

    Example: ``a`` is first, ``b`` and ``c`` tie for places 2 and 3, ``c`` is the positive: found in half of the orders.

    >>> Recall(2).value(Table.of(label=[0, 0, 1], score=[2, 1, 1]))
    0.5
    """

    cutoff: ClassVar[Literal["required", "optional", "none"]] = "required"

    def per_group(self, table: Table) -> Floats:
        assert self.k is not None
        blocks, relevant = table.blocks, table.group_relevant
        found = blocks.positives * np.clip(self.k - blocks.above, 0, blocks.size) / blocks.size
        total = sums(blocks.group, found, table.groups)
        return np.divide(total, relevant, out=np.full(table.groups, np.nan), where=relevant > 0)
