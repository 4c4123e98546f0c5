"""The first k of more columns than are held at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import DataError

ROWS, COLUMNS = 256, 1 << 15  # scores held at once: 32 MiB; columns enough that the product outweighs finding the best
WIDE, EVERY = 1 << 13, 16  # rows this wide are looked through by way of every so many columns
Pairs = tuple[np.ndarray, np.ndarray]


def first(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row, best first; of equal ones the earlier column.

    Args:
        scores: (Q, n).
        k: at most n.

    Returns:
        (Q, k) scores and (Q, k) int64 columns.

    Raises:
        DataError: a score that is not a number.
    """
    if not k:
        return scores[:, :0], torch.zeros(len(scores), 0, dtype=torch.int64, device=scores.device)
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.shape[1] >= max(WIDE, 2 * EVERY * k):
        return _above_a_bound(scores, k)
    value, column = scores.topk(min(k + 1, scores.shape[1]), 1)
    _check(value[:, 0].isnan().any())
    # topk leaves the order of equal scores open: where it matters, the row is gone through again.
    tied = ((value[:, 1:] == value[:, :-1]) & (value[:, 1:] > -torch.inf)).any(1).nonzero()[:, 0]
    value, column = value[:, :k], column[:, :k]
    if len(tied):
        some, least = scores[tied], value[tied, -1:]
        level = some == least
        kept = level & (level.cumsum(1) <= k - (some > least).sum(1, keepdim=True)) | (some > least)
        place = kept.nonzero()[:, 1].view(len(tied), k)
        sorted_, order = some.gather(1, place).sort(dim=1, descending=True, stable=True)
        value, column = value.clone(), column.clone()
        value[tied], column[tied] = sorted_, place.gather(1, order)
    return value, column


def _above_a_bound(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``first`` of wide rows: the k-th best of some columns is a bound that few columns reach, and only those are put in order."""
    value, column = np.empty((len(scores), k), np.float32), np.empty((len(scores), k), np.int64)
    for n, row in enumerate(scores.numpy()):
        below = row < _kth(row[::EVERY], k)
        place = np.flatnonzero(np.logical_not(below, out=below))  # finds what is not a number too
        some = row[place]
        _check(np.isnan(some).any())
        kept = some >= _kth(some, k)
        place, some = place[kept], some[kept]
        order = np.argsort(-some, kind="stable")[:k]
        value[n], column[n] = some[order], place[order]
    return torch.from_numpy(value), torch.from_numpy(column)


def _kth(values: np.ndarray, k: int) -> np.float32:
    """The k-th largest."""
    return np.partition(values, len(values) - k)[len(values) - k]


def _check(wrong: bool | Tensor | np.bool_) -> None:
    if wrong:
        raise DataError("scores that are not numbers", "finite scores", "look for a training that diverged (nan, inf)")


class Running:
    """The k best of what has come so far, for Q rows; memory does not grow with what comes.

    Columns must come in ascending order, so that of equal scores the earlier column is kept, in whatever blocks they come.

    Attributes:
        score: (Q, k) float32, best first, -inf where too little has come.
        column: (Q, k) int64, -1 there.
    """

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.score = torch.full((rows, k), -torch.inf, device=device)
        self.column = torch.full((rows, k), -1, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, start: int, rows: slice = slice(None)) -> None:
        """Scores (rows, n) of the columns ``start`` to ``start + n``; -inf is never kept."""
        score, column = first(scores.float(), min(self.k, scores.shape[1]))
        column = torch.where(score > -torch.inf, column + start, -1)
        if start:
            score, column = torch.cat([self.score[rows], score], 1), torch.cat([self.column[rows], column], 1)
            score, order = first(score, self.k)
            column = column.gather(1, order)
        self.score[rows, : score.shape[1]], self.column[rows, : score.shape[1]] = score, column


def dots(queries: Tensor, vectors: Callable[[slice], Tensor]) -> Callable[[slice], Callable[[slice], Tensor]]:
    """Dot products of queries (Q, d) with vectors (columns -> (n, d)), for ``scan``; all products share one piece of memory."""
    room = queries.new_empty(0)

    def block(columns: slice) -> Callable[[slice], Tensor]:
        turned = vectors(columns).T

        def score(rows: slice) -> Tensor:
            nonlocal room
            some = queries[rows]
            cells = len(some) * turned.shape[1]
            if len(room) < cells:  # fresh pages for every block would take as long as half of the product
                room = queries.new_empty(cells)
            return torch.mm(some, turned, out=room[:cells].view(len(some), -1))

        return score

    return block


def scan(
    rows: int, columns: int, k: int, block: Callable[[slice], Callable[[slice], Tensor]], hide: Pairs | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The k best of all columns for all rows, through blocks of ``ROWS x COLUMNS`` scores.

    Args:
        rows, columns: how many.
        k: how many to keep.
        block: some columns -> some rows -> their scores, which are overwritten; columns come once each, in order, so that
            what they need is computed once.
        hide: rows and columns of the cells left out, both (P,) int64.
        device: of the scores.

    Returns:
        (Q, k) float32 scores, best first, -inf where there are too few; (Q, k) int64 columns, -1 there.
    """
    best = Running(rows, k, device)
    across = max(1, -(-rows // ROWS))
    row, column = hide or (np.zeros(0, np.int64), np.zeros(0, np.int64))
    cell = column // COLUMNS * across + row // ROWS
    order = np.argsort(cell, kind="stable")
    row, column, cell = row[order], column[order], cell[order]
    for start in range(0, columns if rows else 0, COLUMNS):
        score = block(slice(start, min(start + COLUMNS, columns)))
        for top in range(0, rows, ROWS):
            some = slice(top, min(top + ROWS, rows))
            found = score(some)
            own = slice(*np.searchsorted(cell, start // COLUMNS * across + top // ROWS + np.arange(2)))
            if own.stop > own.start:
                at = torch.from_numpy(row[own] - top).to(device), torch.from_numpy(column[own] - start).to(device)
                found[at] = -torch.inf
            best.add(found, start, some)
    return best.score, best.column
