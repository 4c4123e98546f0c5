"""Mean reciprocal rank of the first positive."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
from scipy.special import gammaln

from isthmus.metrics._base import PerGroup
from isthmus.metrics._table import Floats, Ints, Table, sums


@final
class MRR(PerGroup):
    """Mean reciprocal rank of each query's first positive; ``mrr@k``: 0 beyond place k.

    Equation::

        MRR = 1/Q * sum_q 1 / r_q

    Symbols: q runs over the Q queries with a positive, r_q is the 1-based rank of the query's best positive.  Ties count in
    expectation over their orders: when a items stand above the best positive's block of t equal scores, m of them positive,
    the first positive is the block's j-th with probability C(t - j, m - 1) / C(t, m).

    Example: three tied items, one positive: (1 + 1/2 + 1/3) / 3.

    >>> round(MRR().value(Table.of(label=[1, 0, 0], score=[0, 0, 0])), 4)
    0.6111
    """

    cutoff: ClassVar[Literal["required", "optional", "none"]] = "optional"

    def per_group(self, table: Table) -> Floats:
        blocks, first = table.blocks, table.blocks.first
        value = np.full(table.groups, np.nan)
        value[table.group_relevant > 0] = 0.0
        expected = _expected(blocks.above[first], blocks.size[first], blocks.positives[first], self.k)
        value[blocks.group[first]] = expected
        return value


def _expected(above: Floats, size: Ints, positives: Ints, k: int | None) -> Floats:
    """(F,) expected reciprocal rank of the first positive of each block."""
    terms = size - positives + 1
    block = np.repeat(np.arange(len(size)), terms)
    j = np.arange(len(block)) - np.repeat(np.cumsum(terms) - terms, terms) + 1
    t, m = size[block], positives[block]
    log_p = gammaln(t - j + 1) - gammaln(t - j - m + 2) - gammaln(m) - (gammaln(t + 1) - gammaln(m + 1) - gammaln(t - m + 1))
    rank = above[block] + j
    gain = np.exp(log_p) / rank if k is None else np.where(rank <= k, np.exp(log_p) / rank, 0.0)
    return sums(block, gain, len(size))
