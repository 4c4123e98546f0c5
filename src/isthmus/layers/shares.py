"""``Shares``: how much of its domain each item is, by which scores that know nothing, or the same, can be told apart."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.layers.drawing import drawing, known
from isthmus.layers.solved import PairTable

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class Shares(PairTable):
    """Each item's share of its domain's training positives; 0 where it has none.

    Args:
        size: of the item vocabulary.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, 1)

    def learn(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        """Takes the shares of the given domains from the training part."""
        keys, rows = [], []
        for domain in domains:
            count = dataset.popularity(domain)
            seen = np.flatnonzero(count)
            keys.append(domain * self.size + seen)
            rows.append(count[seen] / count.sum())
        self.solve(torch.from_numpy(np.concatenate(keys)), torch.from_numpy(np.concatenate(rows))[:, None], torch.zeros(1))

    def of(self, batch: Batch) -> Tensor:
        """(B, C) share of each candidate in its row's domain."""
        parts = []
        for domain, (a, b) in enumerate(itertools.pairwise(batch.offsets)):
            if drawing() and known(a == b):
                continue
            item = batch.item[a:b]
            whole = known(item.numel() > self.size)  # then one look-up per item is less than one per candidate
            code = torch.arange(self.size, device=item.device) if whole else item
            share = self(torch.full_like(code, domain), code)[..., 0]
            parts.append(share[item] if whole else share)
        return torch.cat(parts)
