"""Causal self-attention with dropout: its weights, its gradients, and that nothing is seen before it happens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isthmus.layers.causal_attention import causal_attention


def parts(rows: int, length: int, heads: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, length, 3, heads, width, dtype=torch.float64)


def weights_by_hand(qkv: Tensor) -> Tensor:
    """(B, H, T, T)."""
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    score = query @ key.transpose(2, 3) / math.sqrt(qkv.shape[4])
    return score.masked_fill(torch.ones(qkv.shape[1], qkv.shape[1]).triu(1) > 0, -torch.inf).softmax(-1)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_weights_by_hand(share: float) -> None:
    """Values that are unit vectors show the weights: each is the softmax's, grown by 1 / (1 - share), or 0."""
    length = 40
    qkv = parts(50, length, 2, length)
    qkv[:, :, 2] = torch.eye(length, dtype=torch.float64)[:, None]
    seen = causal_attention(qkv, share).unflatten(2, (2, length)).transpose(1, 2)
    wanted = weights_by_hand(qkv) / (1 - share)
    torch.testing.assert_close(seen, torch.where(seen == 0, 0, wanted))
    past = torch.ones(length, length).tril() > 0
    assert not seen[:, :, ~past].any()
    dropped = (seen[:, :, past] == 0).double()
    for head in range(2):
        n = dropped[:, head].numel()
        assert abs(dropped[:, head].mean().item() - share) <= 4 * math.sqrt(share * (1 - share) / n)
    if share:
        alike = (dropped[:, 0] == dropped[:, 1]).double().mean().item()
        assert abs(alike - (share**2 + (1 - share) ** 2)) < 0.02, "heads are dropped by themselves"


@pytest.mark.parametrize("heads", [1, 3])
def test_gradients(heads: int) -> None:
    def seeded(qkv: Tensor) -> Tensor:
        torch.manual_seed(2)
        return causal_attention(qkv, 0.4)

    assert torch.autograd.gradcheck(seeded, parts(2, 5, heads, 2).requires_grad_())


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_no_gradient_comes_from_later_events(share: float) -> None:
    qkv = parts(3, 6, 2, 4).requires_grad_()
    (slope,) = torch.autograd.grad(causal_attention(qkv, share)[:, :4].sum(), qkv)
    assert not slope[:, 4:].any()
    assert slope[:, 0, 2].any()


def test_both_ways_agree_where_nothing_is_dropped() -> None:
    qkv = parts(4, 7, 2, 3)
    torch.testing.assert_close(causal_attention(qkv, 1e-9), causal_attention(qkv))
