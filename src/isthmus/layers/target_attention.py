"""What a user did, seen from the candidate: the activation unit of DIN and its ``Dice``, on events without padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        p = F.batch_norm(x, self.running_mean, self.running_var, training=self.training and len(x) > 1, eps=1e-8).sigmoid()
        return x * torch.lerp(self.slope.expand_as(p), torch.ones_like(p), p)


class TargetAttention(nn.Module):
    """Weighs a user's events by a candidate and adds them up (Zhou et al., KDD 2018, eq. 3).

    ::

        v(candidate) = sum over j of a(e_j, q) e_j,     a: a network of [e_j, q, e_j * q]

    The first layer is split into its three parts, so that q is multiplied once per candidate and not once per event, and only real
    events are computed.  A part e_j - q, which others add, would be the sum of two that are there.

    Args:
        width: of an event and of a candidate.
        hidden: widths of the network's hidden layers, at least one.
        softmax: weights that sum to 1; False: as printed, where how much a user did may show.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (80, 40), *, softmax: bool = False) -> None:
        super().__init__()
        first = hidden[0]
        self.query = nn.Linear(width, first)
        self.event, self.both = nn.Linear(width, first, bias=False), nn.Linear(width, first, bias=False)
        layers: list[nn.Module] = [Dice(first)]
        for before, size in itertools.pairwise(hidden):
            layers += [nn.Linear(before, size), Dice(size)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))
        self.softmax = softmax

    def weights(self, event: Tensor, row: Tensor, query: Tensor) -> Tensor:
        """Events (E, width) of rows (E,) ascending, candidates (B, C, width) -> (E, C)."""
        q = query[row]
        x = self.event(event)[:, None] + self.query(query)[row] + self.both(event[:, None] * q)
        score = self.rest(x.flatten(0, 1)).view(q.shape[:2])
        return _softmax(score, row, len(query)) if self.softmax else score

    def forward(self, event: Tensor, row: Tensor, query: Tensor) -> Tensor:
        """Events (E, width) of rows (E,) ascending, candidates (B, C, width) -> (B, C, width); 0 for a user without events."""
        weighted = self.weights(event, row, query)[..., None] * event[:, None]
        return torch.zeros_like(query).index_add(0, row, weighted)


def _softmax(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """(E, C) over each row's events."""
    fixed = score.detach()
    top = fixed.new_full((rows, score.shape[1]), -torch.inf).scatter_reduce(0, row[:, None].expand_as(fixed), fixed, "amax")
    weight = (score - top[row]).exp()
    return weight / torch.zeros_like(top).index_add(0, row, weight)[row]
