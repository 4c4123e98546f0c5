"""Intervals and p-values of estimates whose variance has several parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from isthmus.metrics._table import Floats

SAME = 1e-12  # numbers nearer than this are equal


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

    Args:
        difference: the estimate.
        variances, dofs: (P,) each part's variance and degrees of freedom.
        level: of the interval.

    Returns:
        low, high, p.
    """
    error, dof = float(np.sqrt(variances.sum())), effective_dof(variances, dofs)
    if error <= SAME:
        return difference, difference, 1.0
    half = float(stats.t.ppf((1 + level) / 2, dof)) * error
    return difference - half, difference + half, 2 * float(stats.t.sf(abs(difference) / error, dof))


def holm(p: Floats) -> Floats:
    """P-values corrected for their number by Holm (1979): below alpha anywhere by chance alone with probability <= alpha."""
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    back = np.empty_like(corrected)
    back[order] = corrected
    return back
