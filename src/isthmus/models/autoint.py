"""AutoInt: fields attend to each other.

Song, Shi, Xiao, Duan, Xu, Zhang, Tang: AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks, CIKM 2019.

    e^0_f = v_f,  e^(l+1) = attention layer over the fields of e^l          (eq. 5-8)
    logit = level_d + w' [e^L_1, ..., e^L_F] (+ MLP([v_1, ..., v_F]))       (eq. 9; with the network it is their AutoInt+)

Deviation: what the user did is one more field, the mean of her items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.biases import Levels
from isthmus.layers.fields import Fields
from isthmus.layers.interactions import FieldAttention
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class AutoInt(Model):
    """Self-attention over fields.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        layers: of attention.
        width: of a field after a layer, all heads together.
        heads: of each layer.
        hidden: widths of the network beside it; empty: none.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Song et al., AutoInt, CIKM 2019"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 3,
        width: int = 32,
        heads: int = 2,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.levels = Levels(schema)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        self.attention = nn.Sequential(*(FieldAttention(width if layer else dim, width, heads) for layer in range(layers)))
        self.read = nn.Linear(self.fields.count * (width if layers else dim), 1)
        self.mlp = MLP(self.fields.count * dim, hidden, dropout=dropout, out=1) if hidden else None

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.fields(batch).flatten(0, 1)  # (B * C, fields, dim)
        logit = self.read(self.attention(x).flatten(1))
        if self.mlp is not None:
            logit = logit + self.mlp(x.flatten(1))
        return Output(logit.view(batch.item.shape) + self.levels.level[batch.domain, None])
