"""``DomainItems`` and ``ItemBias``: what an item is in one domain alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.layers.growing import Growing, Rows
from isthmus.layers.table import Table
from isthmus.schema import UNKNOWN, Schema


class DomainItems(Growing):
    """A vector for each item in each domain; zeros for padding and for items that training never saw.

    Only rows that a batch touches are read or updated, so a domain without rows in a batch keeps its vectors, bit for bit.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        std: standard deviation of the start.
    """

    def __init__(self, schema: Schema, dim: int, *, std: float = 0.01) -> None:
        super().__init__()
        self.domains, self.known = len(schema.domains), schema.item.trained
        self.table = Table(1 + self.domains * self.known, dim, std=std, sparse=True)

    def forward(self, item: Tensor, domain: Tensor) -> Tensor:
        """Codes and domains (...) -> (..., dim)."""
        return self.table(torch.where((item > UNKNOWN) & (item < self.known), 1 + domain * self.known + item, 0))

    def grow_from(self, old: DomainItems) -> set[str]:
        """An item's vector in a new domain starts at its mean over the old ones; a new item's at 0, as if unknown."""
        before = old.table.weight[1:].view(old.domains, old.known, -1)
        now = self.table.weight.new_zeros(self.domains, self.known, before.shape[2])
        now[: old.domains, : old.known] = before
        now[old.domains :, : old.known] = before.mean(0)
        self.table.weight[1:] = now.flatten(0, 1)
        return {"table.weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Vectors of all items in the domains."""
        mask = items.new_zeros(self.domains, self.known)
        mask[list(domains)] = True
        return {"table.weight": torch.cat([mask.new_zeros(1), mask.flatten()])}


class ItemBias(DomainItems):
    """A number for each item in each domain, added to its score: one more coordinate of its vector, and a 1 in the user's.

    Without it an item of several domains carries its popularity elsewhere along.

    Args:
        schema: of an encoded data set.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, 1)

    def user(self, vector: Tensor) -> Tensor:
        """(..., d) -> (..., d + 1)."""
        return torch.cat([vector, torch.ones_like(vector[..., :1])], -1)

    def item(self, vector: Tensor, item: Tensor, domain: Tensor) -> Tensor:
        """(..., d), with codes and domains (...) -> (..., d + 1)."""
        return torch.cat([vector, self(item, domain)], -1)
