"""The parts of MAN (Lin et al., WSDM 2024) that know neither ids nor schemas: attention between items, sequences and groups.

They are asked at places: as printed once for a whole history, or after each of its events, where only what came before is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.attention import masked_softmax
from isthmus.layers.domain import PerDomain, slices
from isthmus.layers.encoders._base import Encoder, Places
from isthmus.layers.sequence import Own


class ItemSimilarity(nn.Module):
    """Weighs the events of a history by how much they are like an item.

    ::

        F = MLP(m || E + E_g)                                 (eq. 5)
        E_i = softmax(F) (E + E_g),   e = sum over events     (eq. 6; padding is masked before the softmax)

    The first layer is split into its two parts: an item and an event are multiplied once each, not once per pair.

    Args:
        dim: width of an event and an item.
        hidden: widths of the network's two hidden layers.
    """

    def __init__(self, dim: int, hidden: tuple[int, int] = (32, 16)) -> None:
        super().__init__()
        self.asked, self.event = nn.Linear(dim, hidden[0]), nn.Linear(dim, hidden[0], bias=False)
        self.rest = nn.Sequential(nn.Linear(*hidden), nn.ReLU(), nn.Linear(hidden[1], 1, bias=False))

    def forward(self, item: Tensor, event: Tensor, real: Tensor) -> Tensor:
        """Items (B, C, dim), events (B, L, dim) and which items see them (B, 1 or C, L) bool -> (B, C, dim)."""
        first = (self.asked(item)[:, :, None] + self.event(event)[:, None]).relu()
        return masked_softmax(self.rest(first).squeeze(-1), real) @ event


class SequenceFusion(nn.Module):
    """Local states ask global ones, and are added to the answer.

    ::

        S_s = MLP(CA(S, S_g) + S),   CA(S, S_g) = softmax(S W_Q (S_g W_K)' / sqrt(D)) S_g W_V     (eq. 7-9)

    No gradient goes through S and S_g (A.3).  The MLP is a layer between two norms (A.3).

    Args:
        dim: width of a state.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))

    def forward(self, local: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """States (B, T, dim) twice, and which of the global ones each local one sees, (B or 1, 1 or T, T) bool -> (B, T, dim)."""
        local, other = local.detach(), other.detach()
        score = self.query(local) @ self.key(other).transpose(1, 2) / math.sqrt(local.shape[2])  # eq. 9
        return self.mlp(masked_softmax(score, real) @ self.value(other) + local)  # eq. 7


class GroupPrototypes(nn.Module):
    """The prototypes G of the groups, which all domains share, and how far apart they are.

    Args:
        groups: their number N_g.
        dim: width of a prototype.
        weight: lambda_g of eq. 13.
        bounded: prototypes are brought to length 1 before they are compared.  As printed (False) the term has no lower bound: with it
            prototypes run away as long as training goes on.

    Raises:
        ConfigError: no group.
    """

    def __init__(self, groups: int, dim: int, *, weight: float = 1e-3, bounded: bool = True) -> None:
        super().__init__()
        if groups < 1:
            raise ConfigError(f"groups = {groups}", "1 or more", "the paper tries 1, 5, 10 and 20")
        self.weight, self.bounded = weight, bounded
        self.prototype = nn.Parameter(torch.empty(groups, dim))
        nn.init.xavier_normal_(self.prototype)

    def disentangle(self) -> Tensor:
        """-lambda_g times the sum of squared distances over pairs (eq. 13); a scalar."""
        g = F.normalize(self.prototype, dim=1) if self.bounded else self.prototype
        # The sum over pairs of |a - b|^2 is n times the sum of |a - mean|^2.
        return -self.weight * len(g) * (g - g.mean(0)).square().sum()


class GroupAttention(nn.Module):
    """A domain's view of the groups: how much a user is of each, and what each makes of her sequence.

    ::

        C = MLP(W_P S)                   relevance of N_g groups           (eq. 10; W_P weighs places, counted from the last event)
        H = MLP(CA(G, S))                prototypes ask the sequence       (eq. 11)
        g = softmax(C) H, summed         weighted by relevance             (eq. 12)

    No gradient goes through S (A.3).

    Args:
        groups, dim: as of the prototypes.
        length: T; events further back than that have no weight in eq. 10.
    """

    def __init__(self, groups: int, dim: int, length: int = 51) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.empty(groups, length))
        nn.init.xavier_normal_(self.pool)
        self.relevance = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1, bias=False))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def pooled(self, state: Tensor, age: Tensor, real: Tensor) -> Tensor:
        """W_P S (eq. 10).

        Args:
            state: (B, L, dim).
            age: (Q, L) or (B, Q, L) int64, how many events back from each place asked at.
            real: bool alike, what counts.

        Returns:
            (B, Q, groups, dim).
        """
        there = real & (age < self.pool.shape[1])
        weight = self.pool.t()[age.clamp(0, self.pool.shape[1] - 1)] * there[..., None]  # (..., Q, L, groups)
        return torch.einsum("...qlg,bld->bqgd" if weight.dim() == 3 else "bqlg,bld->bqgd", weight, state)

    def forward(self, prototype: Tensor, state: Tensor, age: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """What the groups say at Q places of each sequence.

        Args:
            prototype: (groups, dim).
            state: (B, L, dim) states of the sequence.
            age, real: see ``pooled``.

        Returns:
            (B, Q, dim), and the share of each group (B, Q, groups).
        """
        state = state.detach()
        share = self.relevance(self.pooled(state, age, real)).squeeze(-1).softmax(-1)  # eq. 10, 12
        # events first: torch takes them all as one product, with gradients and without, and so to the same bits
        score = (self.key(state) @ self.query(prototype).t()).transpose(1, 2) / math.sqrt(state.shape[2])  # (B, groups, L)
        seen = real if real.dim() == 3 else real[None]
        weight = masked_softmax(score[:, None], seen[:, :, None])  # (B, Q, groups, L)
        asked = weight @ self.value(state)[:, None]  # eq. 11: (B, Q, groups, dim)
        return (share[..., None] * self.mlp(asked)).sum(2), share  # eq. 12


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a domain's own part says; (B, Q, dim) each.

    Attributes:
        item: e of eq. 14, from item similarity; zeros without it.
        fused: s^As, from sequence fusion; zeros without it.
        group: g^Au, from group prototypes; zeros without it.
        local: s^A, the domain's own states.
        share: (B, Q, groups) how much the users are of each group, or None.
    """

    item: Tensor
    fused: Tensor
    group: Tensor
    local: Tensor
    share: Tensor | None


class LocalPart(nn.Module):
    """What one domain has for itself: places, encoder, and its attention.

    Args:
        encoder: of the domain's sequences.
        dim: width of an event and a state.
        groups: N_g.
        length: places that are told apart.
        item, sequence, group: with item similarity, sequence fusion and group prototypes: the ablations of Table 3.
    """

    def __init__(
        self, encoder: Encoder, dim: int, groups: int, length: int, *, item: bool = True, sequence: bool = True, group: bool = True
    ) -> None:
        super().__init__()
        self.encoder, self.places = encoder, Places(length, dim)
        self.item = ItemSimilarity(dim) if item else None
        self.fusion = SequenceFusion(dim) if sequence else None
        self.group = GroupAttention(groups, dim, length) if group else None

    def whole(
        self,
        event: Tensor,
        shared: Tensor,
        state: Tensor,
        real: Tensor,
        asked: Tensor,
        prototype: Tensor | None,
        gap: Tensor | None = None,
    ) -> Mixed:
        """As printed: candidates ask, and states are averaged over the history (Q = 1, of ``item`` Q = C).

        Args:
            event: (B, T, dim) local vectors of the events, without places.
            shared: (B, T, dim) E_g, global ones with their places.
            state: (B, T, dim) S_g.
            real: (B, T) bool, places of the history.
            asked: (B, C, dim) candidates.
            prototype: (groups, dim), or None.
            gap: (B, T) scaled times since the event before, for encoders that are timed.
        """
        own = self.places(event)
        local = self.encoder.states(own, gap)
        count = real.sum(1, keepdim=True)
        mean = (real / count)[:, None]  # every sequence has its begin
        none = torch.zeros_like(local[:, :1])
        item, fused, group, share = torch.zeros_like(asked), none, none, None
        if self.item is not None:
            item = self.item(asked, own + shared, real[:, None])
        if self.fusion is not None:
            fused = mean @ self.fusion(local, state, real[:, None])
        if self.group is not None and prototype is not None:
            age = count - 1 - torch.arange(real.shape[1], device=real.device)
            group, share = self.group(prototype, local, age[:, None], real[:, None])
        return Mixed(item, fused, group, mean @ local, share)

    def each(
        self,
        event: Tensor,
        shared: Tensor,
        state: Tensor,
        prototype: Tensor | None,
        gap: Tensor | None = None,
        part: Own | None = None,
    ) -> Mixed:
        """After each event, from what came up to it: its own event asks in the place of a candidate (Q = T).

        Args:
            event, shared, state, prototype, gap: see ``whole``.
            part: of merged histories, the events in the domain: the domain's encoder reads them alone.
        """
        own = self.places(event)
        local = self.encoder.states(own, gap) if part is None else part.spread(self.encoder(self.places(part.taken(event))))
        column = torch.arange(event.shape[1], device=event.device)
        age = column[:, None] - column
        real, none = age >= 0, torch.zeros_like(local)
        item, fused, group, share = none, none, none, None
        if self.item is not None:
            item = self.item(own + shared, own + shared, real[None])
        if self.fusion is not None:
            fused = self.fusion(local, state, real[None])
        if self.group is not None and prototype is not None:
            group, share = self.group(prototype, local, age, real)
        return Mixed(item, fused, group, local, share)


def through(parts: PerDomain, offsets: Sequence[int], run: Callable[[LocalPart, slice], Mixed]) -> Mixed:
    """Runs every domain's part on its own rows, and puts the results behind each other."""
    found = [run(cast("LocalPart", parts.copies[domain]), slice(start, end)) for domain, start, end in slices(offsets)]
    shares = [m.share for m in found if m.share is not None]
    item, fused, group, local = (torch.cat([getattr(m, name) for m in found]) for name in ("item", "fused", "group", "local"))
    return Mixed(item, fused, group, local, torch.cat(shares) if shares else None)
