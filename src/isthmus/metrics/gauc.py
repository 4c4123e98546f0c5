"""Grouped AUC: each user's own AUC, weighted by clicks."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from isthmus.metrics._base import LISTED, PerGroup
from isthmus.metrics._table import Floats, Table, sums


@final
class GAUC(PerGroup):
    """Grouped AUC: each group's own AUC, weighted by its number of positives.

    Equation::

        GAUC = sum_g P_g AUC_g / sum_g P_g

    Symbols: g runs over the groups (a user in a domain; for candidate lists, a query) that hold both classes, P_g is the
    group's number of positive rows, AUC_g the share of its positive-negative pairs that are ordered right, ties counting
    one half.  Groups with one class have no pairs and are left out.

    Of logged rows this is the "WAUC" of the multi-domain papers, whose weight is the user's number of clicks (of candidate lists
    ``wauc`` is).  DIN's GAUC weighs by impressions instead; the two agree when every user has the same click rate.

    Example: user a wins both of two pairs (one positive), user b one of two (two positives): (1 * 1 + 2 * 0.5) / 3.

    >>> table = Table.of(group=[*"aaabbb"], label=[1, 0, 0, 1, 1, 0], score=[3, 2, 1, 3, 1, 2])
    >>> round(GAUC().value(table), 4)
    0.6667
    """

    kinds: ClassVar[tuple[str, ...]] = LISTED
    left_out: ClassVar[str] = "of one class only"

    def per_group(self, table: Table) -> Floats:
        blocks = table.blocks
        before = np.cumsum(blocks.positives) - blocks.positives  # positives of earlier blocks, over all groups
        positives = table.group_positives
        negatives = np.bincount(table.group, minlength=table.groups) - positives
        earlier = np.cumsum(positives) - positives  # of them, those of earlier groups
        lost = blocks.above - (before - earlier[blocks.group]) + 0.5 * (blocks.size - blocks.positives)  # pairs of each positive
        won = blocks.positives * (negatives[blocks.group] - lost)
        pairs = positives * negatives
        total = sums(blocks.group, won, table.groups)
        return np.divide(total, pairs, out=np.full(table.groups, np.nan), where=pairs > 0)

    def group_weight(self, table: Table) -> Floats:
        return table.group_positives.astype(np.float64)
