"""Hit rate: how often at least one positive is in the first k places."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
from scipy.special import gammaln

from isthmus.metrics._base import PerGroup
from isthmus.metrics._table import Floats, Table


@final
class HitRate(PerGroup):
    """How often at least one positive stands in the first k places.

    Equation::

        hit_rate@k = 1/Q * sum_q [ a positive of q is in the first k places ]

    Symbols: q runs over the Q queries with a positive.  Ties count in expectation over their orders: when the best positive's
    block has t equal scores, m of them positive, and c of its places are among the first k, all positives miss with
    probability C(t - m, c) / C(t, c).

    Example: two of three tied items are positive; the first place goes to one of them in 2 of 3 orders.

    >>> round(HitRate(1).value(Table.of(label=[1, 1, 0], score=[0, 0, 0])), 4)
    0.6667
    """

    cutoff: ClassVar[Literal["required", "optional", "none"]] = "required"

    def per_group(self, table: Table) -> Floats:
        assert self.k is not None
        blocks, first = table.blocks, table.blocks.first
        size, positives = blocks.size[first], blocks.positives[first]
        places = np.clip(self.k - blocks.above[first], 0, size)
        spare = size - positives - places  # < 0: fewer negatives than places, so no order misses
        log_miss = gammaln(size - positives + 1) + gammaln(size - places + 1) - gammaln(np.maximum(spare, 0) + 1) - gammaln(size + 1)
        hit = np.full(table.groups, np.nan)
        hit[table.group_relevant > 0] = 0.0
        hit[blocks.group[first]] = np.where(spare < 0, 1.0, -np.expm1(log_miss))
        return hit
