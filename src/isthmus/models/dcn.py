"""DCN-v2: a cross network, which multiplies what it has by its input at every layer, and a deep one.

Wang, Shivanna, Cheng, Jain, Lin, Hong, Chi: DCN V2: Improved Deep & Cross Network, WWW 2021.

    x_0 = [v_1, ..., v_F],  x_(l+1) = x_0 * (W_l x_l + b_l) + x_l                   (eq. 1)
    stacked   logit = level_d + w' MLP(x_L)
    parallel  logit = level_d + w' [x_L, MLP(x_0)]                                  (eq. 4)

Deviation: what the user did is one more field, the mean of her items.  The paper's mixture of low-rank matrices is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.biases import Levels
from isthmus.layers.fields import Fields
from isthmus.layers.interactions import CrossNetwork
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import Schema


class DCN(Model):
    """A cross network and a deep one.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        layers: of the cross network.
        rank: of the cross network's matrices; None: full.
        hidden: widths of the network's hidden layers.
        parallel: both networks side by side; False: the deep one on top of the cross network.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Wang et al., DCN V2, WWW 2021"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 3,
        rank: int | None = None,
        hidden: Sequence[int] = (128, 64),
        parallel: bool = False,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.parallel = parallel
        self.levels = Levels(schema)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)
        width = self.fields.count * dim
        self.cross = CrossNetwork(width, layers, rank)
        self.mlp = MLP(width, hidden, dropout=dropout)
        self.read = nn.Linear(self.mlp.width + parallel * width, 1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.fields(batch).flatten(2).flatten(0, 1)
        crossed = self.cross(x)
        found = torch.cat([crossed, self.mlp(x)], 1) if self.parallel else self.mlp(crossed)
        return Output(self.read(found).view(batch.item.shape) + self.levels.level[batch.domain, None])
