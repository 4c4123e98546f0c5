"""PLE: shared experts and experts of each domain's own, in levels, so that domains disturb each other less.

Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations, RecSys 2020; with domains in the place of tasks.

    S_d(x) = [own experts of d; shared experts]                                          (selection)
    g_d(x) = w_d(x) S_d(x),   w_d(x) = softmax(W_d x)                                    (CGC gate)
    x_d of the next level = g_d;   its shared input = g_s(x) = softmax(W_s x) [all experts]   (shared gate)
    y_d    = t_d(g_d) at the last level                                                  (tower)

With one level this is CGC.  The last level has no shared gate: nothing would read it.

Deviation: the paper's shared gate mixes ALL domains' experts, which would run every row through every domain.  Here its
softmax is taken over those experts that the row runs: its own domain's and the shared ones.  W_s keeps a column for every
expert of every domain, so this is the paper's gate with the absent experts masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.domain import DomainLinear, DomainMLP, Experts
from isthmus.layers.networks._base import Network, require_layers


class _Level(nn.Module):
    """One extraction level: own input and shared input (N, width) -> own and shared mixtures (N, last hidden width)."""

    def __init__(self, domains: int, width: int, hidden: Sequence[int], *, own: int, shared: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(DomainMLP(domains, width, hidden, out=None, dropout=dropout) for _ in range(own))
        self.shared = Experts(shared, width, hidden, dropout=dropout)
        self.gate = DomainLinear(domains, width, own + shared, bias=False)
        self.shared_gate = None if last else nn.Linear(width, shared, bias=False)
        self.shared_gate_own = None if last else DomainLinear(domains, width, own, bias=False)
        self.width = self.shared.width

    def forward(self, own: Tensor, shared: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        experts = torch.cat([torch.stack([e(own, offsets) for e in self.own], 1), self.shared(shared)], 1)  # selection
        mixed = _mix(self.gate(own, offsets), experts)  # CGC gate
        if self.shared_gate is None or self.shared_gate_own is None:
            return mixed, shared
        gate = torch.cat([self.shared_gate_own(shared, offsets), self.shared_gate(shared)], 1)
        return mixed, _mix(gate, experts)  # shared gate


def _mix(gate: Tensor, experts: Tensor) -> Tensor:
    """softmax(gate) (N, E) over experts (N, E, width) -> (N, width)."""
    return torch.bmm(gate.softmax(-1)[:, None], experts).squeeze(1)


class PLENetwork(Network):
    """Progressive layered extraction.

    Args:
        domains: number of domains.
        width: of the input.
        out: width of the output.
        levels: 1 or more: extraction networks, then one CGC.
        own: experts of each domain's own, per level.
        shared: shared experts, per level.
        hidden: widths of an expert's layers, in every level; at least one.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: no level, a level without own or shared experts, or experts without a layer.
    """

    def __init__(
        self,
        domains: int,
        width: int,
        *,
        out: int,
        levels: int = 2,
        own: int = 1,
        shared: int = 2,
        hidden: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(domains, width, out=out)
        if min(levels, own, shared) < 1:
            raise ConfigError(f"levels = {levels}, own = {own}, shared = {shared}", "numbers of at least 1", "raise the one below 1")
        require_layers(hidden)
        self.levels = nn.ModuleList()
        for level in range(1, levels + 1):
            self.levels.append(_Level(domains, width, hidden, own=own, shared=shared, dropout=dropout, last=level == levels))
            width = hidden[-1]
        self.towers = DomainMLP(domains, width, tower, out=out, dropout=dropout)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, out)."""
        mine = common = x
        for level in self.levels:
            mine, common = level(mine, common, offsets)
        return self.towers(mine, offsets)  # tower
