"""Candidates shared by all rows of a domain in a batch: other rows' items, drawn ones, or the whole catalogue.

A model whose score is a dot product compares every row with every shared candidate in one matrix product, so a
thousand of them cost less than sixty of each row's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.catalogues import Catalogues
from isthmus.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isthmus.data.dataset import Dataset

POOLED = ("in_batch", "mixed", "drawn", "full")
NEVER = -60.0  # log of "not expected at all": the only row of its domain


@dataclass(frozen=True)
class Shared:
    """One batch's candidates; see ``isthmus.batch.Pool`` for the columns."""

    item: np.ndarray
    offsets: np.ndarray
    own: np.ndarray | None
    log_q: np.ndarray | None


class Pools:
    """Finds the candidates of each batch.

    - ``in_batch``: the rows' own items; n_d rows of domain d hold item i (n_d - 1) * p_d(i) times beside a row's
      own, in expectation, with p_d(i) its share of the domain's positive training events.
    - ``mixed`` (Yang et al., WWW 2020): the same, and n items drawn uniformly with replacement from the domain's
      catalogue C_d: n / |C_d| more of each.  Items that nobody chose become negatives too.
    - ``drawn``: n items drawn with replacement in proportion to popularity ** alpha (at least 1 ** alpha), and no row's own: for batches of
      so many rows that comparing each with every other one would cost more than all the rest.
    - ``full``: the domain's train catalogue, each item once: no sampling, so nothing to correct.

    Args:
        dataset: where catalogues and popularity come from.
        how: one of ``POOLED``.
        n: items drawn for each domain (``mixed``, ``drawn``).
        alpha: exponent of the popularity (``drawn``); 0: all items alike.

    Raises:
        ConfigError: no such way, or a negative n.
    """

    def __init__(self, dataset: Dataset, how: str, n: int = 0, alpha: float = 0.0) -> None:
        if how not in POOLED:
            raise ConfigError(f"sampler {how!r}", f"one of {POOLED}", nearest(how, POOLED))
        if n < 0:
            raise ConfigError(f"{n} negatives", "0 or more", "correct it")
        if how == "drawn" and not n:
            raise ConfigError("sampler 'drawn' without negatives", "1 or more", "give negatives, such as 1024")
        self.how, self.n, self.shown = how, n if how in ("mixed", "drawn") else 0, Catalogues(dataset)
        count = self.shown.popularity
        weight = np.maximum(count, 1.0) ** alpha if how == "drawn" else count
        self._share = np.concatenate([_share(part) for part in self.shown.split(weight)])
        if how == "drawn":  # cumulative shares, domain after domain: a number from [d, d + 1) falls to an item of domain d
            self._ladder = np.concatenate([part.cumsum() + d for d, part in enumerate(self.shown.split(self._share))])

    def sample(self, offsets: Sequence[int], item: np.ndarray, rng: np.random.Generator) -> Shared:
        """The candidates of one batch.

        Args:
            offsets: D + 1, where each domain's rows begin.
            item: (B,) the rows' own item codes.
            rng: the draws depend on nothing else.

        Raises:
            DataError: an item that its domain's train catalogue does not hold.
        """
        rows = np.diff(offsets)
        domain = np.repeat(np.arange(len(rows)), rows)
        shown = self.shown
        place, known = shown.find(domain, item)
        if not known.all():
            came = "a training row whose item its domain does not show"
            raise DataError(came, "items of the domain's train catalogue", "encode the data again")
        if self.how == "full":
            present = rows > 0
            size = np.where(present, shown.size, 0)
            bounds = np.append(0, np.cumsum(size))
            return Shared(shown.item[np.repeat(present, shown.size)], bounds, bounds[domain] + place - shown.start[domain], None)
        if self.how == "drawn":
            return self._drawn(rows > 0, rng)
        drawn = np.where(rows > 0, self.n, 0)
        of = np.repeat(np.arange(len(rows)), drawn)
        extra = shown.start[of] + rng.integers(shown.size[of]) if len(of) else np.zeros(0, np.int64)
        bounds = np.append(0, np.cumsum(rows + drawn))
        own = bounds[domain] + np.arange(len(item)) - np.asarray(offsets)[domain]
        found = np.empty(bounds[-1], np.int64)
        rest = np.ones(len(found), bool)
        rest[own] = False
        found[own], found[rest] = place, extra
        held = np.repeat(np.arange(len(rows)), rows + drawn)
        expected = (rows[held] - 1) * self._share[found] + drawn[held] / shown.size[held]
        log_q = np.full(len(found), NEVER, np.float32)
        np.log(expected, out=log_q, where=expected > 0, casting="same_kind")
        return Shared(shown.item[found], bounds, own, log_q)

    def _drawn(self, present: np.ndarray, rng: np.random.Generator) -> Shared:
        """The candidates of the domains that have rows."""
        of = np.repeat(np.flatnonzero(present), self.n)
        place = np.searchsorted(self._ladder, of + rng.random(len(of)), side="right")
        place = np.clip(place, self.shown.start[of], self.shown.start[of + 1] - 1)  # rounding of the sums
        log_q = np.log(self.n * self._share[place]).astype(np.float32)
        return Shared(self.shown.item[place], np.append(0, np.cumsum(np.where(present, self.n, 0))), None, log_q)


def _share(count: np.ndarray) -> np.ndarray:
    """Counts -> shares of their sum."""
    return count / max(count.sum(), 1.0)
