"""What the users of a batch did, in all domains, as one list of events without padding, and as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.biases import Biases
from isthmus.layers.drawing import longest
from isthmus.layers.growing import Growing, Rows, grow_rows
from isthmus.layers.table import DomainTable, Table
from isthmus.schema import PADDING, Schema


@dataclass(slots=True)
class Events:
    """What the users of a batch did: E events, those of other domains before those of the row's own; no padding.

    Attributes:
        rows, length: B, and the most events of a row (at least 1).
        row: (E,) int64, ascending.
        place: (E,) int64 slots in (B * length): the events of a row stand side by side.
        item, domain: (E,) int64 codes and domain indices.
        own: (E,) bool, of the row's own domain.
        behaviour: (E,) int64 codes, or None where the data have no types.
        residual: (E,) ratings less level and item bias; None where the data have no ratings.
        count: (E,) the items' numbers of events; None where the data have no ratings.
    """

    rows: int
    length: int
    row: Tensor
    place: Tensor
    item: Tensor
    domain: Tensor
    own: Tensor
    behaviour: Tensor | None
    residual: Tensor | None
    count: Tensor | None

    def padded(self, x: Tensor) -> Tensor:
        """Values (E, ...) -> (B, length, ...), 0 (False) elsewhere."""
        out = x.new_zeros(self.rows * self.length, *x.shape[1:])
        return out.index_copy(0, self.place, x).view(self.rows, self.length, *x.shape[1:])

    def total(self, x: Tensor) -> Tensor:
        """Values (E,) -> their sums by row, (B,)."""
        return x.new_zeros(self.rows).index_add(0, self.row, x)

    def sequences(self, n: int) -> Tensor:
        """(B, n, length) bool: the events of each of n behaviour types; n = 1: all events."""
        if n == 1 or self.behaviour is None:
            return self.padded(torch.ones_like(self.own))[:, None].expand(-1, n, -1)
        return self.padded(self.behaviour)[:, None] == torch.arange(1, n + 1, device=self.item.device)[:, None]


def events_of(
    batch: Batch, biases: Biases, own_history: bool, hidden: Tensor | None = None, *, behaviours: bool = True, labels: bool = True
) -> Events:
    """The events of a batch.

    Args:
        batch: with cross histories, and its own when asked for.
        biases: what ratings are compared with.
        own_history: read the row's own domain too.
        hidden: (B, 1) bool, rows whose own-domain events are left out.
        behaviours, labels: along with their types and ratings.
    """
    assert batch.cross_history is not None
    assert batch.cross_domain is not None
    item, domain = batch.cross_history, batch.cross_domain
    behaviour, label = batch.cross_behaviour if behaviours else None, batch.cross_label if labels else None
    elsewhere = item.shape[1]
    if own_history:
        assert batch.history is not None
        here = batch.history if hidden is None else batch.history.masked_fill(hidden, PADDING)
        item, domain = torch.cat([item, here], 1), torch.cat([domain, batch.domain[:, None].expand_as(here)], 1)
        behaviour = _beside(behaviour, batch.history_behaviour) if behaviours else None
        label = _beside(label, batch.history_label) if labels else None
    real = item != PADDING
    count = real.sum(1)
    length = max(1, longest(count, real.shape[1]))
    row, column = real.nonzero(as_tuple=True)
    first = (count.cumsum(0) - count)[row]  # of the row's events
    place = row * length + torch.arange(row.shape[0], device=row.device) - first
    at = row * real.shape[1] + column
    item, domain = item.flatten()[at], domain.flatten()[at]
    residual = count = None
    if label is not None:
        bias, count = biases.item(item, domain)
        residual = label.flatten()[at] - biases.level[domain] - bias
    return Events(
        rows=real.shape[0],
        length=length,
        row=row,
        place=place,
        item=item,
        domain=domain,
        own=column >= elsewhere,
        behaviour=None if behaviour is None else behaviour.flatten()[at],
        residual=residual,
        count=count,
    )


def _beside(there: Tensor | None, here: Tensor | None) -> Tensor | None:
    return None if there is None or here is None else torch.cat([there, here], 1)


class EventKinds(Growing):
    """What is added to an event's item: its domain, its behaviour type, and how much more it was liked than expected.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.domain = DomainTable(len(schema.domains), dim)
        self.behaviour = Table(len(schema.behaviours) + 1, dim) if schema.behaviours else None
        self.residual = nn.Parameter(torch.randn(dim) * 0.1) if schema.label == "rating" else None

    def forward(self, events: Events) -> Tensor:
        """(E, dim)."""
        x = self.domain(events.domain + 1)
        if self.behaviour is not None and events.behaviour is not None:
            x = x + self.behaviour(events.behaviour)
        if self.residual is not None and events.residual is not None:
            x = torch.addcmul(x, events.residual[:, None], self.residual)
        return x

    def grow_from(self, old: EventKinds) -> set[str]:
        """New behaviour types start at the mean of the old ones."""
        if self.behaviour is None or old.behaviour is None:
            return set()
        grow_rows("behaviour", self.behaviour.weight[1:], old.behaviour.weight[1:])
        return {"behaviour.weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing beside the domain's row."""
        return {}
