"""Ranks in a matrix of scores, ties sharing their mean rank, and how many are tied."""

from __future__ import annotations

import torch
from torch import Tensor

WORKING_SET = 1 << 23  # most cells of an intermediate result


def ranks(scores: Tensor, query: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Exact ranks from 1, best first; tied items share their mean rank.

    Args:
        scores: (Q, n); -inf is not ranked.
        query, column: (P,) whose ranks are wanted.

    Returns:
        (P,) float64 ranks, and (P,) int64: how many items of the row have this score, itself included.
    """
    rank = torch.zeros(len(query), dtype=torch.float64, device=scores.device)
    tied = torch.zeros(len(query), dtype=torch.int64, device=scores.device)
    step = max(1, WORKING_SET // max(1, scores.shape[1]))
    for start in range(0, len(query), step):
        own, some = query[start : start + step], scores[query[start : start + step]]
        value = scores[own, column[start : start + step], None]
        tied[start : start + step] = level = (some == value).sum(1)
        rank[start : start + step] = (some > value).sum(1) + (level + 1) / 2
    return rank, tied


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
    value, column = scores.topk(k, 1)
    falling = -value
    above = torch.searchsorted(falling, falling)
    tied = torch.searchsorted(falling, falling, right=True) - above
    last = value[:, -1:]
    tied = torch.where(value == last, (scores == last).sum(1, keepdim=True), tied)
    rank = above + (tied.double() + 1) / 2
    listed = value > -torch.inf
    return listed.nonzero()[:, 0], column[listed], value[listed], rank[listed], tied[listed]
