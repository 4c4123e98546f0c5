"""``Biases``: what a domain and an item say of a label before anyone's taste: the level, and shrunk item biases.

With n events of an item in a domain, y their labels, s = ``shrink`` and m the domain's mean label::

    ratings   level = m           bias = (sum of y - n m) / (n + s)
    clicks    level = logit(m)    bias = logit((sum of y + s m) / (n + s)) - level
    implicit  level = 0           bias = 0

A network that reads these in training must not see its own answer in them: given the rows' labels, each row's own is
left out of its item's numbers (leave-one-out), or the network would trust what it cannot have later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.layers.from_data import FromData
from isthmus.layers.growing import Growing, Rows, one_row_each
from isthmus.layers.solved import Solved, find

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset
    from isthmus.schema import Schema


class Biases(Solved, FromData, Growing):
    """Levels of the domains and shrunk biases of their items, from the training part.

    Buffers: ``mean`` (D,) mean label, ``level`` (D,); ``keys`` (n,) ``domain * item.size + item`` ascending, ``total`` and
    ``count`` (n + 1,) sum of labels and number of events, the last one 0 for pairs without events.

    Args:
        schema: of an encoded data set.
        shrink: events that the domain's mean is worth, above 0.

    Raises:
        ConfigError: ``shrink`` not above 0.
    """

    mean: Tensor
    level: Tensor
    keys: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, schema: Schema, shrink: float = 5.0) -> None:
        super().__init__()
        if shrink <= 0:
            raise ConfigError(f"shrink = {shrink}", "a number above 0", "try 5")
        self.kind, self.size, self.shrink = schema.label, schema.item.size, shrink
        for name in ("mean", "level"):
            self.register_buffer(name, torch.zeros(len(schema.domains)))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(1))

    def take(self, dataset: Dataset) -> None:
        """Counts the training part."""
        rows, domains = dataset.part("train"), len(self.level)
        if rows.label is None:
            return
        label, domain = np.asarray(rows.label, np.float64), np.asarray(rows.domain, np.int64)
        n = np.bincount(domain, minlength=domains)
        if self.kind == "click":  # never exactly 0 or 1
            mean = (np.bincount(domain, label, domains) + 0.5) / (n + 1)
            level = np.log(mean / (1 - mean))
        else:
            level = mean = np.bincount(domain, label, domains) / np.maximum(n, 1)
        keys, where, count = np.unique(domain * self.size + np.asarray(rows.item), return_inverse=True, return_counts=True)
        found = {
            "mean": mean,
            "level": level,
            "keys": keys,
            "total": np.append(np.bincount(where, label), 0.0),
            "count": np.append(count, 0),
        }
        self.fill(**{name: torch.from_numpy(value) for name, value in found.items()})

    def item(self, item: Tensor, domain: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Biases and numbers of events.

        Args:
            item, domain: (...) codes and domain indices.
            label: (...) in training, the rows' own labels, each left out of its own item's numbers; None: nothing is.

        Returns:
            (...) biases on the scale of ``level``, and (...) numbers of events, what is left out not counted.
        """
        place = find(self.keys, domain * self.size + item)
        total, count = self.total[place], self.count[place]
        if label is not None:
            own = (count > 0).to(count.dtype)
            total, count = total - own * label, count - own
        mean = self.mean[domain]
        if self.kind == "click":
            share = (total + self.shrink * mean) / (count + self.shrink)
            return torch.logit(share) - self.level[domain], count
        return (total - count * mean) / (count + self.shrink), count

    def grow_from(self, old: Biases) -> set[str]:
        """Old domains keep what was counted before; new ones have what was counted now."""
        known = len(old.level)
        self.mean[:known], self.level[:known] = old.mean, old.level
        new = self.keys >= known * self.size
        moved = old.keys // old.size * self.size + old.keys % old.size  # items with events keep their codes
        self.fill(
            keys=torch.cat([moved, self.keys[new]]),
            total=torch.cat([old.total[:-1], self.total[:-1][new], old.total[-1:]]),
            count=torch.cat([old.count[:-1], self.count[:-1][new], old.count[-1:]]),
        )
        return {"mean", "level", "keys", "total", "count"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' levels."""
        return dict.fromkeys(("mean", "level"), one_row_each(len(self.level), domains))

    def residual(self, item: Tensor, domain: Tensor, label: Tensor) -> Tensor:
        """Ratings (...) less the level and the item's bias: what they say of the user."""
        return label - self.level[domain] - self.item(item, domain)[0]
