"""STAR: each domain's weights are the product of shared weights and its own.

Sheng et al.: One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction, CIKM 2021.

    x'  = gamma * gamma_d * (x - mean_d) / sqrt(var_d + eps) + beta + beta_d             (partitioned normalisation)
    W*_d = W_d * W (elementwise),   b*_d = b_d + b                                       (star)
    y   = y_star(x') + y_aux(domain indicator, x)                                        (auxiliary network)

Mean and variance are those of the domain's own rows in training, and their running averages after it.

Deviation: the domain's own factors start at 1 (weights) and 0 (biases), so that at first every domain is the shared
network.  Cost: the products W_d * W are D small matrices per step, whatever the number of rows (measured as in
Cross-Stitch: 100 domains take 1.3 times the CPU time of 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.domain import DomainBatchNorm, domain_of_rows, grouped_linear
from isthmus.layers.drawing import alone
from isthmus.layers.dropout import Dropout
from isthmus.layers.growing import Stacked
from isthmus.layers.mlp import MLP
from isthmus.layers.networks._base import Network
from isthmus.layers.table import DomainTable


class _PartitionedNorm(Stacked):
    """Batch norm with each domain's own statistics and a shared gain and offset beside its own."""

    stacked: ClassVar[tuple[str, ...]] = ("domain_weight", "domain_bias")

    def __init__(self, domains: int, width: int) -> None:
        super().__init__()
        self.norm = DomainBatchNorm(domains, width, affine=False)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.domain_weight = nn.Parameter(torch.ones(domains, width))
        self.domain_bias = nn.Parameter(torch.zeros(domains, width))

    def forward(self, x: Tensor, offsets: Sequence[int], domain: Tensor) -> Tensor:
        gain, offset = self.weight * self.domain_weight, self.bias + self.domain_bias
        return self.norm(x, offsets) * F.embedding(domain, gain) + F.embedding(domain, offset)


def star_linear(x: Tensor, offsets: Sequence[int], shared: nn.Linear, weight: Tensor, bias: Tensor) -> Tensor:
    """Every domain's rows through a linear layer whose weight is the domain's times the shared one, its bias the sum of both.

    Args:
        x: (N, in), rows ordered by domain.
        offsets: D + 1 bounds.
        shared: of all domains, in -> out.
        weight, bias: (D, out, in) and (D, out), each domain's own.

    Returns:
        (N, out).
    """
    only = alone(offsets)
    if only is not None:
        return F.linear(x, weight[only] * shared.weight, bias[only] + shared.bias)
    return grouped_linear(x, offsets, weight * shared.weight, bias + shared.bias)


class _StarLinear(Stacked):
    """``star_linear`` and its weights."""

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, domains: int, width: int, out: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, out)
        self.weight = nn.Parameter(torch.ones(domains, out, width))
        self.bias = nn.Parameter(torch.zeros(domains, out))

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        return star_linear(x, offsets, self.shared, self.weight, self.bias)  # star


class STARNetwork(Network):
    """Star topology adaptive network, with its auxiliary network.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        hidden: widths of the star network's hidden layers.
        auxiliary: widths of the auxiliary network's hidden layers.
        indicator: width of the domain indicator's embedding.
        norm: partitioned normalisation of the input.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    def __init__(
        self,
        domains: int,
        width: int,
        *,
        out: int,
        hidden: Sequence[int] = (128, 64),
        auxiliary: Sequence[int] = (32,),
        indicator: int = 16,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(domains, width, out=out)
        self.norm = _PartitionedNorm(domains, width) if norm else None
        self.layers = nn.ModuleList(_StarLinear(domains, i, o) for i, o in itertools.pairwise([width, *hidden, out]))
        self.dropout = Dropout(dropout)
        self.indicator = DomainTable(domains, indicator, std=0.1)
        self.auxiliary = MLP(width + indicator, auxiliary, dropout=dropout, out=out)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        domain = domain_of_rows(offsets, x.device)
        h = x if self.norm is None else self.norm(x, offsets, domain)  # partitioned normalisation
        for layer in self.layers[:-1]:
            h = self.dropout(layer(h, offsets).relu())
        return self.layers[-1](h, offsets) + self.auxiliary(torch.cat([self.indicator(domain + 1), x], 1))  # auxiliary network
