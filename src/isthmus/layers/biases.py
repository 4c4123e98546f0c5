"""``Levels`` and ``Biases``: what a domain and an item say of a label before anyone's taste: the level, and shrunk item biases.

With n events of an item in a domain, y their labels, s = ``shrink`` and m the domain's mean label::

    ratings   level = m           bias = (sum of y - n m) / (n + s)
    clicks    level = logit(m)    bias = logit((sum of y + s m) / (n + s)) - level
    implicit  level = 0           bias = 0

A domain without events has the level of all of them together.

With ``shrink_users`` an item's ratings y are first freed of their users' own biases, found by turns: an item is not bad because
harsh people rate it.

A network that reads these in training must not see its own answer in them: given the rows' labels, each row's own is
left out of its item's numbers (leave-one-out), or the network would trust what it cannot have later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.layers.from_data import FromData
from isthmus.layers.growing import Growing, Rows, one_row_each
from isthmus.layers.solved import Solved, find, rekeyed

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset
    from isthmus.schema import Schema


TURNS = 3  # between users and items; more change nothing that counts


class Levels(FromData, Growing):
    """Levels of the domains, from the training part.

    Buffers: ``mean`` (D,) mean label, ``level`` (D,); 0 until taken.

    Args:
        schema: of an encoded data set.
    """

    mean: Tensor
    level: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.kind = schema.label
        for name in ("mean", "level"):
            self.register_buffer(name, torch.zeros(len(schema.domains)))

    def take(self, dataset: Dataset) -> None:
        """Means of the training part's labels."""
        if self.kind == "implicit":
            return
        rows, domains = dataset.part("train"), len(self.level)
        assert rows.label is not None
        n = np.diff(np.asarray(rows.offsets))
        total = np.bincount(np.asarray(rows.domain), np.asarray(rows.label, np.float64), domains)
        n, total = np.where(n, n, n.sum()), np.where(n, total, total.sum())
        mean = total / np.maximum(n, 1)
        if self.kind == "click":  # never exactly 0 or 1
            mean = (total + 0.5) / (n + 1)
        self.mean.copy_(torch.from_numpy(mean))
        self.level.copy_(torch.from_numpy(np.log(mean / (1 - mean)) if self.kind == "click" else mean))

    def grow_from(self, old: Any) -> set[str]:
        """Old domains keep the levels they have."""
        known = len(old.level)
        self.mean[:known], self.level[:known] = old.mean, old.level
        return {"mean", "level"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' levels."""
        return dict.fromkeys(("mean", "level"), one_row_each(len(self.level), domains))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("mean", "level"):  # a network trained before it had levels learnt to do without
            state_dict.setdefault(prefix + name, torch.zeros(len(self.level)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Biases(Solved, Levels):
    """Levels of the domains and shrunk biases of their items, from the training part.

    Buffers, besides those of ``Levels``: ``keys`` (n,) ``domain * item.size + item`` ascending, ``total`` and
    ``count`` (n + 1,) sum of labels and number of events, the last one 0 for pairs without events.

    With ``shrink_users`` also ``users`` (user.size,) what their ratings lie above what items explain; 0 without events.

    Args:
        schema: of an encoded data set.
        shrink: events that the domain's mean is worth, above 0.
        shrink_users: events that no bias of a user is worth, above 0; None: ratings count as they are (clicks always do).

    Raises:
        ConfigError: ``shrink`` or ``shrink_users`` not above 0.
    """

    keys: Tensor
    total: Tensor
    count: Tensor
    users: Tensor

    def __init__(self, schema: Schema, shrink: float = 5.0, shrink_users: float | None = None) -> None:
        super().__init__(schema)
        for name, value in (("shrink", shrink), ("shrink_users", shrink_users)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name} = {value}", "a number above 0", "try 5")
        self.size, self.shrink = schema.item.size, shrink
        self.shrink_users = shrink_users if self.kind == "rating" else None
        if self.shrink_users is not None:
            self.register_buffer("users", torch.zeros(schema.user.size))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(1))

    def take(self, dataset: Dataset) -> None:
        """Counts the training part."""
        super().take(dataset)
        if self.kind == "implicit":
            return
        rows = dataset.part("train")
        assert rows.label is not None
        label, domain = np.asarray(rows.label, np.float64), np.asarray(rows.domain, np.int64)
        keys, where, count = np.unique(domain * self.size + np.asarray(rows.item), return_inverse=True, return_counts=True)
        if self.shrink_users is not None:
            label = label - self._take_users(np.asarray(rows.user), label - self.mean.cpu().numpy()[domain], where, count)
        found = {
            "keys": keys,
            "total": np.append(np.bincount(where, label), 0.0),
            "count": np.append(count, 0),
        }
        self.fill(**{name: torch.from_numpy(value) for name, value in found.items()})

    def _take_users(self, user: np.ndarray, rest: np.ndarray, where: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Biases of users, by turns with those of items; returns each row's."""
        assert self.shrink_users is not None
        bias, events = np.zeros(len(self.users)), np.bincount(user, minlength=len(self.users))
        for _ in range(TURNS):
            item = np.bincount(where, rest - bias[user]) / (count + self.shrink)
            bias = np.bincount(user, rest - item[where], len(bias)) / (events + self.shrink_users)
        self.users.copy_(torch.from_numpy(bias))
        return bias[user]

    def own(self, user: Tensor, label: Tensor) -> Tensor:
        """What a rating (B, C) of each user (B,) counts for its item: what to leave out."""
        return label if self.shrink_users is None else label - self.users[user][:, None]

    def item(self, item: Tensor, domain: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Biases and numbers of events.

        Args:
            item, domain: (...) codes and domain indices.
            label: (...) in training, what each row's own label counts (``own``), left out of its item's numbers; None: nothing is.

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
        known, done = len(old.level), super().grow_from(old)
        new = self.keys >= known * self.size
        moved = rekeyed(old.keys, old.size, self.size)  # items with events keep their codes
        self.fill(
            keys=torch.cat([moved, self.keys[new]]),
            total=torch.cat([old.total[:-1], self.total[:-1][new], old.total[-1:]]),
            count=torch.cat([old.count[:-1], self.count[:-1][new], old.count[-1:]]),
        )
        return done | {"keys", "total", "count", "users"}  # users as counted now: training on new domains alone asks for them

    def residual(self, item: Tensor, domain: Tensor, label: Tensor) -> Tensor:
        """Ratings (...) less the level and the item's bias: what they say of the user."""
        return label - self.level[domain] - self.item(item, domain)[0]
