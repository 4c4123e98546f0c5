"""What a user did, seen from the candidate: a weighted sum of events without padding, as in DIN, MiNet and DADIN."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.attention import softmax_by_row
from isthmus.layers.drawing import drawing


class Dice(nn.Module):
    """Between a line of slope 1 and one of slope a, as far as a number stands above the batch's mean (Zhou et al., KDD 2018, eq. 10).

    ::

        f(s) = p s + (1 - p) a s,     p = sigmoid((s - mean) / sqrt(var + eps))

    Mean and variance are the batch's in training and running ones afterwards; a batch of fewer than two rows has none of its own.

    Args:
        width: of the input; each element has its own a, which starts at 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, width)."""
        if drawing():  # batch_norm would ask whether there are rows
            return cast("Tensor", _Gate.apply(x, (x - self.running_mean) / (self.running_var + 1e-8).sqrt(), self.slope))
        z = F.batch_norm(x, self.running_mean, self.running_var, training=self.training and len(x) > 1, eps=1e-8)
        return cast("Tensor", _Gate.apply(x, z, self.slope))


class _Gate(torch.autograd.Function):
    """x (a + (1 - a) sigmoid(z)), forward and backward in as few passes over memory as there can be: Dice is what DIN spends most on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        p = z.sigmoid()
        ctx.save_for_backward(x, p, slope)
        return torch.addcmul(slope, p, 1 - slope).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, p, slope = ctx.saved_tensors
        dx = torch.addcmul(slope, p, 1 - slope).mul_(grad)
        gated = grad * x
        dz = torch.ops.aten.sigmoid_backward(gated, p).mul_(1 - slope)
        da = gated.addcmul_(gated, p, value=-1)  # x (1 - p), times the gradient
        return dx, dz, (da.new_ones(1, len(da)) @ da).squeeze(0)  # a product sums columns faster than sum does


class TargetAttention(nn.Module):
    """Weighs a user's events by a candidate and adds them up.

    ::

        v(q) = sum over j of a_j e_j,     a_j = a network of [e_j, q, e_j * q]                  DIN
        softmax over j of a network of [e_j, q, p, (M e_j) * q]                                 MiNet, DADIN (eq. 2, 3)

    with the user's profile p, and a matrix M where events come from another domain.  The first layer is split into its parts, so
    that q and p are multiplied once per candidate and row, not once per event, and only real events are computed.  A part
    e_j - q, which others add, would be the sum of two that are there.

    Args:
        width: of an event, a candidate and a profile.
        hidden: widths of the network's hidden layers, at least one.
        activation: between layers, made from their width.
        softmax: weights that sum to 1; False: as they are, so that how much a user did may show.
        profile: read p.
        transfer: there is an M.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int] = (80, 40),
        *,
        activation: Callable[[int], nn.Module] = Dice,
        softmax: bool = False,
        profile: bool = False,
        transfer: bool = False,
    ) -> None:
        super().__init__()
        first = hidden[0]
        self.query = nn.Linear(width, first)
        self.event, self.both = nn.Linear(width, first, bias=False), nn.Linear(width, first, bias=False)
        self.profile = nn.Linear(width, first, bias=False) if profile else None
        self.transfer = nn.Linear(width, width, bias=False) if transfer else None
        if self.transfer is not None:
            nn.init.eye_(self.transfer.weight)  # at first another domain is like this one
        layers: list[nn.Module] = [activation(first)]
        for before, size in itertools.pairwise(hidden):
            layers += [nn.Linear(before, size), activation(size)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1, bias=not softmax))  # a softmax does not see a bias
        self.softmax = softmax

    def weights(self, event: Tensor, row: Tensor, query: Tensor, profile: Tensor | None = None) -> Tensor:
        """Events (E, width) of rows (E,) ascending, candidates (B, C, width), profiles (B, width) -> (E, C)."""
        moved = event if self.transfer is None else self.transfer(event)
        asked = self.query(query)
        if self.profile is not None:
            assert profile is not None
            asked = asked + self.profile(profile)[:, None]
        both = moved[:, None] * query.index_select(0, row)
        parts = torch.cat([event[:, None].expand_as(both), both], 2)
        weight = torch.cat([self.event.weight, self.both.weight], 1)  # one product instead of two: these are bound by memory
        x = torch.addmm(asked.index_select(0, row).flatten(0, 1), parts.flatten(0, 1), weight.t())
        score = self.rest(x).view(both.shape[:2])
        return softmax_by_row(score, row, query.shape[0]) if self.softmax else score

    def forward(self, event: Tensor, row: Tensor, query: Tensor, profile: Tensor | None = None) -> Tensor:
        """Events (E, width) of rows (E,) ascending, candidates (B, C, width), profiles (B, width) -> (B, C, width).

        A user without events gets 0.
        """
        weighted = self.weights(event, row, query, profile)[..., None] * event[:, None]
        return weighted.new_zeros(query.shape).index_add(0, row, weighted)
