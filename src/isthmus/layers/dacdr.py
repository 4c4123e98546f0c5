"""The two-step attention of DACDR, and how much of it the events of each kind get."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isthmus.layers.attention import CrossAttention, masked_mean, masked_softmax
from isthmus.layers.behaviours import Events
from isthmus.layers.domain import Offsets


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
