"""``EncodedEvents``: histories as sequences of vectors, each from its first event on, for encoders that go forward in time.

Batches hold histories right-aligned, most recent last.  Here every sequence starts in slot 0 with a vector that stands for "nothing
yet", its events follow, and what is behind its end never reaches an earlier state: no masks, and no width to pay for but
the longest sequence's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.checks import require_share
from isthmus.layers.domain_items import ItemBias
from isthmus.layers.drawing import longest
from isthmus.layers.encoders import make_encoder
from isthmus.layers.features import EntityFields
from isthmus.layers.table import DomainTable
from isthmus.layers.time_lstm import scaled
from isthmus.schema import PADDING, Schema


@dataclass(slots=True)
class Left:
    """Histories (B, L) whose events stand from slot 1 on: T = 1 + the longest one's length.

    Attributes:
        item: (B, T) codes; 0 in slot 0 and behind a sequence's end.
        domain: (B, T) the events' domains; in slot 0 and behind the end the row's own.
        count: (B,) events of each.
        width: L, at least 1.
        time: (B, T - 1) times of the events, from slot 1 on, where a batch of own histories brings them, or None.
    """

    item: Tensor
    domain: Tensor
    count: Tensor
    width: int
    time: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, merged: bool = False, timed: bool = False) -> Left:
        """The merged histories of a batch, or those of the rows' own domains; these with their times where asked."""
        past, whose = (batch.merged_history, batch.merged_domain) if merged else (batch.history, batch.domain[:, None])
        assert past is not None
        assert whose is not None
        width, count = past.shape[1], (past != PADDING).sum(1)
        column = torch.arange(longest(count, width), device=past.device)
        there = column < count[:, None]
        place = torch.where(there, 1 + width - count[:, None] + column, 0)
        own = batch.domain[:, None]
        item = F.pad(past, (1, 0)).gather(1, place)  # one more slot, so that there is one to read where there is no history
        domain = F.pad(whose.expand_as(past), (1, 0)).gather(1, place)
        domain = torch.cat([own, torch.where(there, domain, own)], 1)
        time = None if not timed or batch.history_time is None else F.pad(batch.history_time, (1, 0)).gather(1, place)
        return cls(torch.cat([torch.zeros_like(own), item * there], 1), domain, count, max(1, width), time)

    def gaps(self, unit: str) -> Tensor | None:
        """(B, T) float32 scaled times since the event before, 0 for first events, the begin and behind the end; None without times."""
        if self.time is None:
            return None
        column = torch.arange(self.time.shape[1], device=self.time.device)
        later = (column > 0) & (column < self.count[:, None])
        return F.pad(scaled((self.time - self.time.roll(1, 1)) * later, unit), (1, 0))

    def right(self, state: Tensor) -> Tensor:
        """(B, T, d), the state in slot t knowing t events -> (B, L, d), right-aligned; before the first event that of slot 0."""
        slot = torch.arange(self.width, device=state.device) + 1 - self.width + self.count[:, None]
        return state.gather(1, slot.clamp_min(0)[..., None].expand(-1, -1, state.shape[2]))


@dataclass(slots=True)
class Own:
    """Of merged histories the events in the rows' own domains, as sequences of their own.

    Attributes:
        slot: (B, T') where each of them stands in the merged one, the begin in slot 0; behind a sequence's end anything.
        after: (B, T) the place in it that knows as many of its events as each merged slot does.
    """

    slot: Tensor
    after: Tensor

    @classmethod
    def of(cls, left: Left) -> Own:
        """Slot 0 and the events of slot 0's domain."""
        own = (left.item != PADDING) & (left.domain == left.domain[:, :1])
        own[:, 0] = True
        width = max(1, longest(own.sum(1), own.shape[1]))  # slot 0 is every row's
        return cls((~own).to(torch.int8).argsort(dim=1, stable=True)[:, :width], own.cumsum(1) - 1)

    def taken(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T', d), their own slots."""
        return x.gather(1, self.slot[..., None].expand(-1, -1, x.shape[2]))

    def spread(self, x: Tensor) -> Tensor:
        """(B, T', d) -> (B, T, d), what the own sequence has at every merged slot."""
        return x.gather(1, self.after[..., None].expand(-1, -1, x.shape[2]))

    def rows(self, rows: slice) -> Own:
        """Some rows of it."""
        return Own(self.slot[rows], self.after[rows])


def needs_of(encoder: str, timed: bool, merged: bool) -> Needs:
    """What a model over this encoder reads from a batch: its own or the merged histories, with their times.

    Raises:
        ConfigError: a timed encoder over merged histories.
    """
    if merged and timed:
        came = f"merged = True over {encoder!r}, which reads the times between events"
        raise ConfigError(came, "another encoder: merged histories have no times", "leave merged out")
    return Needs(merged_history=True) if merged else Needs(history=True, history_time=timed)


class EncodedEvents(nn.Module):
    """What sequence models share but for their encoder: items as events and as candidates, of one table, and the state after each event.

    ::

        event      = sum of the item's id and fields + its domain          "nothing yet" = a vector + the row's domain
        state      = encoder(events up to it)                                       [, 1]
        candidate  = sum of the item's id and fields                                [, its bias in the domain]

    Args:
        schema: of an encoded data set.
        encoder: name of a file in ``isthmus.layers.encoders``.
        dim: width of a vector.
        args: hyper-parameters of the encoder.
        id_dropout: share of ids replaced by "unknown" in training.
        bias: candidates have a number in each domain, see ``ItemBias``: one more coordinate.
        merged: read the history over all domains; False: the one in the row's own.

    Attributes:
        needs: what it reads from a batch.

    Raises:
        ConfigError: no such encoder or hyper-parameter, a share outside [0, 1), or a timed encoder over merged histories.
    """

    def __init__(
        self, schema: Schema, encoder: str, dim: int, args: Mapping[str, Any], *, id_dropout: float, bias: bool, merged: bool
    ) -> None:
        super().__init__()
        require_share("id_dropout", id_dropout)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout, std=0.02)
        self.domain = DomainTable(len(schema.domains), dim, std=0.02)
        self.bias = ItemBias(schema) if bias else None
        self.begin = nn.Parameter(torch.randn(dim) * 0.02)
        self.encoder, self.merged, self.unit = make_encoder(encoder, dim, args), merged, schema.time_unit
        self.needs = needs_of(encoder, self.encoder.timed, merged)

    def states(self, batch: Batch) -> Tensor:
        """(B, L, dim), or dim + 1 with the bias: the state after each event."""
        left = Left.of(batch, self.merged, self.encoder.timed)
        x = self.items.total(left.item) + self.domain(left.domain + 1)
        state = left.right(self.encoder.states(torch.cat([x[:, :1] + self.begin, x[:, 1:]], 1), left.gaps(self.unit)))
        return state if self.bias is None else self.bias.user(state)

    def candidates(self, item: Tensor, domain: Tensor) -> Tensor:
        """Codes and domains (...) -> (..., dim), or dim + 1 with the bias."""
        vector = self.items.total(item)
        return vector if self.bias is None else self.bias.item(vector, item, domain)
