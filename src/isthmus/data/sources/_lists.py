"""Held-out rows and candidate lists: checked when given, drawn when not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isthmus.errors import SourceError

CHUNK = 8_000_000  # numbers per temporary matrix


@dataclass(frozen=True, slots=True)
class Queries:
    """Lists of one domain, all numbers indices of Events: user (Q,), positive (Q,), item (Q, width)."""

    user: np.ndarray
    positive: np.ndarray
    item: np.ndarray


def held_out(user: np.ndarray, item: np.ndarray, minimum: int, rng: np.random.Generator) -> np.ndarray:
    """One random row of each user with at least ``minimum`` rows, as ascending row numbers.

    A row whose (user, item) pair occurs twice is never taken: its twin would stay in training.
    """
    pair = user.astype(np.int64) << 32 | item
    _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
    eligible = np.flatnonzero((count[inverse] == 1) & (np.bincount(user)[user] >= minimum))
    order = eligible[np.lexsort((rng.random(len(eligible)), user[eligible]))]
    _, first = np.unique(user[order], return_index=True)
    return np.sort(order[first])


def draw_lists(
    user: np.ndarray,
    positive: np.ndarray,
    own_user: np.ndarray,
    own_item: np.ndarray,
    catalogue: np.ndarray,
    negatives: int,
    rng: np.random.Generator,
) -> Queries:
    """For each query its positive and ``negatives`` items, uniform without replacement, shuffled.

    Args:
        user, positive: (Q,) the queries.
        own_user, own_item: (N,) pairs that may not be drawn; the positives are excluded as well.
        catalogue: items to draw from.

    Raises:
        SourceError: a user has fewer than ``negatives`` items left.
    """
    catalogue = np.unique(catalogue)
    lists = np.empty((len(user), negatives + 1), np.int32)
    for rows, banned in _banned(user, positive, own_user, own_item, catalogue):
        free = len(catalogue) - int(banned.sum(axis=1).max())
        if free < negatives:
            raise SourceError(f"a user has {free} items left to draw from", f"at least {negatives}", "draw shorter lists")
        key = rng.random(banned.shape, dtype=np.float32)
        key[banned] = np.inf
        lists[rows, 1:] = catalogue[np.argpartition(key, negatives - 1, axis=1)[:, :negatives]]
        lists[rows, 0] = positive[rows]
    return Queries(user, positive, rng.permuted(lists, axis=1))


def _banned(
    user: np.ndarray, positive: np.ndarray, own_user: np.ndarray, own_item: np.ndarray, catalogue: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of queries with a mask (block, catalogue) of the items that may not be drawn."""
    order = np.argsort(own_user, kind="stable")
    own_user, own_item = own_user[order], own_item[order]
    block = max(1, CHUNK // max(1, len(catalogue)))
    for start in range(0, len(user), block):
        rows = slice(start, min(start + block, len(user)))
        begin, end = np.searchsorted(own_user, user[rows]), np.searchsorted(own_user, user[rows], side="right")
        length = end - begin
        query = np.repeat(np.arange(len(length)), length)
        events = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
        row = np.concatenate([query, np.arange(len(length))])
        item = np.concatenate([own_item[events], positive[rows]])
        place = np.minimum(np.searchsorted(catalogue, item), len(catalogue) - 1)
        inside = catalogue[place] == item
        mask = np.zeros((len(length), len(catalogue)), bool)
        mask[row[inside], place[inside]] = True
        yield rows, mask
