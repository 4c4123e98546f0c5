"""The smallest types that hold columns of a data set: less to write, to keep in memory and to read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.data.events import Events


@dataclass(frozen=True)
class Widths:
    """Types of columns.

    Attributes:
        domain: int8 or int16, of indices, and of -1 for nobody's.
        time: int32 where every time lies in 0 .. 2**31 - 1, so that a difference of two fits too; else int64.
    """

    domain: np.dtype
    time: np.dtype

    @classmethod
    def of(cls, events: Events) -> Widths:
        """Those for some events."""
        return cls(domain_type(len(events.schema.domains)), time_type(events.time))


def domain_type(domains: int) -> np.dtype:
    """The type of so many indices, and of -1: it has one number more below 0 than above."""
    return np.min_scalar_type(-domains)


def time_type(time: np.ndarray | None) -> np.dtype:
    """The type of times (N,)."""
    narrow = time is None or (time.min(initial=0) >= 0 and time.max(initial=0) < 2**31)
    return np.dtype(np.int32 if narrow else np.int64)
