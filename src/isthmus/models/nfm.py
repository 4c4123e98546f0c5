"""NFM: neural factorisation machine.

He, Chua: Neural Factorization Machines for Sparse Predictive Analytics, SIGIR 2017.

    logit = level_d + sum of w_f + MLP(BN(f_BI))        f_BI: sum over f < g of v_f * v_g, elementwise      (eq. 3-7)

Deviation: what the user did is one more field, the mean of her items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.fields import Fields, Linear
from isthmus.layers.interactions import bi_interaction
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class NFM(Model):
    """All pairs of fields in one vector, and a network on it.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        hidden: widths of the network's hidden layers.
        norm: batch norm on the pooled pairs.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "He and Chua, Neural Factorization Machines, SIGIR 2017"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        norm: bool = True,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        self.norm = nn.BatchNorm1d(dim) if norm else nn.Identity()
        self.mlp = MLP(dim, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        pairs = bi_interaction(self.fields(batch)).flatten(0, 1)  # (B * C, dim), eq. 4
        return Output(self.linear(batch) + self.mlp(self.norm(pairs)).view(batch.item.shape))
