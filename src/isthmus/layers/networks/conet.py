"""CoNet: a network per domain, and from every layer to the next a way across.

Hu, Zhang, Yang: CoNet: Collaborative Cross Networks for Cross-Domain Recommendation, CIKM 2018.

    a_d^(l+1) = ReLU(W_d^l a_d^l + b_d^l + H^l a_e^l)           e: the other domain; H^l the same both ways

The cross connections stand between hidden layers; the first one reads x alone.  Without them (H = 0) it is MLP++.  Their sparse
variant, SCoNet, adds the absolute values of all H to the loss: see the model.

Cost: as for cross-stitch, every network's activations on every row.  Only the last hidden layer and the output are computed for
the row's own domain alone, which changes no number.

Deviation: of several other domains the mean of their activations crosses.  Domains added later read the old ones, and the old ones
do not read them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isthmus.layers.domain import DomainLinear, Experts, domain_of_rows
from isthmus.layers.dropout import Dropout
from isthmus.layers.growing import Growing, Rows
from isthmus.layers.networks._base import Network, require_layers


class CoNetNetwork(Network, Growing):
    """Networks with cross connections; the output layer is the row's own domain's.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        hidden: widths of the hidden layers of each domain's network; at least one.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: no hidden layer.
    """

    others: Tensor

    def __init__(self, domains: int, width: int, *, out: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__(domains, width, out=out)
        require_layers(hidden)
        self.first = Experts(domains, width, hidden[:1], dropout=dropout, per_domain=True)
        self.layers = nn.ModuleList(DomainLinear(domains, i, o) for i, o in itertools.pairwise(hidden))
        self.cross = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in itertools.pairwise(hidden))
        self.out = DomainLinear(domains, hidden[-1], out)
        self.dropout = Dropout(dropout)
        self.register_buffer("others", (1 - torch.eye(domains)) / max(domains - 1, 1))  # (D, D): whose activations a network reads

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        domain = domain_of_rows(offsets, x.device)
        h = self.first(x)  # (N, D, hidden): every network on every row
        if not self.layers:
            return self.out(_of(h, domain), offsets)
        for layer, cross in zip(self.layers[:-1], self.cross[:-1], strict=True):
            h = self._active(_every(layer, cross, h, self.others @ h))
        across = torch.bmm(self.others[domain][:, None], h).squeeze(1)  # the last layer, for the row's own network alone
        h = self._active(self.layers[-1](_of(h, domain), offsets) + self.cross[-1](across))
        return self.out(h, offsets)

    def transfer(self) -> Tensor:
        """The sum of the absolute values of all H: what the sparse variant keeps small."""
        return sum((h.abs().sum() for h in self.cross.parameters()), self.out.weight.new_zeros(()))

    def _active(self, h: Tensor) -> Tensor:
        return self.dropout(h.relu())

    def grow_from(self, old: CoNetNetwork) -> set[str]:
        """New networks read the old ones; the old ones read what they read before."""
        d = len(old.others)
        self.others.zero_()
        self.others[:d, :d] = old.others
        self.others[d:, :d] = 1 / d
        return {"others"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing: H belongs to all."""
        return {}


def _every(layer: nn.Module, cross: nn.Module, h: Tensor, others: Tensor) -> Tensor:
    """Each domain's layer on its own and H on the others' activations of all rows, (N, D, in) -> (N, D, out)."""
    assert isinstance(layer, DomainLinear)
    assert layer.bias is not None
    assert isinstance(cross, nn.Linear)
    own = torch.baddbmm(layer.bias[:, None], h.transpose(0, 1), layer.weight.transpose(1, 2))
    # a product per domain: as one wide product the rows' last bits would depend on the number of domains
    return torch.baddbmm(own, others.transpose(0, 1), cross.weight.t().expand(len(own), -1, -1)).transpose(0, 1)


def _of(h: Tensor, domain: Tensor) -> Tensor:
    """(N, D, width) -> (N, width): each row's own network's."""
    return h.gather(1, domain[:, None, None].expand(-1, 1, h.shape[2])).squeeze(1)
