"""What models with a bridge share: factors of users and items in each domain, and mappings of users between domains.

A factor is a vector x of ``dim`` numbers and a bias b, kept as one row [x, b] of ``dim + 1`` numbers, so that a mapping of
users carries the bias too.  Score = level of the domain + both biases + x'y, a dot product (``user_side``, ``item_side``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.errors import ConfigError, nearest
from isthmus.layers.domain import DomainLinear, DomainMLP
from isthmus.layers.drawing import all_of
from isthmus.layers.from_data import FromData
from isthmus.layers.growing import Growing, Rows
from isthmus.layers.mlp import start_at_zero
from isthmus.layers.table import Table
from isthmus.schema import FIRST, Entity, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

MAPPINGS = ("linear", "mlp")
START = 0.1  # standard deviation of the factors; of nearly nothing, a product of two takes long to grow


class Factors(Table, Growing):
    """A row [vector, bias] for each trained code of an entity, in each domain.

    Row ``domain * trained + code``; padding, the unknown and codes that training never saw share row 0, which is zero.

    Args:
        entity: users or items.
        domains: number of domains; 1 where they share the rows.
        dim: width of a vector, without the bias, which starts at 0.
    """

    def __init__(self, entity: Entity, domains: int, dim: int) -> None:
        super().__init__(domains * entity.trained, dim + 1, std=START)
        self.entity, self.domains, self.trained = entity, domains, entity.trained
        with torch.no_grad():
            self.weight[:, -1] = 0.0

    def forward(self, codes: Tensor, domain: Tensor | int = 0) -> Tensor:
        """Codes and domain indices (...) -> (..., dim + 1)."""
        known = (codes >= FIRST) & (codes < self.trained)
        return super().forward(torch.where(known, domain * self.trained + codes, 0))

    def grow_from(self, old: Factors) -> set[str]:
        """In a new domain an id starts at its mean over the old ones; a new id at 0, as if unknown."""
        before = old.weight.view(old.domains, old.trained, -1)
        self.weight.zero_()
        now = self.weight.view(self.domains, self.trained, -1)
        now[: old.domains, : old.trained] = before
        now[old.domains :, FIRST : old.trained] = before[:, FIRST:].mean(0)
        return {"weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' rows; where domains share them, those of new items."""
        mask = items.new_zeros(self.domains, self.trained)
        if self.domains > 1:
            mask[list(domains), FIRST:] = True
        elif self.entity.name == "item":
            mask[0] = items[: self.trained]
        return {"weight": mask.flatten()}


def user_side(factor: Tensor, level: Tensor) -> Tensor:
    """(..., dim + 1) [x, b] and (...) levels -> (..., dim + 2) [x, b + level, 1]."""
    bias = factor[..., -1:] + level[..., None]
    return torch.cat([factor[..., :-1], bias, torch.ones_like(bias)], -1)


def item_side(factor: Tensor) -> Tensor:
    """(..., dim + 1) [y, b] -> (..., dim + 2) [y, 1, b]."""
    bias = factor[..., -1:]
    return torch.cat([factor[..., :-1], torch.ones_like(bias), bias], -1)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some rows of a batch: n of them, ordered by domain.

    Attributes:
        place: (n,) int64 positions in the batch.
        user, domain: (n,) int64.
        offsets: D + 1 bounds of the domains.
    """

    place: Tensor
    user: Tensor
    domain: Tensor
    offsets: tuple[int, ...]


def choose(batch: Batch, keep: Tensor) -> Chosen:
    """The rows (B,) bool to keep."""
    place = keep.nonzero().flatten()
    domain = batch.domain[place]
    drawn = all_of(batch.offsets, place.shape[0])
    bounds = drawn or tuple(torch.searchsorted(domain, torch.arange(len(batch.offsets), device=domain.device)).tolist())
    return Chosen(place, batch.user[place], domain, bounds)


Bridge = Callable[[Batch, Chosen], Tensor]  # the chosen rows' users as their domain would have them, (n, dim + 1)


class BridgedUsers(FromData, Growing):
    """Users' factors in each domain, and who has training events where.

    Buffer ``present``: (user.size, D) bool.

    Args:
        schema: of an encoded data set.
        dim: width of a vector, without the bias.
    """

    present: Tensor

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        domains = len(schema.domains)
        self.factors = Factors(schema.user, domains, dim)
        self.register_buffer("present", torch.zeros(schema.user.size, domains, dtype=torch.bool))

    def take(self, dataset: Dataset) -> None:
        """Notes who has training events (of any label) in which domain."""
        user, domains = np.arange(dataset.schema.user.size), range(len(dataset.schema.domains))
        events = np.stack([dataset.events_of(user, d) for d in domains], 1)
        self.present = torch.from_numpy(events > 0).to(self.present.device)

    def grow_from(self, old: BridgedUsers) -> set[str]:
        """Who had training events in the old domains is as it was."""
        known, domains = old.factors.trained, old.present.shape[1]
        self.present[:, :domains] = False
        self.present[:known, :domains] = old.present[:known]
        return {"present"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing beside the factors."""
        return {}

    def here(self, batch: Batch) -> Tensor:
        """(B,) bool: has training events in the row's own domain."""
        return self.present[batch.user, batch.domain]

    def elsewhere(self, user: Tensor, domain: Tensor) -> Tensor:
        """(n, D) bool: the domains, other than the one given, where each user has training events."""
        other = torch.arange(self.present.shape[1], device=domain.device) != domain[:, None]
        return self.present[user] & other

    def both(self, batch: Batch) -> Tensor:
        """(B,) bool: has training events both in the row's domain and elsewhere."""
        return self.here(batch) & self.elsewhere(batch.user, batch.domain).any(1)

    def overlapping(self, batch: Batch) -> Chosen:
        """The rows of users who live in ``both``."""
        return choose(batch, self.both(batch))

    def source(self, rows: Chosen) -> Tensor:
        """(n, dim + 1): the mean of each user's factors in the other domains where she has events, without gradient."""
        there = self.elsewhere(rows.user, rows.domain)
        every = torch.arange(there.shape[1], device=there.device).expand_as(there)
        with torch.no_grad():
            each = self.factors(rows.user[:, None].expand_as(there), every) * there[..., None]
        return each.sum(1) / there.sum(1, keepdim=True).clamp_min(1)

    def forward(self, batch: Batch, bridge: Bridge) -> Tensor:
        """Who uses which factor: (B, dim + 1).

        Her own where she has training events in the row's domain; else what the bridge makes of those that she has
        elsewhere; else zeros, which leave the level and the item's bias.
        """
        here = self.here(batch)
        own = self.factors(batch.user, batch.domain) * here[:, None]
        rows = choose(batch, ~here & self.elsewhere(batch.user, batch.domain).any(1))
        return own.index_copy(0, rows.place, bridge(batch, rows))


class Mapping(nn.Module):
    """A mapping of source factors for each target domain, which starts at zero: before training a mapped user has no taste.

    Args:
        domains: number of target domains.
        width: of a factor, bias included.
        kind: ``linear`` or ``mlp``, which has one hidden layer.
        hidden: width of the hidden layer; None: twice ``width``.

    Raises:
        ConfigError: no such kind.
    """

    def __init__(self, domains: int, width: int, kind: str, hidden: int | None = None) -> None:
        super().__init__()
        if kind not in MAPPINGS:
            raise ConfigError(f"mapping {kind!r}", f"one of {MAPPINGS}", nearest(kind, MAPPINGS))
        if kind == "linear":
            self.map: nn.Module = DomainLinear(domains, width, width)
        else:
            self.map = DomainMLP(domains, width, [hidden or 2 * width], out=width)
        last = self.map.last if isinstance(self.map, DomainMLP) else self.map
        start_at_zero(last)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(n, width), rows ordered by target domain -> (n, width)."""
        return self.map(x, offsets)


def mean_of(value: Tensor) -> Tensor:
    """The mean of the values, a scalar; exactly 0 of none."""
    return value.sum() / max(value.numel(), 1)
