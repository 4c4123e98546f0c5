"""DIN: what the user did counts as far as the candidate asks for it.

Zhou, Zhu, Song, Fan, Zhu, Ma, Yan, Jin, Li, Gai: Deep Interest Network for Click-Through Rate Prediction, KDD 2018.

    v_U(q) = sum over j of a(e_j, q) e_j                            a: a network of [e_j, q, e_j * q]   (eq. 3)
    logit  = level_d + MLP([user, domain, context, q, v_U(q)])      with Dice between layers            (eq. 10)

The weights a are not normalised, as printed; ``softmax`` does it.

Deviations: the outer product of e_j and q is their elementwise one; mini-batch aware decay is ``table_decay`` of fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.biases import Levels
from isthmus.layers.fields import Fields
from isthmus.layers.mlp import MLP
from isthmus.layers.target_attention import Dice, TargetAttention
from isthmus.model import Model
from isthmus.schema import PADDING, Schema


class DIN(Model):
    """Target attention over the history in the row's own domain.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        attention: widths of the attention network's hidden layers; at least one.
        softmax: attention weights that sum to 1.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Zhou et al., Deep Interest Network, KDD 2018"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        attention: Sequence[int] = (80, 40),
        softmax: bool = False,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.levels = Levels(schema)
        self.fields = Fields(schema, dim, id_dropout=id_dropout, history=False)
        width = self.fields.items.fields * dim  # of an event and of a candidate: all fields of the item
        self.attention = TargetAttention(width, attention, softmax=softmax)
        self.mlp = MLP(self.fields.count * dim + width, hidden, dropout=dropout, activation=Dice, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        assert batch.history is not None
        row, column = (batch.history != PADDING).nonzero(as_tuple=True)
        event = self.fields.item(batch.history[row, column]).flatten(1)
        candidate = self.fields.item(batch.item).flatten(2)
        user = self.fields.row(batch).flatten(1)[:, None].expand(-1, candidate.shape[1], -1)
        x = torch.cat([user, candidate, self.attention(event, row, candidate)], 2)
        return Output(self.mlp(x.flatten(0, 1)).view(batch.item.shape) + self.levels.level[batch.domain, None])
