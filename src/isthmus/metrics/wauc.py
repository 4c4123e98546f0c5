"""Weighted AUC: each user's own AUC over all her rows, weighted by clicks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

from isthmus.metrics._base import LISTED, Metric, Statistic
from isthmus.metrics._table import Table
from isthmus.metrics.gauc import GAUC


@final
class WAUC(Metric):
    """Weighted AUC: each user's own AUC, weighted by her number of positives.

    Equation::

        WAUC = sum_u P_u AUC_u / sum_u P_u

    Symbols: u runs over the users with rows of both classes, P_u is the user's number of positive rows, AUC_u the share of her
    positive-negative pairs that are ordered right, ties counting one half.  All her rows in the domain count together,
    whatever query they are of: this is the WAUC of MAN (Lin et al., WSDM 2024), whose instances are queries of their own.
    ``gauc`` compares within each query only; of logged rows, whose groups are users, the two are the same.

    Example: two queries of one user.  Within each the positive wins, but of all four pairs one is lost (1 < 2): 3 / 4.

    >>> table = Table.of(group=[0, 0, 1, 1], user=[7, 7, 7, 7], label=[1, 0, 1, 0], score=[3, 2, 1, 0])
    >>> WAUC().value(table), GAUC().value(table)
    (0.75, 1.0)
    """

    kinds: ClassVar[tuple[str, ...]] = LISTED

    def statistic(self, table: Table) -> Statistic:
        return GAUC().statistic(replace(table, group=table.user, relevant=None))
