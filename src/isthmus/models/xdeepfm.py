"""xDeepFM: fields meet layer by layer, as whole vectors.

Lian, Zhou, Zhang, Chen, Xie, Sun: xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems, KDD 2018.

    logit = level_d + sum of w_f + w' CIN(v) + MLP([v_1, ..., v_F])         (eq. 9)

Deviation: what the user did is one more field, the mean of her items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.fields import Fields, Linear
from isthmus.layers.interactions import CIN
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class XDeepFM(Model):
    """A compressed interaction network beside a network on all vectors.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        cin: number of feature maps in each layer of the interaction network.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Lian et al., xDeepFM, KDD 2018"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        cin: Sequence[int] = (32, 32),
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        self.cin = CIN(self.fields.count, cin)
        self.read = nn.Linear(self.cin.width, 1, bias=False)
        self.mlp = MLP(self.fields.count * dim, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.fields(batch).flatten(0, 1)  # (B * C, fields, dim)
        deep = self.read(self.cin(x)) + self.mlp(x.flatten(1))
        return Output(self.linear(batch) + deep.view(batch.item.shape))
