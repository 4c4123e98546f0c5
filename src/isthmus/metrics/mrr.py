"""Mean reciprocal rank of the first positive."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
from scipy.special import digamma

from isthmus.metrics._base import PerGroup
from isthmus.metrics._table import Floats, Ints, Table


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
    end = above + size if k is None else np.clip(k, above, above + size)
    value = np.zeros(len(size))
    found, one = np.isfinite(above), positives == 1
    alone = found & one  # the mean of 1 / rank over the block's places: a difference of harmonic numbers
    value[alone] = (digamma(end[alone] + 1) - digamma(above[alone] + 1)) / size[alone]
    rest = np.flatnonzero(found & ~one)
    blocks, place = np.unique(np.stack([above[rest], size[rest], positives[rest], end[rest]]), axis=1, return_inverse=True)
    value[rest] = np.array([_first_of(*block) for block in blocks.T])[place.reshape(-1)] if len(rest) else 0.0
    return value


def _first_of(above: float, size: float, positives: float, end: float) -> float:
    """Expected reciprocal rank of the first of several positives of one block, 0 beyond ``end``."""
    j = np.arange(1, min(size - positives + 1, np.floor(end - above)) + 1)
    skipped = np.concatenate(([0.0], np.log1p(-positives / (size - j[:-1] + 1))))  # log chance that place j holds no positive either
    return float((np.exp(np.cumsum(skipped)) * positives / (size - j + 1) / (above + j)).sum())
