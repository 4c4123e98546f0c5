"""Shared-Bottom: one bottom for all domains, a tower for each.

Caruana: Multitask Learning, Machine Learning 28, 1997; with domains in the place of tasks.

    y_d = h_d(f(x)),   f shared by all domains, h_d the domain's own tower

The hidden layers are those of DNN, the last of them in the towers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isthmus.layers.domain import DomainMLP
from isthmus.layers.mlp import MLP
from isthmus.layers.networks._base import Network


class SharedBottomNetwork(Network):
    """A shared MLP below one tower per domain; a row passes its own domain's tower only.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        hidden: widths of the bottom's layers.
        tower: widths of the towers' hidden layers.
        tower_norm: batch norm per domain in the towers (costs quality where a domain is small).
        dropout: share of activations dropped in training.
    """

    def __init__(
        self,
        domains: int,
        width: int,
        *,
        out: int,
        hidden: Sequence[int] = (128,),
        tower: Sequence[int] = (64,),
        tower_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(domains, width, out=out)
        self.bottom = MLP(width, hidden, dropout=dropout)
        self.towers = DomainMLP(domains, self.bottom.width, tower, out=out, dropout=dropout, norm=tower_norm)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        return self.towers(self.bottom(x), offsets)
