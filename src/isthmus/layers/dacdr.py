"""The parts of DACDR: the two-step attention, and the biases that a prediction starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.attention import CrossAttention, masked_mean, masked_softmax
from isthmus.layers.behaviours import Events
from isthmus.layers.biases import Biases
from isthmus.layers.domain import Offsets
from isthmus.layers.growing import Stacked
from isthmus.layers.user_clicks import UserClicks
from isthmus.schema import Schema

ITEM, CARRIED, LOG_KAPPA = 1.0, 0.7, math.log(5.0)  # where the weights of the biases start
MANNER = 2.0  # events that nothing known of a user's manner is worth
LOG_SCALE = 0.25  # of log(1 + count): about 0..1 for up to 50


class TwoStep(nn.Module):
    """Domain-level, then item-level attention (eq. 3, 4) over sequences of behaviours.

    ``target``: the domain tokens query the behaviours, and each candidate's item tokens query what they found; all of it,
    flattened, is the output.  ``sequence``, as printed: the behaviours query the domain tokens, and what each found queries
    the item tokens; the output is the mean over behaviours.

    Args:
        copy_of: for each domain the copy of W_Q, W_K, W_V that it uses.
        dim, heads: width of a token; heads of both steps.
        domain_tokens, item_tokens: how many there are.
        sequences: behaviours come as this many sequences, each with a mask of its own.
        queries: ``target`` or ``sequence``.
        domain_attention, item_attention: False: without this step.
        norm: see ``CrossAttention``.

    Attributes:
        width: of the output.
    """

    def __init__(
        self,
        copy_of: Sequence[int],
        dim: int,
        heads: int,
        *,
        domain_tokens: int,
        item_tokens: int,
        sequences: int,
        queries: str,
        domain_attention: bool,
        item_attention: bool,
        norm: bool,
    ) -> None:
        super().__init__()
        self.target = queries == "target"
        self.domain = CrossAttention(copy_of, dim, heads, norm) if domain_attention else None
        self.item = CrossAttention(copy_of, dim, heads, norm) if item_attention else None
        tokens = item_tokens if item_attention else domain_tokens if domain_attention else 1
        self.width = sequences * dim * (tokens if self.target else 1)

    def forward(self, x: Tensor, mask: Tensor, domain: Tensor, item: Tensor, offsets: Offsets) -> Tensor:
        """Transferable features of each candidate.

        Args:
            x: (B, L, dim) behaviours, rows ordered by domain.
            mask: (B, N, L) bool, which behaviours each of the N sequences has.
            domain: (B, T, dim) domain tokens.
            item: (B, C, F, dim) item tokens.
            offsets: D + 1 bounds.

        Returns:
            (B, C, width); (B, 1, width) where candidates make no difference.
        """
        return (self._target if self.target else self._sequence)(x, mask, domain, item, offsets)

    def domain_weights(self, x: Tensor, mask: Tensor, domain: Tensor, offsets: Offsets) -> Tensor:
        """Step 1 of ``target``: (B, N, heads, T, L), each row's weights of its behaviours."""
        assert self.domain is not None
        return masked_softmax(self.domain.scores(domain, x, offsets)[:, None], mask[:, :, None, None])

    def _target(self, x: Tensor, mask: Tensor, domain: Tensor, item: Tensor, offsets: Offsets) -> Tensor:
        rows, candidates, fields, dim = item.shape
        asked = x[:, None]  # (B, N or 1, L, dim): what the item tokens query
        if self.domain is not None:
            asked = self.domain.mix(self.domain_weights(x, mask, domain, offsets), asked, offsets)  # (B, N, T, dim)
        if self.item is None:
            found = masked_mean(x, mask) if self.domain is None else asked
            return found.reshape(rows, 1, self.width)
        scores = self.item.scores(item.flatten(1, 2), asked.flatten(1, 2), offsets)  # (B, heads, C F, N T or L)
        scores = scores.unflatten(-1, asked.shape[1:3]).movedim(3, 1)  # (B, N or 1, heads, C F, T or L)
        weights = masked_softmax(scores, mask[:, :, None, None]) if self.domain is None else scores.softmax(-1)
        found = self.item.mix(weights, asked, offsets)  # (B, N, C F, dim)
        return found.reshape(rows, -1, candidates, fields * dim).transpose(1, 2).flatten(2)

    def _sequence(self, x: Tensor, mask: Tensor, domain: Tensor, item: Tensor, offsets: Offsets) -> Tensor:
        rows, candidates, fields, _ = item.shape
        if self.domain is not None:
            weights = self.domain.scores(x, domain, offsets).softmax(-1)
            x = self.domain.mix(weights[:, None], domain[:, None], offsets)[:, 0]  # (B, L, dim)
        if self.item is None:
            return masked_mean(x, mask).view(rows, 1, self.width)
        scores = self.item.scores(x, item.flatten(1, 2), offsets).unflatten(-1, (candidates, fields))
        weights = scores.softmax(-1).movedim(1, 2).flatten(2)  # (B, L, heads C F)
        mean = masked_mean(weights, mask).view(rows, -1, self.item.heads, candidates, fields)  # over behaviours: it commutes with values
        mean = mean.permute(0, 3, 2, 1, 4)  # (B, C, heads, N, F)
        found = self.item.mix(mean, item, offsets)  # (B, C, N, dim)
        return found.flatten(2)


def event_shares(events: Events, weights: Tensor, types: int) -> tuple[Tensor, Tensor]:
    """The part of its row's attention that each event gets; see ``mass_by_kind``.

    Returns:
        (E,) int64, which behaviour type, from 0; (2, E), as it is and if it were even: the events of a row sum to 1.
    """
    kind = torch.zeros_like(events.row) if events.behaviour is None or types == 1 else events.behaviour - 1
    sequence = events.row * types + kind
    even = 1 / torch.bincount(sequence).to(weights.dtype)[sequence]
    share = [value / events.total(value)[events.row] for value in (weights.mean(2).sum(1).flatten()[events.place], even)]
    return kind, torch.stack(share)


def mass_by_kind(events: Events, weights: Tensor, domains: int, types: int) -> Tensor:
    """Attention by source domain and behaviour type, the mean over the rows with events.

    Args:
        events: E events.
        weights: (B, N, T, length) of step 1; the sequences that a row has count alike.
        domains, types: how many; one type where the data have none.

    Returns:
        (2, domains, types): as it is, and as it were if each sequence's events had the same weight; each sums to 1 (zeros
        without events).
    """
    kind, share = event_shares(events, weights, types)
    share = share / (torch.bincount(events.row) > 0).sum()
    return share.new_zeros(2, domains * types).index_add(1, events.domain * types + kind, share).view(2, domains, types)


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
