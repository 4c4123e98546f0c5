"""FM: factorisation machine.

Rendle: Factorization Machines, ICDM 2010.

    logit = level_d + sum of w_f + sum over f < g of <v_f, v_g>                 (eq. 1, 2)

The pairs within the user's side do not depend on the candidate and those within the candidate do not depend on the user; the
rest is one dot product, so items can be indexed.

Deviation: what the user did is one more field, the mean of her items.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.fields import Fields, Linear
from isthmus.layers.interactions import bi_interaction
from isthmus.model import Retriever
from isthmus.schema import Schema


class FM(Retriever):
    """A weight and a vector for each value of each field; every two vectors meet.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Rendle, Factorization Machines, ICDM 2010"

    def __init__(self, schema: Schema, *, dim: int = 16, id_dropout: float = 0.05) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)
        self.fields = Fields(schema, dim, id_dropout=id_dropout)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2): the sum of the row's vectors, what it is worth by itself, 1."""
        row = self.fields.row(batch)
        own = self.linear.row(batch) + bi_interaction(row).sum(-1)
        return torch.cat([row.sum(1), own[:, None], torch.ones_like(own)[:, None]], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        fields = self.fields.item(item)
        own = self.linear.item(item) + bi_interaction(fields).sum(-1)
        return torch.cat([fields.sum(-2), torch.ones_like(own)[..., None], own[..., None]], -1)
