"""LR: logistic regression on ids, fields and what the user did.

Richardson, Dominowska, Ragno: Predicting Clicks: Estimating the Click-Through Rate for New Ads, WWW 2007.

    logit = level_d + sum of w_f                f: every field's value, of the user, the event, the domain, the candidate

Deviations: weights of ids beside those of fields, for which the paper has counted rates; the mean weight of the items that
the user had.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.fields import Linear
from isthmus.model import Retriever
from isthmus.schema import Schema


class LR(Retriever):
    """A weight for each value of each field.

    Args:
        schema: of an encoded data set.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Richardson et al., Predicting Clicks, WWW 2007"
    shallow: ClassVar[bool] = True

    def __init__(self, schema: Schema, *, id_dropout: float = 0.05) -> None:
        super().__init__(schema)
        self.linear = Linear(schema, id_dropout=id_dropout)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, 2)."""
        row = self.linear.row(batch)
        return torch.stack([row, torch.ones_like(row)], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., 2)."""
        weight = self.linear.item(item)
        return torch.stack([torch.ones_like(weight), weight], -1)
