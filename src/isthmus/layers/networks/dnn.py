"""DNN: one MLP for the rows of all domains.

Covington, Adams, Sargin: Deep Neural Networks for YouTube Recommendations, RecSys 2016.

    y = MLP(x)

Nothing in it knows the domains apart: what tells them apart, if anything, stands in x.  Trained on one domain it is the
single-domain control; trained on all of them it is the "mixed" baseline of the multi-domain papers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isthmus.layers.mlp import MLP
from isthmus.layers.networks._base import Network


class DNNNetwork(Network):
    """A plain MLP.

    Args:
        domains: number of domains; not used.
        width: of the input.
        out: width of the output.
        hidden: widths of the hidden layers.
        dropout: share of activations dropped in training.
    """

    def __init__(self, domains: int, width: int, *, out: int, hidden: Sequence[int] = (128, 64), dropout: float = 0.0) -> None:
        super().__init__(domains, width, out=out)
        self.mlp = MLP(width, hidden, dropout=dropout, out=out)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        return self.mlp(x)
