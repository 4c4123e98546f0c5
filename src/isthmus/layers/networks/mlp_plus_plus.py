"""MLP++: a network per domain, on shared embeddings.

Hu, Zhang, Yang: CoNet: Collaborative Cross Networks for Cross-Domain Recommendation, CIKM 2018: their base model, in which domains
share what is known of a user and nothing else.

    y_d = MLP_d(x)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isthmus.layers.domain import DomainMLP
from isthmus.layers.networks._base import Network


class MLPPlusPlusNetwork(Network):
    """An MLP per domain.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        hidden: widths of the hidden layers of each.
        dropout: share of activations dropped in training.
    """

    def __init__(self, domains: int, width: int, *, out: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__(domains, width, out=out)
        self.networks = DomainMLP(domains, width, hidden, out=out, dropout=dropout)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        return self.networks(x, offsets)
