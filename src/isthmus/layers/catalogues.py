"""``Catalogues``: which items each domain can show, as a part of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isthmus.layers.from_data import FromData
from isthmus.layers.solved import Solved, find

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset
    from isthmus.schema import Schema


class Catalogues(Solved, FromData):
    """Membership of items in the train catalogues of domains.

    Buffer ``keys``: (n,) int64 ``domain * item.size + item``, ascending; empty until filled.

    Args:
        schema: of an encoded data set.
    """

    keys: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.size = schema.item.size
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))

    def take(self, dataset: Dataset) -> None:
        """Takes over a data set's catalogues."""
        domains = range(len(dataset.schema.domains))
        keys = [np.asarray(dataset.catalogue(d), np.int64) + d * self.size for d in domains]
        self.fill(keys=torch.from_numpy(np.concatenate(keys)))

    def forward(self, item: Tensor, domain: Tensor | int) -> Tensor:
        """Codes and domains (...) -> (...) bool: can the domain show the item?"""
        return find(self.keys, domain * self.size + item) < self.keys.numel()
