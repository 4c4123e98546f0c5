"""Root mean squared error of ratings."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from isthmus.metrics._base import Metric, Ratio, Statistic, Undefined
from isthmus.metrics._table import Table


@final
class RMSE(Metric):
    """Root mean squared error.

    Equation::

        RMSE = sqrt( 1/N * sum_i (s_i - y_i)^2 )

    Symbols: i runs over the N rows, s are scores (predicted ratings, as they are: not clipped), y labels (ratings).

    Example: errors of 1 and 7, sqrt((1 + 49) / 2).

    >>> RMSE().value(Table.of(label=[4, 1], score=[3, 8]))
    5.0
    """

    higher_is_better: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("rows",)
    binary: ClassVar[bool] = False

    def statistic(self, table: Table) -> Statistic:
        if not len(table):
            return Undefined("no rows")
        squared = (table.score - table.label) ** 2
        return Ratio(table.per_user(squared), table.per_user(np.ones(len(table))), finish=np.sqrt)
