"""Logarithmic loss of click probabilities."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from isthmus.metrics._base import Metric, Ratio, Statistic, Undefined
from isthmus.metrics._table import Table


@final
class LogLoss(Metric):
    """Mean negative log-likelihood of the labels, in nats.

    Equation::

        logloss = - 1/N * sum_i ( y_i log p_i + (1 - y_i) log(1 - p_i) ),   p_i = 1 / (1 + exp(-s_i))

    Symbols: i runs over the N rows, y are labels (0 or 1), s scores (logits).  Computed from the logits without rounding
    probabilities to 0 or 1, so a sure and wrong score costs |s|, not infinity.

    Example: a score of 0 says 1/2 and costs log 2, whatever the label.

    >>> round(LogLoss().value(Table.of(label=[1, 0], score=[0, 0])), 4)
    0.6931
    """

    higher_is_better: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("rows",)

    def statistic(self, table: Table) -> Statistic:
        if not len(table):
            return Undefined("no rows")
        loss = np.logaddexp(0.0, table.score) - table.label * table.score
        return Ratio(table.per_user(loss), table.per_user(np.ones(len(table))))
