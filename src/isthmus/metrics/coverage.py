"""Catalogue coverage: the share of a domain's items that are shown to anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np

from isthmus.metrics._base import Metric, Statistic, Undefined
from isthmus.metrics._table import Floats, Table, sums


@final
class Coverage(Metric):
    """The share of the domain's catalogue that stands in somebody's first k places.

    Equation::

        coverage@k = | union over q of { i : r_qi <= k } | / n

    Symbols: q runs over the queries, r_qi is the 1-based rank of item i for query q, n is the number of items in the domain's
    catalogue.  Ge, Delgado-Battenfeld, Jannach (RecSys 2010), "Beyond accuracy".

    Ties count in expectation over their orders, each query's drawn for itself: an item is shown unless every query misses it.
    Of a tie that reaches beyond the stored places some items are not known: the stored ones share its places up to k, and the
    note says so.

    It describes the queries that were asked and grows with their number, so compare it between models on the same queries only.
    It has no interval: a resample of users holds about 63 % of them, and its coverage is always too low.

    Example: two queries show items 1, 2 and 1, 3 of a catalogue of 4.

    >>> table = Table.of([0, 0, 0, 0], [2, 1, 2, 1], [0, 0, 1, 1], rank=[1, 2, 1, 2], item=[1, 2, 1, 3], catalogue=4)
    >>> Coverage(2).value(table)
    0.75
    """

    cutoff: ClassVar[Literal["required", "optional", "none"]] = "required"
    kinds: ClassVar[tuple[str, ...]] = ("full",)
    intervals: ClassVar[bool] = False

    def statistic(self, table: Table) -> Statistic:
        assert self.k is not None
        if not len(table):
            return Undefined("no rows")
        if table.item is None or table.rank is None or not table.catalogue:
            return Undefined("the size of the catalogue is not known")
        if table.places is not None and table.places < min(self.k, table.catalogue):
            return Undefined(f"only the first {table.places} places are kept: score with k={self.k} or more")
        above, size = table.tie
        places = np.clip(self.k - above, 0, size)  # of the row's block, those among the first k
        reached = np.flatnonzero(places > 0)
        places, size, stored = places[reached], size[reached], table.stored[reached]
        with np.errstate(divide="ignore"):  # certain to be shown: the logarithm is -inf
            missed = np.log1p(-np.minimum(places / stored, 1.0))
        item = np.unique(table.item[reached], return_inverse=True)[1]
        shown = -np.expm1(sums(item, missed, int(item.max(initial=-1)) + 1)).sum()
        note = f"of {table.groups:,} queries, and grows with their number: no interval"
        if np.any((stored < size) & (places < size)):
            note = f"{note}; ties reach beyond the stored places and are counted among the stored items"
        return _Whole(float(shown) / table.catalogue, table.users, note)


@dataclass(frozen=True)
class _Whole:
    """A value of all users together, which resamples of users cannot tell about."""

    value: float
    users: int
    note: str

    def resampled(self, weight: Floats) -> Floats:
        return np.full(weight.shape[1], np.nan)
