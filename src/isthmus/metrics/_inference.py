"""Intervals and p-values of estimates whose variance has several parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
from scipy import optimize, special

from isthmus.metrics._table import Floats

SAME = 1e-12  # numbers nearer than this are equal
TINY = 1e-30  # p-values below this are given as this


def effective_dof(variances: Floats, dofs: Floats) -> float:
    """Satterthwaite's degrees of freedom of a sum of independent variances.

    Args:
        variances, dofs: (P,) each part's variance and degrees of freedom; parts without variance do not count.
    """
    held = variances > 0
    if not held.any():
        return float(np.max(dofs, initial=0))
    return float(variances[held].sum() ** 2 / (variances[held] ** 2 / np.maximum(dofs[held], 1e-9)).sum())


def seed_variance(mine: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float]:
    """Variance over trainings of the difference of the means over seeds, and its degrees of freedom.

    Args:
        mine, other: values by seed.  With the same seeds the differences are taken seed by seed; otherwise each side adds its
            own variance.  A side with one seed adds none.
    """
    if mine.keys() == other.keys():
        sides = [np.array([mine[s] - other[s] for s in mine])]
    else:
        sides = [np.array(list(side.values())) for side in (mine, other)]
    sides = [side for side in sides if len(side) > 1]
    variances = np.array([float(np.var(side, ddof=1)) / len(side) for side in sides], np.float64)
    return float(variances.sum()), effective_dof(variances, np.array([len(side) - 1.0 for side in sides]))


def student(difference: float, variances: Floats, dofs: Floats, level: float) -> tuple[float, float, float]:
    """Interval and two-sided p-value of a difference whose variance is a sum of estimated parts.

    The quantile is Cochran and Cox's (1950): each part's own Student quantile, weighted by its variance.  One pooled number of
    degrees of freedom (Satterthwaite) would trust a variance over three seeds too much: far in the tail, where a correction for
    many comparisons looks, its error rate is several times the stated one.

    Args:
        difference: the estimate.
        variances, dofs: (P,) each part's variance and degrees of freedom.
        level: of the interval.

    Returns:
        low, high, p.
    """
    error = float(np.sqrt(variances.sum()))
    if error <= SAME:
        return difference, difference, 1.0
    held = variances > 0
    weight, dof = variances[held] / variances.sum(), np.maximum(dofs[held], 1e-9)

    def quantile(p: float) -> float:
        return float(-(weight * special.stdtrit(dof, p / 2)).sum())

    size, half = abs(difference) / error, quantile(1 - level) * error
    if quantile(TINY) <= size:
        p = TINY
    else:  # quantile falls from there to 0 at p = 1
        p = math.exp(cast("float", optimize.brentq(lambda x: quantile(math.exp(x)) - size, math.log(TINY), 0.0)))
    return difference - half, difference + half, p


def holm(p: Floats) -> Floats:
    """P-values corrected for their number by Holm (1979): below alpha anywhere by chance alone with probability <= alpha."""
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    back = np.empty_like(corrected)
    back[order] = corrected
    return back
