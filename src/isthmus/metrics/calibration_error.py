"""Expected calibration error of click probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from isthmus.metrics._base import Metric, Statistic, Undefined, sigmoid
from isthmus.metrics._table import Floats, Table, sums

BINS = 15


@final
class CalibrationError(Metric):
    """Expected calibration error over 15 bins of equal mass.

    Equation::

        ECE = sum_b n_b / N * | mean of p in b - mean of y in b |,   p = 1 / (1 + exp(-s))

    Symbols: b runs over the bins, n_b is a bin's number of rows, N all rows, p predicted probabilities, y labels (0 or 1),
    s scores (logits).  The bins are cut at quantiles of p; equal p stay in one bin, so there may be fewer than 15.

    Noise alone makes it positive: a perfect model with 100 rows in a bin still misses by some 4 points there.  Compare
    models on the same rows, and do not read an interval's lower end above 0 as proof of miscalibration.

    Resamples of users keep the bins.

    Example: one bin, since all say p = 1/2; a quarter of the labels are 1, so it is off by 1/4.

    >>> CalibrationError().value(Table.of(label=[1, 0, 0, 0], score=[0, 0, 0, 0]))
    0.25
    """

    higher_is_better: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("rows",)

    def statistic(self, table: Table) -> Statistic:
        if not len(table):
            return Undefined("no rows")
        p = sigmoid(table.score)
        edges = np.unique(np.quantile(p, np.arange(1, BINS) / BINS, method="inverted_cdf"))
        cell = np.searchsorted(edges, p) * table.users + table.user
        gap = sums(cell, p - table.label, (len(edges) + 1) * table.users)
        return _Gaps(gap.reshape(len(edges) + 1, table.users), table.per_user(np.ones(len(table))))


@dataclass(frozen=True)
class _Gaps:
    """Sums of p - y by bin and user (bins, U), and rows by user (U,)."""

    gap: Floats
    rows: Floats
    note: str | None = None

    @property
    def users(self) -> int:
        return len(self.rows)

    @property
    def value(self) -> float:
        return float(np.abs(self.gap.sum(1)).sum() / self.rows.sum())

    def resampled(self, weight: Floats) -> Floats:
        rows = self.rows @ weight
        return np.divide(np.abs(self.gap @ weight).sum(0), rows, out=np.full(rows.shape, np.nan), where=rows > 0)
