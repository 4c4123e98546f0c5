"""Losses: logits in, a scalar out.  All average over rows, weighted when weights are given."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e30  # finite, so that a row whose every negative is masked still has a gradient


def binary_cross_entropy(logit: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of -y log s(x) - (1 - y) log(1 - s(x)).

    Args:
        logit, label: (B, C).
        weight: (B,) row weights, or None.
    """
    loss = F.binary_cross_entropy_with_logits(logit, label, reduction="none").mean(1)
    return _mean(loss, weight)


def squared_error(prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (prediction - label)^2; shapes as in ``binary_cross_entropy``."""
    return _mean((prediction - label).square().mean(1), weight)


def sampled_softmax(logit: Tensor, log_q: Tensor | None, item: Tensor, weight: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy of the positive (column 0) among sampled negatives.

    Each logit is corrected by the log-probability of its being drawn, so that the expectation over samples
    approaches the full softmax (Bengio & Senecal 2008; Jean et al. 2015).  A negative that is the positive
    itself (an accidental hit) and padding are masked.

    Args:
        logit: (B, 1 + n).
        log_q: (B, 1 + n), up to a constant per row; or None: no correction.
        item: (B, 1 + n) codes.
        weight: (B,) row weights, or None.
    """
    corrected = logit if log_q is None else logit - log_q
    hit = (item == item[:, :1]) | (item == 0)
    hit = torch.cat([torch.zeros_like(hit[:, :1]), hit[:, 1:]], 1)
    corrected = corrected.masked_fill(hit, MASKED)
    return _mean(-F.log_softmax(corrected, 1)[:, 0], weight)


def in_batch_softmax(
    user: Tensor, positive: Tensor, item: Tensor, offsets: tuple[int, ...], log_q: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy in which the other rows' positives of the same domain are the negatives.

    Args:
        user: (B, d) user vectors.
        positive: (B, d) vectors of the rows' own items.
        item: (B,) their codes: a row with the same item is no negative.
        offsets: D + 1 bounds of the domains' rows; negatives never come from another domain.
        log_q: (B,) log-probability of meeting the item in a batch of its domain, or None.
        weight: (B,) row weights, or None.
    """
    losses = []
    for start, end in itertools.pairwise(offsets):
        if start == end:
            continue
        logit = user[start:end] @ positive[start:end].T
        if log_q is not None:
            logit = logit - log_q[start:end]
        same = item[start:end, None] == item[None, start:end]
        same.fill_diagonal_(False)
        logit = logit.masked_fill(same, MASKED)
        losses.append(-F.log_softmax(logit, 1).diagonal())
    return _mean(torch.cat(losses) if losses else user.sum() * 0, weight)


def _mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp_min(1e-12)
