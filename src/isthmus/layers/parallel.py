"""What a user did here and elsewhere, each domain's events read by its own GRU: the sequences that PiNet and DASL start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.domain import PerDomain
from isthmus.layers.drawing import alone, known
from isthmus.layers.features import EntityFields
from isthmus.schema import PADDING


@dataclass(frozen=True, slots=True)
class States:
    """One vector for each event of each row, the oldest first.

    Attributes:
        state: (B, L, dim), L events in the longest row; zeros after a row's last event.
        length: (B,) int64 events of each row.
    """

    state: Tensor
    length: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, L) bool, False is padding."""
        return torch.arange(self.state.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def last(self) -> Tensor:
        """(B, dim) the vector of the latest event; zeros where there is none."""
        if not self.state.shape[1]:
            return self.state.sum(1)
        row = torch.arange(self.length.shape[0], device=self.length.device)
        return self.state[row, (self.length - 1).clamp_min(0)]


class Recurrent(nn.Module):
    """A GRU that gives its state after each event.

    The state before the first event is learnt: one event alone then trains all weights.  What is new in a state starts as the sum
    of the event's fields.

    Args:
        width: of an event, its fields side by side.
        dim: of a state and of a field.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, dim, batch_first=True)
        self.start = nn.Parameter(torch.zeros(dim))
        if width % dim == 0:
            with torch.no_grad():  # a last state is heard early in training when it starts as what was seen, not as a mixture of it
                self.gru.get_parameter("weight_ih_l0")[2 * dim :] = torch.eye(dim).repeat(1, width // dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width), the oldest event first -> (N, L, dim)."""
        if known(x.numel() == 0):
            return x.new_zeros(*x.shape[:2], len(self.start))
        return self.gru(x, self.start.expand(1, x.shape[0], -1).contiguous())[0]


class ParallelEncoders(nn.Module):
    """A GRU for each domain, which reads that domain's events of every user, whichever domain the row belongs to.

    With two domains the other one's history is one sequence.  With more it is one for each domain, and their states stand in the
    order of the events.

    Args:
        domains: number of domains.
        width: of an event.
        dim: of a state.
    """

    def __init__(self, domains: int, width: int, dim: int) -> None:
        super().__init__()
        self.domains, self.encoders = domains, PerDomain(domains, lambda: Recurrent(width, dim))

    def forward(self, batch: Batch, items: EntityFields) -> tuple[States, States]:
        """The states in the row's own domain and in the others.

        Args:
            batch: with both histories.
            items: makes the vectors of events, of ``width`` numbers with all their fields.
        """
        assert batch.history is not None
        assert batch.cross_history is not None
        assert batch.cross_domain is not None
        only = alone(batch.offsets)
        if only is not None:
            return self._drawn(batch.history, batch.cross_history, batch.cross_domain, items, only)
        here, there = ((history != PADDING).nonzero(as_tuple=True) for history in (batch.history, batch.cross_history))
        item = torch.cat([batch.history[here], batch.cross_history[there]])
        domain = torch.cat([batch.domain[here[0]], batch.cross_domain[there]])
        state = self._states(items(item).flatten(1), domain * len(batch) + torch.cat([here[0], there[0]]), len(batch))
        own, other = state.split([len(here[0]), len(there[0])])
        return _by_row(own, here[0], len(batch)), _by_row(other, there[0], len(batch))

    def _drawn(self, own: Tensor, other: Tensor, domain: Tensor, items: EntityFields, only: int) -> tuple[States, States]:
        """The same of histories (B, L) of one domain's rows and elsewhere, each domain in turn, with room for L events."""

        def read(history: Tensor, part: Tensor, encoder: int) -> tuple[Tensor, Tensor]:
            left = torch.zeros_like(history).scatter_add(1, _rank(part), history * part)
            return self.encoders.copies[encoder](items(left).flatten(2)), part.sum(1)

        state, length = read(own, own != PADDING, only)
        column, found = torch.arange(other.shape[1], device=other.device), state.new_zeros(*other.shape, state.shape[2])
        for source in range(self.domains):
            if source != only:
                part = (domain == source) & (other != PADDING)
                each = read(other, part, source)[0].gather(1, _rank(part)[..., None].expand_as(found))
                found = found + each * part[..., None]
        count = (other != PADDING).sum(1)
        place = (other.shape[1] - count[:, None] + column).clamp_max(other.shape[1] - 1)
        found = found.gather(1, place[..., None].expand_as(found)) * (column < count[:, None])[..., None]
        return States(state * (torch.arange(own.shape[1], device=own.device) < length[:, None])[..., None], length), States(found, count)

    def _states(self, x: Tensor, key: Tensor, rows: int) -> Tensor:
        """Events (E, width) of sequences (E,), ``domain * rows + row``, in order of time -> (E, dim)."""
        order = key.argsort(stable=True)
        found, count = key[order].unique_consecutive(return_counts=True)
        sequence = torch.arange(len(found), device=x.device).repeat_interleave(count)
        place, longest = _place(sequence, count)
        every = x.new_zeros(len(found), longest, x.shape[1]).index_put((sequence, place), x[order])
        bounds = torch.arange(self.domains + 1, device=x.device) * rows
        state = self.encoders(every, torch.searchsorted(found, bounds).tolist())[sequence, place]
        return torch.empty_like(state).index_copy(0, order, state)


def _rank(part: Tensor) -> Tensor:
    """(B, L) bool -> (B, L) how many of what is in it come before each, of the row; what is not stands with one that is, or the first."""
    return (part.cumsum(1) - 1).clamp_min(0)


def _place(row: Tensor, length: Tensor) -> tuple[Tensor, int]:
    """Rows (E,) ascending of events, and how many each has -> (E,) where each event stands in its row, and the most that one has."""
    first = length.cumsum(0) - length
    return torch.arange(len(row), device=row.device) - first[row], int(length.max()) if len(length) else 0


def _by_row(state: Tensor, row: Tensor, rows: int) -> States:
    """States (E, dim) of rows (E,) ascending, side by side."""
    length = row.bincount(minlength=rows)
    place, longest = _place(row, length)
    return States(state.new_zeros(rows, longest, state.shape[1]).index_put((row, place), state), length)
