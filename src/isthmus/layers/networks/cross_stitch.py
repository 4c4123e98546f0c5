"""Cross-Stitch: a network per domain, and after every layer a learned linear mix of all of them.

Misra, Shrivastava, Gupta, Hebert: Cross-Stitch Networks for Multi-task Learning, CVPR 2016; with domains in the
place of tasks.

    x~_d = sum_e alpha_de x_e                                                            (stitch, for D networks)

Cost: the method asks for every network's activations on every row, so the cost of a row grows with D (measured at the
default sizes, 4096 rows a step: 100 domains take 29 times the CPU time of 3).  Only the last unit and the output layer
are computed for the row's own domain alone, which changes no number.

Deviations: one unit per layer, not one per channel; alpha starts at 0.9 for a network itself and shares 0.1 among the
others; it learns at the rate of all other weights (the paper gives it a higher one).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.layers.domain import DomainLinear, Experts, domain_of_rows
from isthmus.layers.dropout import Dropout
from isthmus.layers.growing import Growing, Rows, Stacked, one_row_each
from isthmus.layers.networks._base import Network, require_layers

OWN = 0.9  # of a unit's start: how much of itself a network keeps


class CrossStitchNetwork(Network, Growing):
    """Stitched networks; the output layer is the row's own domain's.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        hidden: widths of the hidden layers of each domain's network; at least one.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: no hidden layer.
    """

    def __init__(self, domains: int, width: int, *, out: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__(domains, width, out=out)
        require_layers(hidden)
        self.first = Experts(domains, width, hidden[:1], dropout=dropout, per_domain=True)
        self.deeper = nn.ModuleList(_Networks(domains, i, o, dropout) for i, o in itertools.pairwise(hidden))
        start = torch.full((domains, domains), (1 - OWN) / max(domains - 1, 1)).fill_diagonal_(OWN if domains > 1 else 1.0)
        self.alpha = nn.ParameterList(nn.Parameter(start.clone()) for _ in hidden)
        self.out = DomainLinear(domains, hidden[-1], out)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        h = self.first(x)  # (N, D, hidden): every network on every row
        for alpha, layer in zip(self.alpha[:-1], self.deeper, strict=True):
            h = layer(alpha @ h)  # stitch
        own = self.alpha[-1][domain_of_rows(offsets, x.device)]
        return self.out(torch.bmm(own[:, None], h).squeeze(1), offsets)  # stitch, for the row's own network alone

    def grow_from(self, old: CrossStitchNetwork) -> set[str]:
        """A new network mixes like the mean of the old ones, and the old ones take nothing from it."""
        d = len(old.out.weight)
        for alpha, before in zip(self.alpha, old.alpha, strict=True):
            own = before.diagonal().mean()
            alpha.zero_()
            alpha[:d, :d] = before
            alpha[d:, :d] = (before.sum(0) - before.diagonal()) / d
            alpha.diagonal()[d:] = own
        return {f"alpha.{n}" for n in range(len(self.alpha))}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' rows of the stitches."""
        return {f"alpha.{n}": one_row_each(len(alpha), domains) for n, alpha in enumerate(self.alpha)}


class _Networks(Stacked):
    """One further layer of every domain's network: (N, D, in) -> (N, D, out)."""

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, n: int, width: int, out: int, dropout: float) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(n, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, out).uniform_(-bound, bound))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).relu()).transpose(0, 1)
