"""``UserClicks``: how much more a user clicked than the items she was shown lead to expect, here and elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isthmus.layers.biases import Biases
from isthmus.layers.from_data import FromData
from isthmus.layers.solved import PairTable, rekeyed
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

TOTAL = 1 << 20  # groups from here on hold a user's sums over domains, those below are the domains


class UserClicks(FromData, PairTable):
    """Clicks less expected clicks S, and their information n, of each user in each domain's training part.

    With the rate p of an impression's level and item bias: S = sum of (click - p) and n = sum of p (1 - p), so that
    S / (n + s) is one Newton step of a logistic user bias shrunk by s.  Histories hold no impressions, so these stand in for them.

    Buffers, besides those of ``PairTable``: ``generation`` (D,): domains that came to a grown model later count all that was known
    then, earlier ones what was known before.

    Args:
        schema: of an encoded data set with clicks.
        shrink_items: see ``Biases``.
    """

    generation: Tensor

    def __init__(self, schema: Schema, shrink_items: float) -> None:
        super().__init__(schema.user.size, 2)
        self.schema, self.shrink_items = schema, shrink_items
        self.register_buffer("generation", torch.zeros(len(schema.domains), dtype=torch.int64))

    def take(self, dataset: Dataset) -> None:
        """Counts the training part."""
        biases, rows = Biases(self.schema, self.shrink_items), dataset.part("train")
        biases.take(dataset)
        assert rows.label is not None
        user, item, domain = (np.asarray(column, np.int64) for column in (rows.user, rows.item, rows.domain))
        value = self.of(biases, torch.from_numpy(item), torch.from_numpy(domain), torch.tensor(np.asarray(rows.label)))
        pairs, total = self._sums(domain * self.size + user, value), self._sums(TOTAL * self.size + user, value)
        self.solve(torch.cat([pairs[0], total[0]]), torch.cat([pairs[1], total[1]]), torch.zeros(2))

    @staticmethod
    def of(biases: Biases, item: Tensor, domain: Tensor, label: Tensor) -> Tensor:
        """What impressions (B,) count: (B, 2)."""
        rate = torch.sigmoid(biases.level[domain] + biases.item(item, domain)[0])
        return torch.stack([label - rate, rate * (1 - rate)], 1)

    def here_and_elsewhere(self, user: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        """Users and domains (B,) -> S and n there, and in the other domains; (B, 2) each."""
        own, total = self(domain, user), self(TOTAL + self.generation[domain], user)
        return own, total - own

    def grow_from(self, old: PairTable) -> set[str]:
        """Old domains keep what was counted before; new ones have that and what was counted now."""
        assert isinstance(old, UserClicks)
        known, newest = len(old.generation), int(old.generation.max())
        before = rekeyed(old.keys, old.size, self.size)
        group = self.keys // self.size
        new = (group >= known) & (group < TOTAL)
        keys, rows = self.keys[new], self.rows[:-1][new]
        last = before // self.size == TOTAL + newest
        both = torch.cat([before[last] % self.size, keys % self.size]), torch.cat([old.rows[:-1][last], rows])
        total = self._sums((both[0] + (TOTAL + newest + 1) * self.size).cpu().numpy(), both[1])
        self.generation[:known], self.generation[known:] = old.generation, newest + 1
        self.solve(torch.cat([before, keys, total[0]]), torch.cat([old.rows[:-1], rows, total[1]]), old.rows[-1])
        return {"keys", "rows", "generation"}

    @staticmethod
    def _sums(keys: np.ndarray, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (n,), each once, and sums (n, 2)."""
        found, where = np.unique(keys, return_inverse=True)
        return torch.from_numpy(found).to(value.device), value.new_zeros(len(found), 2).index_add(
            0, torch.from_numpy(where).to(value.device), value
        )
