"""STAR: each domain's weights are the product of shared weights and its own.

Sheng et al.: One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction, CIKM 2021.

    x'  = gamma * gamma_d * (x - mean_d) / sqrt(var_d + eps) + beta + beta_d             (partitioned normalisation)
    W*_d = W_d * W (elementwise),   b*_d = b_d + b                                       (star)
    logit = s_star(x') + s_aux(domain indicator, x)                                      (auxiliary network)

Mean and variance are those of the domain's own rows in training, and their running averages after it.

Deviations: the domain's own factors start at 1 (weights) and 0 (biases), so that at first every domain is the shared
network; x holds a domain embedding already (see ``Inputs``), which the normalisation cancels within a domain.
Cost: the products W_d * W are D small matrices per step, whatever the number of rows (measured as in Cross-Stitch: 100
domains take 1.3 times the CPU time of 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.domain import DomainBatchNorm, grouped_linear
from isthmus.layers.features import Inputs
from isthmus.layers.mlp import MLP
from isthmus.layers.table import Table
from isthmus.model import Model
from isthmus.schema import Schema


class _PartitionedNorm(nn.Module):
    """Batch norm with each domain's own statistics and a shared gain and offset beside its own."""

    def __init__(self, domains: int, width: int) -> None:
        super().__init__()
        self.norm = DomainBatchNorm(domains, width, affine=False)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.domain_weight = nn.Parameter(torch.ones(domains, width))
        self.domain_bias = nn.Parameter(torch.zeros(domains, width))

    def forward(self, x: Tensor, offsets: Sequence[int], domain: Tensor) -> Tensor:
        gain, offset = self.weight * self.domain_weight, self.bias + self.domain_bias
        return self.norm(x, offsets) * F.embedding(domain, gain) + F.embedding(domain, offset)


class _StarLinear(nn.Module):
    """A linear layer whose weight is the domain's times the shared one."""

    def __init__(self, domains: int, width: int, out: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, out)
        self.weight = nn.Parameter(torch.ones(domains, out, width))
        self.bias = nn.Parameter(torch.zeros(domains, out))

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        return grouped_linear(x, offsets, self.weight * self.shared.weight, self.bias + self.shared.bias)  # star


class STAR(Model):
    """Star topology adaptive recommender.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the star network's hidden layers.
        auxiliary: widths of the auxiliary network's hidden layers.
        norm: partitioned normalisation of the input.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Sheng et al., Star Topology Adaptive Recommender, CIKM 2021"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        auxiliary: Sequence[int] = (32,),
        norm: bool = True,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        domains = len(schema.domains)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.norm = _PartitionedNorm(domains, self.inputs.width) if norm else None
        widths = [self.inputs.width, *hidden, 1]
        self.layers = nn.ModuleList(_StarLinear(domains, i, o) for i, o in itertools.pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.indicator = Table(domains + 1, dim, std=0.1)
        self.auxiliary = MLP(self.inputs.width + dim, auxiliary, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x, offsets = self.inputs(batch).flatten(0, 1), batch.item_offsets
        domain = batch.domain[:, None].expand_as(batch.item).flatten()
        h = x if self.norm is None else self.norm(x, offsets, domain)  # partitioned normalisation
        for layer in self.layers[:-1]:
            h = self.dropout(layer(h, offsets).relu())
        star = self.layers[-1](h, offsets)
        aux = self.auxiliary(torch.cat([self.indicator(domain + 1), x], 1))
        return Output((star + aux).view(batch.item.shape))  # auxiliary network
