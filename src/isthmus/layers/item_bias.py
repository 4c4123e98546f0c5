"""``ItemBias``: what is popular where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.layers.growing import Growing, Rows
from isthmus.layers.table import Table
from isthmus.schema import UNKNOWN, Schema


class ItemBias(Growing):
    """A number for each item in each domain, added to its score: one more coordinate of its vector, and a 1 in the user's.

    Without it an item of several domains carries its popularity elsewhere along.  Padding and items that training never saw have none.

    Args:
        schema: of an encoded data set.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.domains, self.known = len(schema.domains), schema.item.trained
        self.table = Table(1 + self.domains * self.known, 1)

    def user(self, vector: Tensor) -> Tensor:
        """(..., d) -> (..., d + 1)."""
        return torch.cat([vector, torch.ones_like(vector[..., :1])], -1)

    def item(self, vector: Tensor, item: Tensor, domain: Tensor) -> Tensor:
        """(..., d), with codes and domains (...) -> (..., d + 1)."""
        pair = torch.where((item > UNKNOWN) & (item < self.known), 1 + domain * self.known + item, 0)
        return torch.cat([vector, self.table(pair)], -1)

    def grow_from(self, old: ItemBias) -> set[str]:
        """An item's bias in a new domain starts at its mean over the old ones; a new item's at 0, as if unknown."""
        before = old.table.weight[1:].view(old.domains, -1)
        now = self.table.weight.new_zeros(self.domains, self.known)
        now[: old.domains, : before.shape[1]] = before
        now[old.domains :, : before.shape[1]] = before.mean(0)
        self.table.weight[1:] = now.view(-1, 1)
        return {"table.weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Biases of all items in the domains."""
        mask = items.new_zeros(self.domains, self.known)
        mask[list(domains)] = True
        return {"table.weight": torch.cat([mask.new_zeros(1), mask.flatten()])}
