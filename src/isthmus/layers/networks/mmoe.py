"""MMoE: shared experts, mixed by a gate per domain, and a tower per domain.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018; with domains in the place of tasks.

    y_d    = h_d(f_d(x))                                                                 (tower)
    f_d(x) = sum_i g_d(x)_i f_i(x)                                                       (mixture)
    g_d(x) = softmax(W_d x)                                                              (gate)

The paper computes every task's gate and tower for every row; a row here has one domain and meets its own alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.layers.domain import DomainLinear, DomainMLP, Experts
from isthmus.layers.networks._base import Network, require_layers


class MMoENetwork(Network):
    """Multi-gate mixture of experts.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        experts: how many.
        hidden: widths of an expert's layers; at least one.
        tower: widths of the towers' hidden layers.
        tower_norm: batch norm per domain in the towers (costs quality where a domain is small).
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: experts without a layer.
    """

    def __init__(
        self,
        domains: int,
        width: int,
        *,
        out: int,
        experts: int = 4,
        hidden: Sequence[int] = (128, 64),
        tower: Sequence[int] = (32,),
        tower_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(domains, width, out=out)
        require_layers(hidden)
        self.experts = Experts(experts, width, hidden, dropout=dropout)
        self.gate = DomainLinear(domains, width, experts, bias=False)
        self.towers = DomainMLP(domains, self.experts.width, tower, out=out, dropout=dropout, norm=tower_norm)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        gate = self.gate(x, offsets).softmax(-1)  # gate
        mixed = torch.bmm(gate[:, None], self.experts(x)).squeeze(1)  # mixture
        return self.towers(mixed, offsets)  # tower
