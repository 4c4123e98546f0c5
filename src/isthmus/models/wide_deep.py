"""Wide & Deep: a linear model that remembers beside a network that generalises.

Cheng et al.: Wide & Deep Learning for Recommender Systems, DLRS 2016.

    logit = level_d + sum of w_f + MLP([v_1, ..., v_F])         (eq. 3)

Deviations: the paper's hand-made cross products of fields are left to the user (a column of its own in the data); one optimiser for
both parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.fields import Fields, Linear
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class WideDeep(Model):
    """A weight for each field's value, and a network on all vectors.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Cheng et al., Wide & Deep Learning, DLRS 2016"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (128, 64), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        self.mlp = MLP(self.fields.count * dim, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.fields(batch).flatten(2).flatten(0, 1)
        return Output(self.linear(batch) + self.mlp(x).view(batch.item.shape))
