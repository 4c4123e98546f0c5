"""MV-DNN: one view of the users for all domains, and a view of the items for each.

Elkahky, Song, He: A Multi-View Deep Learning Approach for Cross Domain User Modeling in Recommendation Systems, WWW 2015.

    score_d(u, i) = cos(f(x_u), g_d(x_i)) / temperature         f shared by all domains, g_d the domain's own         (eq. 2, 3)

For clicks and ratings the level of the domain is added to the score.

Deviations: embeddings of ids and fields in place of letter trigrams; what a user did here and elsewhere is part of her view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.biases import Levels
from isthmus.layers.networks import make_network
from isthmus.layers.towers import NEEDS, Make, Residual, Towers
from isthmus.model import Retriever
from isthmus.schema import Schema


class MVDNN(Retriever):
    """A shared network of users and one of items per domain, compared by cosine.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector and of both views' output.
        hidden: widths of the networks' hidden layers.
        temperature: what the cosine is divided by.
        dropout: share of activations dropped in training.
        id_dropout: share of user ids replaced by "unknown" in training.

    Raises:
        ConfigError: a temperature that is not positive, or a share outside [0, 1).
    """

    needs: ClassVar[Needs] = NEEDS
    paper: ClassVar[str] = "Elkahky et al., A Multi-View Deep Learning Approach, WWW 2015"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (128,),
        temperature: float = 0.2,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)

        domains, args = len(schema.domains), {"hidden": hidden, "dropout": dropout}

        def view(network: str) -> Make:
            return lambda fields, dim: Residual(make_network(network, domains, fields * dim, dim, args), residual=False)

        self.levels = Levels(schema)
        self.towers = Towers(schema, view("dnn"), view("mlp_plus_plus"), dim=dim, id_dropout=id_dropout, temperature=temperature)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 1)."""
        return torch.cat([self.towers.user(batch), self.levels.level[batch.domain, None]], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes (...) and domain indices of the same shape, in any order -> (..., dim + 1)."""
        vector = self.towers.item(item, domain)
        return torch.cat([vector, torch.ones_like(vector[..., :1])], -1)
