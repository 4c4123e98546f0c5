"""MMoE: shared experts, mixed by a gate per domain, and a tower per domain.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018; with domains in the place of tasks.

    y_d    = h_d(f_d(x))                                                                 (tower)
    f_d(x) = sum_i g_d(x)_i f_i(x)                                                       (mixture)
    g_d(x) = softmax(W_d x)                                                              (gate)

The paper computes every task's gate and tower for every row; a row here has one domain and meets its own alone.
Deviation: ``Inputs`` gives every model here the same x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.domain import DomainLinear, DomainMLP, Experts
from isthmus.layers.features import Inputs
from isthmus.model import Model
from isthmus.schema import Schema


class MMoE(Model):
    """Multi-gate mixture of experts.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        experts: how many.
        hidden: widths of an expert's layers.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
        tower_norm: batch norm per domain in the towers (costs quality where a domain is small).
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Ma et al., Multi-gate Mixture-of-Experts, KDD 2018"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        experts: int = 4,
        hidden: Sequence[int] = (128, 64),
        tower: Sequence[int] = (32,),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
        tower_norm: bool = False,
    ) -> None:
        super().__init__(schema)
        domains = len(schema.domains)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.experts = Experts(experts, self.inputs.width, hidden, dropout=dropout)
        self.gate = DomainLinear(domains, self.inputs.width, experts, bias=False)
        self.towers = DomainMLP(domains, self.experts.width, tower, dropout=dropout, norm=tower_norm)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x, offsets = self.inputs(batch).flatten(0, 1), batch.item_offsets
        gate = self.gate(x, offsets).softmax(-1)  # gate
        mixed = torch.bmm(gate[:, None], self.experts(x)).squeeze(1)  # mixture
        return Output(self.towers(mixed, offsets).view(batch.item.shape))  # tower
