"""``Start`` and ``FromBiases``: the biases of items and users that a network's prediction starts from."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.behaviours import Events, events_of
from isthmus.layers.biases import Biases
from isthmus.layers.growing import Stacked
from isthmus.layers.mlp import MLP, start_at_zero
from isthmus.layers.user_clicks import UserClicks
from isthmus.schema import Schema

ITEM, CARRIED, LOG_KAPPA = 1.0, 0.7, math.log(5.0)  # where the weights of the biases start
MANNER = 2.0  # events that nothing known of a user's manner is worth
LOG_SCALE = 0.25  # of log(1 + count): about 0..1 for up to 50
BEND = (32, 16)  # hidden widths of the network that bends the biases


class Start(Stacked):
    """The biases that a prediction starts from, each domain with weights of its own.

    With level m_d, item bias b, and sums of residuals S over the user's n events elsewhere and S' over her n' events here::

        carried = w_d S / (n + kappa_d)
        user    = carried + w'_d (S' - n' carried) / (n' + kappa'_d)
        start   = m_d + a_d b + user

    so that what is known of her here takes the place of what was carried over, and b = (sum of the item's residuals) / (its
    number of ratings + s_d) with s_d learnt too.  Clicks, in log-odds: S and n are those of ``UserClicks``, elsewhere for users with
    an earlier click there, and in training a row's own impression is left out.  Without labels the start is 0.

    Args:
        schema: of an encoded data set.
        own_history: read the row's own domain.
        shrink_items: where s starts.

    Attributes:
        width: of the numbers.
    """

    stacked: ClassVar[tuple[str, ...]] = ("item", "log_shrink", "carried", "log_kappa", "own", "log_own_kappa")

    def __init__(self, schema: Schema, own_history: bool, shrink_items: float = 5.0) -> None:
        super().__init__()
        n = len(schema.domains)
        self.own_history = own_history
        labelled, rated = schema.label != "implicit", schema.label == "rating"
        self.clicks = UserClicks(schema, shrink_items) if schema.label == "click" else None

        def weights(value: float, wanted: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.full((n,), value)) if wanted else None

        self.item, self.log_shrink = weights(ITEM, labelled), weights(math.log(shrink_items), rated)
        self.carried, self.log_kappa = weights(CARRIED, labelled), weights(LOG_KAPPA, labelled)
        self.own, self.log_own_kappa = weights(1.0, labelled and own_history), weights(LOG_KAPPA, labelled and own_history)
        self.width = (4 if labelled else 1) + own_history * (1 + labelled) + 2 * rated

    def forward(self, batch: Batch, events: Events, biases: Biases) -> tuple[Tensor, Tensor]:
        """The start (B, C) and the numbers (B, C, width): item bias, its log count, user, log number of events, how she rates."""
        domain = batch.domain[:, None]
        start, item = self._item(batch, domain.expand_as(batch.item), biases)
        user, numbers = self._user(batch, events, biases)
        both = [*item, *(number.expand_as(batch.item) for number in numbers)]
        return start if user is None else start + user, torch.stack(both, -1)

    def _item(self, batch: Batch, domain: Tensor, biases: Biases) -> tuple[Tensor, list[Tensor]]:
        level = biases.level[domain]
        if self.item is None:
            return level, []
        bias, count = biases.item(batch.item, domain)
        if self.training and batch.label is not None:  # the first candidate is the row's own event; negatives are no events
            first = biases.item(batch.item[:, :1], domain[:, :1], biases.own(batch.user, batch.label[:, :1]))
            bias, count = (torch.cat([own, rest[:, 1:]], 1) for own, rest in zip(first, (bias, count), strict=True))
        if self.log_shrink is not None:
            bias = bias * (count + biases.shrink) / (count + self.log_shrink[domain].exp())
        return level + self.item[domain] * bias, [bias, count.log1p() * LOG_SCALE]

    def _user(self, batch: Batch, events: Events, biases: Biases) -> tuple[Tensor | None, list[Tensor]]:
        """(B, 1) each."""
        domain, own = batch.domain[:, None], events.own.to(torch.float32)

        def total(x: Tensor) -> Tensor:
            return events.total(x)[:, None]

        n, m = total(1 - own), total(own)
        there, here, manner = n, m, []  # without labels: of no use
        if self.clicks is not None:
            (here, m), (there, n) = self._clicked(self.clicks, batch, biases, n > 0)
        elif events.residual is not None and events.count is not None:
            there, here = total(events.residual * (1 - own)), total(events.residual * own)
            # How she rates: the spread of what items leave unexplained, and how well known what she rates is.
            manner = [total(x) / (n + m + MANNER) for x in (events.residual.square(), events.count.log1p() * LOG_SCALE)]
        counts = [number.log1p() * LOG_SCALE for number in ((n, m) if self.own_history else (n,))]
        if self.carried is None or self.log_kappa is None:
            return None, counts
        carried = self.carried[domain] * there / (n + self.log_kappa[domain].exp())
        if self.own is None or self.log_own_kappa is None:
            return carried, [carried, *counts, *manner]
        surprise = self.own[domain] * (here - m * carried) / (m + self.log_own_kappa[domain].exp())
        return carried + surprise, [carried, surprise, *counts, *manner]

    def _clicked(self, clicks: UserClicks, batch: Batch, biases: Biases, some: Tensor) -> list[tuple[Tensor, Tensor]]:
        """S and n, (B, 1) each, here and elsewhere: there for ``some`` (B, 1) alone."""
        own, other = clicks.here_and_elsewhere(batch.user, batch.domain)
        if self.training and batch.label is not None:
            own = own - clicks.of(biases, batch.item[:, 0], batch.domain, batch.label[:, 0]) * (own[:, 1:] > 0)
        return [(own[:, :1], own[:, 1:].clamp_min(0)), (other[:, :1] * some, other[:, 1:].clamp_min(0) * some)]


class FromBiases(nn.Module):
    """What a network adds its own to: ``Start``, bent by a small network of the same numbers, which starts at 0.

    The numbers have a network to themselves: beside an id, one that leaves the row out would tell the row's label.

    Args:
        schema: of an encoded data set.
        shrink_items: events that a domain's mean is worth against an item's own.
    """

    def __init__(self, schema: Schema, shrink_items: float = 5.0) -> None:
        super().__init__()
        self.rated = schema.label == "rating"
        self.biases = Biases(schema, shrink_items)
        self.start = Start(schema, own_history=True, shrink_items=shrink_items)
        self.bend = MLP(self.start.width, BEND, out=1)
        start_at_zero(self.bend.layers[-1])

    def forward(self, batch: Batch) -> Tensor:
        """(B, C), in training without the row's own label."""
        events = events_of(batch, self.biases, own_history=True, behaviours=False, labels=self.rated)
        start, numbers = self.start(batch, events, self.biases)
        return start + self.bend(numbers).squeeze(2)
