"""Cross-attention: some vectors ask, others answer (eq. 1 and 2 of DACDR; Vaswani et al., NeurIPS 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.domain import Offsets, grouped_linear
from isthmus.layers.drawing import known
from isthmus.layers.growing import Growing, Rows, one_row_each

NORM_EPS = 1e-6  # far below the variance of an embedding at its start, 1e-4


def softmax_by_row(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Scores (E, ...) of events of rows (E,) -> (E, ...) weights that sum to 1 over each row's events."""
    fixed = score.detach()
    place = row.view(-1, *[1] * (score.dim() - 1)).expand_as(fixed)
    top = fixed.new_full((rows, *score.shape[1:]), -torch.inf).scatter_reduce(0, place, fixed, "amax")
    weight = (score - top[row]).exp()
    return weight / weight.new_zeros(top.shape).index_add(0, row, weight)[row]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension among what is real.

    Args:
        scores: (..., K).
        mask: bool, broadcasts to ``scores``; False is padding.

    Returns:
        (..., K): sums to 1, exactly 0 at padding; all 0, with gradient 0, where nothing is real.
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1) * mask.any(-1, keepdim=True)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Vectors (B, L, dim) and masks (B, N, L) -> (B, N, dim), the mean of what is real; zeros where nothing is."""
    weight = mask.to(x.dtype)
    return (weight @ x) / weight.sum(-1, keepdim=True).clamp_min(1)


class Projection(Growing):
    """x W' without a bias; the domains share one W, or some have a copy of their own.

    Args:
        copy_of: for each domain the copy that it uses; copies count from 0.
        width: of the input.
        out: of the output.
    """

    copy_of: Tensor

    def __init__(self, copy_of: Sequence[int], width: int, out: int) -> None:
        super().__init__()
        copies = max(copy_of, default=0) + 1
        bound = 1 / math.sqrt(width)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(1, out, width).uniform_(-bound, bound).repeat(copies, 1, 1))  # copies start alike
        self.register_buffer("copy_of", torch.tensor(copy_of, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """(B, n, width), rows ordered by domain -> (B, n, out)."""
        return self._through(x, offsets, self.weight)

    def back(self, x: Tensor, offsets: Offsets) -> Tensor:
        """x W: (B, n, out), rows ordered by domain -> (B, n, width)."""
        return self._through(x, offsets, self.weight.transpose(1, 2))

    def grow_from(self, old: Projection) -> set[str]:
        """Copies that the old one does not have start at the shared one."""
        self.weight[: len(old.weight)] = old.weight
        self.weight[len(old.weight) :] = old.weight[0]
        return {"weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' own copies."""
        own = {copy for d in domains if (copy := int(self.copy_of[d]))}
        return {"weight": one_row_each(len(self.weight), sorted(own))}

    def _through(self, x: Tensor, offsets: Offsets, weight: Tensor) -> Tensor:
        if len(weight) == 1:
            return F.linear(x, weight[0])
        n = x.shape[1]
        return grouped_linear(x.flatten(0, 1), [o * n for o in offsets], weight[self.copy_of]).view(*x.shape[:2], -1)


class CrossAttention(nn.Module):
    """softmax(Q K' / sqrt(d_k)) V with Q = query W_Q', K = key W_K', V = key W_V' (eq. 1, 2), d_k = dim / heads.

    The heads' outputs stand beside each other.  Of queries and keys the more numerous are never projected: q W_Q' (k W_K')' is
    computed as (q W_Q' W_K) k', and weights times (k W_V') as (weights times k) W_V'.

    Args:
        copy_of: for each domain the copy of W_Q, W_K, W_V that it uses.
        dim: width of queries, keys and output.
        heads: must divide ``dim``.
        norm: for the scores, queries and keys are brought to mean 0 and variance 1 (layer norm without weights).  The scores of
            vectors as small as embeddings start are all about 0, and so is what they learn.

    Raises:
        ConfigError: ``heads`` does not divide ``dim``.
    """

    own: Tensor

    def __init__(self, copy_of: Sequence[int], dim: int, heads: int = 1, norm: bool = False) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(f"dim = {dim}, heads = {heads}", "heads that divide dim", "try heads=1")
        self.heads, self.scale, self.norm = heads, 1 / math.sqrt(dim // heads), norm
        self.query, self.key, self.value = (Projection(copy_of, dim, dim) for _ in range(3))
        own = torch.arange(dim) // (dim // heads) == torch.arange(heads)[:, None]
        self.register_buffer("own", own.to(torch.float32), persistent=False)  # (heads, dim): which coordinates are a head's

    def scores(self, query: Tensor, key: Tensor, offsets: Offsets) -> Tensor:
        """(B, Q, dim) and (B, K, dim), rows ordered by domain -> (B, heads, Q, K) before the softmax."""
        if self.norm:
            query, key = (F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) for x in (query, key))
        if known(query.shape[1] < key.shape[1]):
            return self._folded(self.query, self.key, query, offsets) @ key.transpose(1, 2)[:, None]
        return query[:, None] @ self._folded(self.key, self.query, key, offsets).transpose(2, 3)

    def mix(self, weights: Tensor, key: Tensor, offsets: Offsets) -> Tensor:
        """Weights (B, N, heads, Q, K) and keys (B, N or 1, K, dim) -> (B, N, Q, dim)."""
        rows, n, heads, q, _ = weights.shape
        if known(n * heads * q <= key.shape[1] * key.shape[2]):
            pooled = weights.flatten(1, 3) @ key[:, 0] if key.shape[1] == 1 else (weights.flatten(2, 3) @ key).flatten(1, 2)
            out = self.value(pooled, offsets).view(rows, n, heads, q, -1)
            return out[:, :, 0] if heads == 1 else (out * self.own[:, None]).sum(2)
        value = self.value(key.flatten(1, 2), offsets).view(key.shape)
        if heads == 1:
            return weights[:, :, 0] @ value
        return (weights @ (value[:, :, None] * self.own[:, None])).sum(2)

    def _folded(self, there: Projection, back: Projection, x: Tensor, offsets: Offsets) -> Tensor:
        """(B, n, dim) -> (B, heads, n, dim): through one projection and back through the other, head by head."""
        x = there(x, offsets) * self.scale
        if self.heads == 1:
            return back.back(x, offsets)[:, None]
        parts = x[:, None] * self.own[:, None]  # (B, heads, n, dim)
        return back.back(parts.flatten(1, 2), offsets).view(parts.shape)
