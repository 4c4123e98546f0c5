"""PLE: shared experts and experts of each domain's own, in levels, so that domains disturb each other less.

Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations, RecSys 2020; with domains in the place of tasks.

One level (customised gate control, eq. 1-4):  g_d(x) = w_d(x) S_d(x),  w_d(x) = softmax(W_d x), where S_d(x) stacks
the domain's own experts and the shared ones.  In every level but the last, the shared input of the next level is
mixed by a shared gate (eq. 6).

Deviation: the paper's shared gate mixes ALL tasks' experts.  A row here belongs to one domain, so its shared gate
mixes the shared experts and its own domain's: nothing is computed in other domains' experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.domain import DomainLinear, DomainMLP, Experts
from isthmus.layers.features import Inputs
from isthmus.model import Model
from isthmus.schema import Schema


class _Level(nn.Module):
    """One extraction level: (own, shared) inputs -> (own, shared) mixtures."""

    def __init__(self, domains: int, width: int, hidden: Sequence[int], own: int, shared: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(DomainMLP(domains, width, hidden, out=None, dropout=dropout) for _ in range(own))
        self.shared = Experts(shared, width, hidden, dropout=dropout)
        self.gate = DomainLinear(domains, width, own + shared, bias=False)
        self.shared_gate = None if last else nn.Linear(width, own + shared, bias=False)
        self.width = self.shared.width

    def forward(self, own: Tensor, shared: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        experts = torch.cat([torch.stack([e(own, offsets) for e in self.own], 1), self.shared(shared)], 1)  # eq. 2: S_d(x)
        mixed = _mix(self.gate(own, offsets), experts)  # eq. 1
        return mixed, mixed if self.shared_gate is None else _mix(self.shared_gate(shared), experts)  # eq. 6


def _mix(gate: Tensor, experts: Tensor) -> Tensor:
    """softmax(gate) (N, E) over experts (N, E, width) -> (N, width)."""
    return torch.bmm(gate.softmax(-1)[:, None], experts).squeeze(1)


class PLE(Model):
    """Progressive layered extraction.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        levels: extraction levels, 1 or more (one level is CGC).
        own: experts of each domain's own, per level.
        shared: shared experts, per level.
        hidden: widths of an expert's layers.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Tang et al., Progressive Layered Extraction, RecSys 2020"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        levels: int = 1,
        own: int = 1,
        shared: int = 2,
        hidden: Sequence[int] = (128, 64),
        tower: Sequence[int] = (32,),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        domains = len(schema.domains)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.levels = nn.ModuleList()
        width = self.inputs.width
        for number in range(levels):
            self.levels.append(_Level(domains, width, hidden, own, shared, dropout, last=number == levels - 1))
            width = hidden[-1]
        self.towers = DomainMLP(domains, width, tower, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        offsets = batch.item_offsets
        mine = common = self.inputs(batch).flatten(0, 1)
        for level in self.levels:
            mine, common = level(mine, common, offsets)
        return Output(self.towers(mine, offsets).view(batch.item.shape))
