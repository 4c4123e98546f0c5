"""The moments at which timed events are cut, found without a sorted copy of their times."""

from __future__ import annotations

import math

import numpy as np

from isthmus.data.chunks import chunks, tally

BITS = 16  # of the numbers of events that are held at once: few enough for the cache


def moment_at(time: np.ndarray, share: float, of: str) -> int | None:
    """The moment of an event such that what comes before it is nearest to a share of all; the earlier one of two.

    Args:
        time: (N,) integers, N > 0.
        share: from 0 to 1.
        of: shares of what: ``events``, or ``time``, from the first event to just after the last.

    Returns:
        The moment, or None: after all events.
    """
    first, last = int(time.min()), int(time.max())
    if of == "time":
        target = (last + 1 - first) * share
        moment = max(int(time[rows].max(where=time[rows] <= first + math.floor(target), initial=first)) for rows in chunks(len(time)))
        later = _next(time, moment)
        before, after = moment - first, (last + 1 if later is None else later) - first
    else:
        target = len(time) * share
        moment, before, after = _holding(time, min(math.floor(target), len(time) - 1), first, last)
        later = _next(time, moment)
    return moment if target - before <= after - target else later


def _holding(time: np.ndarray, place: int, low: int, high: int) -> tuple[int, int, int]:
    """The moment of event number ``place`` in order of time, and how many events come before it, and before the next moment."""
    before, first, last = 0, low, high

    def places(rows: slice) -> np.ndarray:
        inside = time[rows]
        if (low, high) != (first, last):
            inside = inside[(inside >= low) & (inside <= high)]
        distance = inside.view(np.uint64) - np.uint64(low % 2**64)  # of 64-bit numbers: needs 64 bits and no sign
        distance >>= np.uint64(shift)
        return distance.view(np.int64)

    while True:
        shift = max(0, (high - low).bit_length() - BITS)
        count = tally(places, len(time), (high - low >> shift) + 1)
        after = before + np.cumsum(count)
        found = int(np.searchsorted(after, place, side="right"))
        before = int(after[found] - count[found])
        low, high = low + (found << shift), min(low + (found + 1 << shift) - 1, high)
        if not shift:
            return low, before, int(after[found])


def _next(time: np.ndarray, moment: int) -> int | None:
    """The first moment after this one; None: there is none."""
    most = np.iinfo(time.dtype).max
    found = [int(time[rows].min(where=time[rows] > moment, initial=most)) for rows in chunks(len(time))]
    return least if (least := min(found)) > moment and (time == least).any() else None
