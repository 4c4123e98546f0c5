"""``Fields``: a vector for each field of a row and of a candidate, for models in which fields meet; and ``Linear``, their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.biases import Levels
from isthmus.layers.features import ContextFields, EntityFields
from isthmus.layers.table import DomainTable
from isthmus.schema import Schema


class Fields(nn.Module):
    """The fields of a row (its user, its domain, its context, what the user did) and of a candidate.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        id_dropout: share of ids replaced by "unknown" in training.
        history: read the history in the row's own domain: the mean over its items, by field.

    Attributes:
        count: number of fields.
    """

    def __init__(self, schema: Schema, dim: int, *, id_dropout: float = 0.05, history: bool = True) -> None:
        super().__init__()
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout)
        self.domain = DomainTable(len(schema.domains), dim)
        self.context = ContextFields(schema.context, dim) if schema.context else None
        self.history = history
        self.count = self.users.fields + 1 + len(schema.context) + (1 + history) * self.items.fields

    def row(self, batch: Batch) -> Tensor:
        """(B, fields of the row, dim): the user's, the domain's, the context's, the history's."""
        parts = [self.users(batch.user), self.domain(batch.domain + 1)[:, None]]
        if self.context is not None:
            parts.append(self.context(batch.context))
        if self.history:
            assert batch.history is not None
            parts.append(self.items.mean(batch.history))
        return torch.cat(parts, 1)

    def item(self, item: Tensor) -> Tensor:
        """Codes (...) -> (..., fields of an item, dim)."""
        return self.items(item)

    def forward(self, batch: Batch) -> Tensor:
        """(B, C, count, dim), the row's fields first."""
        row, item = self.row(batch), self.item(batch.item)
        return torch.cat([row[:, None].expand(-1, item.shape[1], -1, -1), item], 2)


class Linear(nn.Module):
    """A weight for each field's value, and the level of the domain: what logistic regression is, and the wide part of others.

    Args:
        schema, id_dropout, history: see ``Fields``.
    """

    def __init__(self, schema: Schema, *, id_dropout: float = 0.05, history: bool = True) -> None:
        super().__init__()
        self.weights = Fields(schema, 1, id_dropout=id_dropout, history=history)
        self.levels = Levels(schema)

    def row(self, batch: Batch) -> Tensor:
        """(B,): the level and the sum of the row's weights."""
        return self.levels.level[batch.domain] + self.weights.row(batch).sum((1, 2))

    def item(self, item: Tensor) -> Tensor:
        """Codes (...) -> (...): the sum of the candidate's weights."""
        return self.weights.item(item).sum((-2, -1))

    def forward(self, batch: Batch) -> Tensor:
        """(B, C)."""
        return self.row(batch)[:, None] + self.item(batch.item)
