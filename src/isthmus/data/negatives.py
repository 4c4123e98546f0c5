"""Sampled negatives: items of the row's own domain that its user is not known to have chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.catalogues import Catalogues
from isthmus.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

HOW = ("uniform", "popularity")
TRIES = 8  # draws before the items a user does not know are listed one by one
CELLS = 4_000_000  # of the largest temporary table of that listing
COINS = 1 << 32


class Negatives:
    """Draws n negatives per row from the train catalogue of the row's domain.

    Sampler: ``q(i) ~ 1`` (uniform) or ``q(i) ~ max(count_i, 1) ** alpha`` (popularity), with ``count_i`` the
    domain's positive training events of item i.  A row's negatives follow q restricted to the items that are
    neither its positive nor among its user's training positives in the domain.  Where no such item is left:
    q restricted to the items other than the positive; in a catalogue of one item, that item.

    Args:
        dataset: where catalogues, popularity and known positives come from.
        n: negatives per row.
        how: ``uniform`` or ``popularity``.
        alpha: exponent of the popularity.

    Raises:
        ConfigError: no such sampler, or a negative n.
    """

    def __init__(self, dataset: Dataset, n: int, how: str = "uniform", alpha: float = 0.75) -> None:
        if how not in HOW:
            raise ConfigError(f"sampler {how!r}", f"one of {HOW}", nearest(how, HOW))
        if n < 0:
            raise ConfigError(f"{n} negatives", "0 or more", "correct it")
        self.n, self._known = n, dataset.known
        self.shown = shown = Catalogues(dataset)
        self._weight = np.maximum(shown.popularity, 1.0) ** alpha if how == "popularity" else np.ones(len(shown.item))
        weights = shown.split(self._weight)
        total = np.array([w.sum() for w in weights])
        self._log_q = np.log(self._weight / np.repeat(total, shown.size))
        self._rare = -np.log(np.maximum(total, 1.0))  # weight 1: an item outside the catalogue
        tables = [_alias(w, int(start)) for w, start in zip(weights, shown.start, strict=False)]
        self._keep, self._alias = (np.concatenate(column) for column in zip(*tables, strict=True))

    def sample(
        self, user: np.ndarray, offsets: np.ndarray, positive: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws negatives for rows ordered by domain.

        Args:
            user: (B,) user codes.
            offsets: (D + 1,) where each domain's rows begin.
            positive: (B,) item codes.
            rng: the draws depend on nothing else.

        Returns:
            Items (B, n) int64, and log q (B, 1 + n) float32 of the positive (first) and the negatives.  Log q is
            that of q over the whole catalogue: what restricting q to a row's allowed items adds is one constant
            per row, which a softmax over the row cancels.  A positive outside the catalogue counts as weight 1.

        Raises:
            DataError: a domain with rows and without a catalogue.
        """
        domain = np.repeat(np.arange(len(self.shown.size)), np.diff(offsets))
        if (self.shown.size[domain] == 0).any():
            raise DataError("rows of a domain that shows no item", "a catalogue for every domain in use", "check the items shown by domain")
        row = np.repeat(np.arange(len(user)), self.n)
        place = self._draw(domain[row], rng)
        open_ = np.flatnonzero(self._refused(user, domain, positive, place.reshape(-1, self.n)))
        for _ in range(TRIES):
            if not open_.size:
                break
            at = row[open_]
            place[open_] = self._draw(domain[at], rng)
            open_ = open_[self._refused(user[at], domain[at], positive[at], place[open_, None])[:, 0]]
        if open_.size:
            place[open_] = self._listed(user, domain, positive, row[open_], rng)
        log_q = np.concatenate([self._log_q_of(domain, positive)[:, None], self._log_q[place].reshape(-1, self.n)], axis=1)
        return self.shown.item[place].reshape(-1, self.n), log_q.astype(np.float32)

    def _draw(self, domain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One place in the catalogues per domain index given, from q; by the alias method, at a cost that no size changes."""
        point = rng.random(len(domain)) * self.shown.size[domain]
        bucket = point.astype(np.int64)
        place = self.shown.start[domain] + bucket
        return np.where(point - bucket < self._keep[place], place, self._alias[place])

    def _refused(self, user: np.ndarray, domain: np.ndarray, positive: np.ndarray, place: np.ndarray) -> np.ndarray:
        """(b, k): which places (b, k) hold their row's positive, or an item that its user is known to have chosen."""
        item = self.shown.item[place]
        return self._known(user, domain, item) | (item == positive[:, None])

    def _listed(self, user: np.ndarray, domain: np.ndarray, positive: np.ndarray, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A place for each entry of ``row``, drawn from the list of all that is allowed (users who know most of a catalogue)."""
        place = np.empty(len(row), np.int64)
        rows, slot_of = np.unique(row, return_inverse=True)
        coin = rng.integers(COINS, size=len(row)) / COINS  # coarse enough that adding a row number is exact
        for d in np.unique(domain[rows]):
            ours = np.flatnonzero(domain[rows] == d)
            for chunk in np.array_split(ours, max(1, -(-len(ours) * int(self.shown.size[d]) // CELLS))):
                slots = np.flatnonzero((slot_of >= chunk[0]) & (slot_of <= chunk[-1]))
                share = self._allowed_share(user[rows[chunk]], int(d), positive[rows[chunk]])
                at = slot_of[slots] - chunk[0]
                ladder = (share.cumsum(1) / share.sum(1, keepdims=True) + np.arange(len(chunk))[:, None]).ravel()
                place[slots] = self.shown.start[d] + np.searchsorted(ladder, at + coin[slots], side="right") % self.shown.size[d]
        return place

    def _allowed_share(self, user: np.ndarray, domain: int, positive: np.ndarray) -> np.ndarray:
        """(b, catalogue) weights of the items that each row may draw, 0 for the others."""
        ours = slice(self.shown.start[domain], self.shown.start[domain + 1])
        item = np.broadcast_to(self.shown.item[ours], (len(user), int(self.shown.size[domain])))
        weight = np.broadcast_to(self._weight[ours], item.shape)
        other = weight * (item != positive[:, None])
        unknown = other * ~self._known(user, domain, item)
        share = np.where(unknown.any(1, keepdims=True), unknown, other)
        return np.where(share.any(1, keepdims=True), share, weight)

    def _log_q_of(self, domain: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Log q of given items in given domains."""
        place, known = self.shown.find(domain, item)
        return np.where(known, self._log_q.take(place, mode="clip"), self._rare[domain])


def _alias(weight: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table without a loop.

    Buckets below the mean are filled up from those above it, both taken in order: what the first light
    buckets lack and what the first heavy ones have to spare are two running sums, and where one falls in the
    other tells who fills whom.  A heavy bucket emptied below the mean is filled up by the next heavy one.

    Args:
        weight: (N,) positive.
        start: added to the alias.

    Returns:
        (N,) probability of staying in a bucket, and (N,) the bucket to go to otherwise.
    """
    mean = weight / weight.mean() if len(weight) else weight
    keep, alias = np.ones(len(weight)), np.arange(len(weight))
    bar = min(1.0, mean.max(initial=0))  # rounding may leave every bucket just below 1
    light, heavy = np.flatnonzero(mean < bar), np.flatnonzero(mean >= bar)
    if light.size:
        lack = np.append(0.0, np.cumsum(1 - mean[light]))
        spare = np.cumsum(mean[heavy] - 1)
        filler = np.minimum(np.searchsorted(spare, lack[:-1], side="right"), len(heavy) - 1)
        keep[light], alias[light] = mean[light], heavy[filler]
        given = lack[np.searchsorted(filler, np.arange(len(heavy)), side="right")]  # once a heavy bucket has filled its last light one
        keep[heavy[:-1]] = np.clip(1 - (given - spare), 0, 1)[:-1]
        alias[heavy[:-1]] = heavy[1:]
    return keep, alias + start
