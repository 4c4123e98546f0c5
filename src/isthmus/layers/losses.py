"""Losses: logits in, a scalar out.  All average over rows, weighted when weights are given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from isthmus.batch import Pool

ALIKE = 2 * math.log(2)  # ``contrast`` where all logits are 0: no other constant gives less
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


def absolute_error(prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of |prediction - label|; shapes as in ``binary_cross_entropy``."""
    return _mean((prediction - label).abs().mean(1), weight)


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


def contrast(logit: Tensor, item: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of -log s(x_0) - mean over negatives of log(1 - s(x_j)): what was chosen (column 0) against sampled negatives.

    Args:
        logit: (B, 1 + n).
        item: (B, 1 + n) codes; negatives that are the positive itself count for nothing.
        weight: (B,) row weights, or None.
    """
    real = (item[:, 1:] != item[:, :1]).to(logit.dtype)
    wrong = (F.softplus(logit[:, 1:]) * real).sum(1) / real.sum(1).clamp_min(1)
    return _mean(F.softplus(-logit[:, 0]) + wrong, weight)


def pool_softmax(
    user: Tensor, item: Tensor, offsets: Sequence[int], vectors: Tensor, pool: Pool, positive: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy of each row's item against the pool of its domain.

    A pool that is the whole catalogue gives the full softmax.  From a drawn pool the sum over all other items is
    estimated by importance weights, each candidate counting 1 / (how often it is expected in the pool) (eq. 4 of ADI;
    Bengio & Senecal 2008), and the positive counts once, as it does in the full sum: with eq. 5 as printed, which
    corrects the positive too, the gradient does not approach that of the full softmax as the pool grows.  Copies of a
    row's own item in the pool (accidental hits) are masked.

    Args:
        user: (B, d) user vectors, rows ordered by domain.
        item: (B,) codes of the rows' items.
        offsets: D + 1 bounds of the domains' rows.
        vectors: (M, d) vectors of the pool.
        pool: what they stand for.
        positive: (B, d) vectors of the rows' items.
        weight: (B,) row weights, or None.
    """
    losses = []
    for domain, (start, end) in enumerate(itertools.pairwise(offsets)):
        if start == end:
            continue
        part = slice(pool.offsets[domain], pool.offsets[domain + 1])
        rows, own, candidates = user[start:end], item[start:end], vectors[part]
        if pool.log_q is None:
            right = (rows * candidates.index_select(0, torch.searchsorted(pool.item[part], own))).sum(1)
            total = _LogSumExp.apply(rows, candidates, None, None)
        else:
            right = (rows * positive[start:end]).sum(1)
            others = _LogSumExp.apply(rows, candidates, pool.log_q[part], pool.item[part] == own[:, None])
            total = torch.logaddexp(right, others)
        losses.append(total - right)
    return _mean(torch.cat(losses) if losses else user.sum() * 0, weight)


class _LogSumExp(torch.autograd.Function):
    """log sum_j exp(u_i v_j' - log q_j) over the candidates that are no hits, without a pass over (n, m) more than it takes."""

    @staticmethod
    def forward(ctx: Any, user: Tensor, vectors: Tensor, log_q: Tensor | None, hit: Tensor | None) -> Tensor:
        """Vectors (n, d) and (m, d), corrections (m,) or None, and (n, m) bool or None -> (n,)."""
        product = user @ vectors.T
        exponent = product.to(torch.promote_types(product.dtype, torch.float32))
        if log_q is not None:
            exponent.sub_(log_q)
        if hit is not None:
            exponent.masked_fill_(hit, MASKED)
        top = exponent.amax(1)
        share = exponent.sub_(top[:, None]).exp_()
        total = share.sum(1)
        ctx.save_for_backward(*(x.to(product.dtype) for x in (user, vectors, share)), total)  # autocast: products in half precision
        return top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        """A candidate's share in the sum says how much of it goes which way."""
        user, vectors, share, total = ctx.saved_tensors
        weight = (grad / total)[:, None]
        to_user = (share @ vectors).to(grad.dtype) * weight
        return to_user, (share.T @ (user * weight).to(user.dtype)).to(grad.dtype), None, None


def _mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp_min(1e-12)
