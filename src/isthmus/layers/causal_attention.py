"""Causal self-attention: every slot looks at itself and at those before it (Vaswani et al., NeurIPS 2017)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from isthmus.layers.dropout import scaled_mask


def causal_attention(qkv: Tensor, share: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(d)) v among the slots up to each one's own, for every head by itself.

    Args:
        qkv: (B, T, 3, H, d) queries, keys and values.
        share: of the weights after the softmax that become 0, the others growing by 1 / (1 - share): dropout; 0 outside of training.

    Returns:
        (B, T, H * d): the heads' outputs beside each other.
    """
    if share and qkv.device.type == "cpu":
        return _Dropped.apply(qkv, share)  # type: ignore[no-any-return]
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=share, is_causal=True).transpose(1, 2).flatten(2)


class _Dropped(torch.autograd.Function):
    """With dropout, on a CPU: torch has no kernel for it there, and of what it does instead copies and random numbers take most.

    Products read queries, keys and values where the projection left them, a head at a time.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, share: float) -> Tensor:
        """As ``causal_attention``."""
        rows, length, _, heads, width = qkv.shape
        later = qkv.new_full((length, length), -torch.inf).triu_(1)
        out, saved = qkv.new_empty(rows, length, heads, width), []
        for head in range(heads):
            query, key, value = qkv[:, :, :, head].unbind(2)
            weight = torch.baddbmm(later, query, key.transpose(1, 2), alpha=1 / math.sqrt(width)).softmax(2)
            dropped = scaled_mask(weight, share).mul_(weight)
            out[:, :, head] = dropped @ value
            saved += [weight, dropped]
        ctx.save_for_backward(qkv, *saved)
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Gradients of queries, keys and values."""
        qkv, *saved = ctx.saved_tensors
        found, by_head = torch.empty_like(qkv), grad.view(*qkv.shape[:2], *qkv.shape[3:])
        for head, (weight, dropped) in enumerate(zip(saved[::2], saved[1::2], strict=True)):
            query, key, value = qkv[:, :, :, head].unbind(2)
            seen, (to_query, to_key, to_value) = by_head[:, :, head], found[:, :, :, head].unbind(2)
            slope = (seen @ value.transpose(1, 2)).mul_(dropped)
            slope.addcmul_(weight, slope.sum(2, keepdim=True), value=-1)
            scale = 1 / math.sqrt(qkv.shape[4])
            torch.mul(slope @ key, scale, out=to_query)
            torch.mul(slope.transpose(1, 2) @ query, scale, out=to_key)
            to_value.copy_(dropped.transpose(1, 2) @ seen)
        return found, None
