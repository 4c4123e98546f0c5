"""The bootstrap over users: how often each user counts in a resample, and intervals from resampled values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import special

from isthmus.metrics._table import Floats

Counts = NDArray[np.uint8]
CELLS = 1 << 22  # users x resamples held at once: 32 MiB
KEPT = 1 << 26  # users x resamples of one set of counts that is kept: 64 MiB
MOST = 256  # resamples held at once, however few the users
ENOUGH = 0.9  # share of resamples in which a metric must be defined for an interval


def user_weights(users: int, resamples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
    """How often each user counts in each resample, a block of resamples at a time.

    Each count is Poisson with mean 1, independently: the bootstrap without its fixed total, which metrics that are ratios do
    not feel, and the same for a user whatever the other users do.

    Args:
        users: number of users.
        resamples: in all.
        seed: the same seed and number of users give the same counts.

    Yields:
        (columns, weight): which resamples, and their (users, columns) counts.
    """
    for columns, count in user_counts(users, resamples, seed):
        yield columns, count.astype(np.float64)


def user_counts(users: int, resamples: int, seed: int) -> Iterable[tuple[slice, Counts]]:
    """``user_weights`` as small integers; those of a comparison, in which all tables have the same users, are drawn once."""
    return _kept(users, resamples, seed) if 0 < users * resamples <= KEPT else _drawn(users, resamples, seed)


@functools.lru_cache(maxsize=2)
def _kept(users: int, resamples: int, seed: int) -> tuple[tuple[slice, Counts], ...]:
    return tuple(_drawn(users, resamples, seed))


def _drawn(users: int, resamples: int, seed: int) -> Iterator[tuple[slice, Counts]]:
    pmf = np.rint(np.exp(-1) / special.factorial(np.arange(9)) * 65536).astype(np.int64)
    pmf[0] += 65536 - pmf.sum()  # rounding: 65,536 equally likely draws
    count = np.repeat(np.arange(9, dtype=np.uint8), pmf)
    rng = np.random.Generator(np.random.Philox(seed))
    step = min(MOST, max(1, CELLS // max(users, 1)))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        yield slice(start, stop), count[rng.integers(0, 65536, (users, stop - start), np.uint16)]


def interval(replicates: Floats, dof: float, level: float = 0.95) -> tuple[float, float] | str:
    """A percentile interval, widened for few users, or why there is none.

    The percentiles are those of Student's t with ``dof`` degrees of freedom, put on the normal scale and stretched by
    sqrt(n / (n - 1)): Hesterberg (2015), "What Teachers Should Know About the Bootstrap", the expanded percentile interval.
    A plain percentile interval is too short for few users.

    Args:
        replicates: (R,) resampled values, NaN where not defined.
        dof: users - 1, or the effective number.
        level: of confidence.
    """
    if dof <= 0:
        return "one user: no interval"
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < ENOUGH * len(replicates):
        return f"defined in {len(defined)} of {len(replicates)} resamples of users: no interval"
    if np.ptp(defined) <= 1e-12 * np.abs(defined).max():
        return "no variation between users: no interval"
    tail = float(special.ndtr(np.sqrt((dof + 1) / dof) * special.stdtrit(dof, (1 - level) / 2)))
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)
