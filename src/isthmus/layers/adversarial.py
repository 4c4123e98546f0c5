"""Gradient reversal, and classifiers of domains that learn through it (Ganin et al., JMLR 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.growing import Rows, Stacked


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.strength * grad, None


def reverse(x: Tensor, strength: float = 1.0) -> Tensor:
    """x as it is; its gradient times minus ``strength`` (DADIN, eq. 11, where it is 1)."""
    return cast("Tensor", _Reversed.apply(x, strength))


def warm_up(epoch: int, epochs: int) -> float:
    """From 0 towards 1 as training goes on (Ganin et al., section 5.2.2): 2 / (1 + exp(-10 epoch / epochs)) - 1; 1 without warm-up."""
    return 2 / (1 + math.exp(-10 * epoch / epochs)) - 1 if epochs else 1.0


class DomainClassifier(Stacked):
    """Tells domains apart by one linear layer: of two domains a logistic regression (DADIN, eq. 12-14), of more a softmax.

    Args:
        domains: how many.
        width: of the input.
        rate: how much faster than other layers it learns (under Adam): it must keep up with features that flee from it.
    """

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, domains: int, width: int, rate: float = 1.0) -> None:
        super().__init__()
        plain = nn.Linear(width, domains)
        self.rate = rate
        self.weight, self.bias = (nn.Parameter(value.detach() / rate) for value in (plain.weight, plain.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, domains) logits; for two domains the second's less the first's is eq. 12's."""
        return self.rate * F.linear(x, self.weight, self.bias)

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing: where new domains are trained alone there is nothing to tell apart."""
        return {}

    def loss(self, x: Tensor, domain: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross-entropy of the rows' domains (eq. 16-18); exactly 0 where there is nothing to tell apart.

        Args:
            x: (N, width).
            domain: (N,) domain indices.
            weight: (N,) row weights, or None.
        """
        loss = F.cross_entropy(self(x), domain, reduction="none")
        weight = torch.ones_like(loss) if weight is None else weight
        return (loss * weight).sum() / weight.sum().clamp_min(1e-12)
