"""Ranks in a matrix of scores, ties sharing their mean rank, and how many are tied."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.layers.topk import first

WORKING_SET = 1 << 23  # most cells of an intermediate result
CACHE = 1 << 18  # the same on a CPU: what a core's own cache holds


def ranks(scores: Tensor, query: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Exact ranks from 1, best first; tied items share their mean rank.

    Args:
        scores: (Q, n); -inf is not ranked.
        query, column: (P,) whose ranks are wanted.

    Returns:
        (P,) float64 ranks, and (P,) int64: how many items of the row have this score, itself included.
    """
    value = scores[query, column]
    above, tied = _counted(scores, query, value, operator.gt, operator.eq)
    return above + (tied.double() + 1) / 2, tied


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The k best columns of each row and their ranks; tied ones share their mean rank, whether kept or not.

    Args:
        scores: (Q, n); -inf is not ranked.
        k: at most n.

    Returns:
        Row, column, score, rank and ``tied`` (how many cells of the row have this score, kept or not) of each kept cell, row
        by row.
    """
    if not k:
        none = scores.new_zeros(0, dtype=torch.int64)
        return none, none, scores.new_zeros(0), none.double(), none
    value, column = first(scores, min(k + 1, scores.shape[1]))  # the one after shows whether the last one has equals beyond
    going_on = (value[:, k - 1 : k] == value[:, k:]).nonzero()[:, 0]
    value, column = value[:, :k].contiguous(), column[:, :k]
    falling = -value
    above = torch.searchsorted(falling, falling)
    tied = torch.searchsorted(falling, falling, right=True) - above
    last = value[going_on, -1]
    (level,) = _counted(scores, going_on, last, operator.eq)
    tied[going_on] = torch.where(value[going_on] == last[:, None], level[:, None], tied[going_on])
    rank = above + (tied.double() + 1) / 2
    listed = value > -torch.inf
    return listed.nonzero()[:, 0], column[listed], value[listed], rank[listed], tied[listed]


def _counted(scores: Tensor, query: Tensor, value: Tensor, *relations: Callable[[Any, Any], Any]) -> Tensor:
    """(R, P) int64: how many cells of each query's row (of (Q, n) scores) are in each relation (above, level) to its value (P,)."""
    if scores.device.type == "cpu":  # numpy compares and counts ten times as fast as torch does there
        cells, rows, of = scores.numpy(), query.numpy(), value.numpy()[:, None]
        step = max(1, CACHE // max(1, scores.shape[1]))
        found = np.zeros((len(relations), len(rows)), np.int64)
        for piece in (slice(begin, begin + step) for begin in range(0, len(rows), step)):
            own = rows[piece]
            one_after_the_other = own[-1] - own[0] + 1 == len(own) and (own[1:] > own[:-1]).all()  # then nothing is copied
            some = cells[own[0] : own[-1] + 1] if one_after_the_other else cells[own]
            for n, relation in enumerate(relations):  # while the cells are in the cache
                found[n, piece] = [np.count_nonzero(row) for row in relation(some, of[piece])]  # many times as fast as along an axis
        return torch.from_numpy(found)
    step = max(1, WORKING_SET // max(1, scores.shape[1]))
    pieces = zip(query.split(step), value[:, None].split(step), strict=True)
    counts = [torch.stack([relation(scores[rows], of).sum(1) for relation in relations]) for rows, of in pieces]
    return torch.cat([query.new_zeros(len(relations), 0), *counts], 1)
