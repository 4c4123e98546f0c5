"""Mean absolute error of ratings."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from isthmus.metrics._base import Metric, Ratio, Statistic, Undefined
from isthmus.metrics._table import Table


@final
class MAE(Metric):
    """Mean absolute error.

    Equation::

        MAE = 1/N * sum_i | s_i - y_i |

    Symbols: i runs over the N rows, s are scores (predicted ratings, as they are: not clipped), y labels (ratings).

    Example: errors of 1 and 2.

    >>> MAE().value(Table.of(label=[4, 5], score=[3, 7]))
    1.5
    """

    higher_is_better: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("rows",)
    binary: ClassVar[bool] = False

    def statistic(self, table: Table) -> Statistic:
        if not len(table):
            return Undefined("no rows")
        return Ratio(table.per_user(np.abs(table.score - table.label)), table.per_user(np.ones(len(table))))
