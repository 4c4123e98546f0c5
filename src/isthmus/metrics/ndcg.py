"""Normalised discounted cumulative gain, with binary gains."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from isthmus.metrics._base import PerGroup
from isthmus.metrics._table import Floats, Table, sums


@final
class NDCG(PerGroup):
    """Normalised discounted cumulative gain with gains of 0 and 1; ``ndcg@k`` stops at place k.

    Equation::

        NDCG@k = 1/Q * sum_q DCG_q / IDCG_q,   DCG_q = sum over places j <= k of y_j / log2(j + 1)

    Symbols: q runs over the Q queries with a positive, y_j is the label (0 or 1) at place j, IDCG_q the DCG of a perfect order:
    the first min(k, positives of q) discounts.  Ties count in expectation over their orders: a tied block's positives get the
    mean discount of the block's places.

    Example: the only positive is second of two: (1 / log2 3) / (1 / log2 2).

    >>> round(NDCG(10).value(Table.of(label=[0, 1], score=[2, 1])), 4)
    0.6309
    """

    cutoff: ClassVar[Literal["required", "optional", "none"]] = "optional"

    def per_group(self, table: Table) -> Floats:
        blocks, relevant = table.blocks, table.group_relevant
        end = blocks.above + blocks.size
        last = max(float(end.max(initial=1)), float(relevant.max(initial=1)))
        places = int(np.ceil(last)) if self.k is None else self.k
        total = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(places) + 2))))  # discounts of the first 0, 1, 2, ... places

        def discounts(n: Floats) -> Floats:
            """Between whole places (mean ranks from elsewhere, without the number tied) the line between them."""
            return np.interp(n, np.arange(places + 1), total)

        mean = (discounts(end) - discounts(blocks.above)) / blocks.size
        gain = sums(blocks.group, blocks.positives * mean, table.groups)
        ideal = discounts(relevant.astype(np.float64))
        return np.divide(gain, ideal, out=np.full(table.groups, np.nan), where=relevant > 0)
