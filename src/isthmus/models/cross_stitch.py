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
from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.domain import DomainLinear, Experts
from isthmus.layers.features import Inputs
from isthmus.model import Model
from isthmus.schema import Schema

OWN = 0.9  # of a unit's start: how much of itself a network keeps


class CrossStitch(Model):
    """Stitched networks; the output layer is the row's own domain's.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the hidden layers of each domain's network.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Misra et al., Cross-Stitch Networks, CVPR 2016"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (64, 32), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        n = len(schema.domains)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.first = Experts(n, self.inputs.width, hidden[:1], dropout=dropout)
        self.deeper = nn.ModuleList(_Networks(n, i, o, dropout) for i, o in itertools.pairwise(hidden))
        start = torch.full((n, n), (1 - OWN) / max(n - 1, 1)).fill_diagonal_(OWN if n > 1 else 1.0)
        self.alpha = nn.ParameterList(nn.Parameter(start.clone()) for _ in hidden)
        self.out = DomainLinear(n, hidden[-1], 1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        h = self.first(self.inputs(batch).flatten(0, 1))  # (N, D, width): every network on every row
        for alpha, layer in zip(self.alpha[:-1], self.deeper, strict=True):
            h = layer(alpha @ h)  # stitch
        domain = batch.domain[:, None].expand_as(batch.item).flatten()
        own = torch.bmm(self.alpha[-1][domain][:, None], h).squeeze(1)  # stitch, for the row's own network alone
        return Output(self.out(own, batch.item_offsets).view(batch.item.shape))


class _Networks(nn.Module):
    """One further layer of every domain's network: (N, D, in) -> (N, D, out)."""

    def __init__(self, n: int, width: int, out: int, dropout: float) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(n, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, out).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).relu()).transpose(0, 1)
