"""DeepFM: a factorisation machine and a network on the same vectors.

Guo, Tang, Ye, Li, He: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, IJCAI 2017.

    logit = level_d + sum of w_f + sum over f < g of <v_f, v_g> + MLP([v_1, ..., v_F])          (eq. 1-4)

Deviation: what the user did is one more field, the mean of her items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.fields import Fields, Linear
from isthmus.layers.interactions import bi_interaction
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class DeepFM(Model):
    """Pairs of fields beside a network on all vectors.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Guo et al., DeepFM, IJCAI 2017"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (128, 64), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        self.mlp = MLP(self.fields.count * dim, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.fields(batch)
        deep = self.mlp(x.flatten(2).flatten(0, 1)).view(batch.item.shape)
        return Output(self.linear(batch) + bi_interaction(x).sum(-1) + deep)
