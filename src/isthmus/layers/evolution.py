"""Interests that evolve, as in DIEN: a recurrence over events, a recurrence over interests that a candidate steers, and its help.

Events are kept step by step, all first ones, then all second ones, rows with more of them first: a step is one slice, padding
is never computed, and rows that are through drop off at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.attention import softmax_by_row
from isthmus.layers.drawing import drawing, recurrence
from isthmus.schema import PADDING


@dataclass(frozen=True, slots=True)
class Steps:
    """The E events of B histories in the order in which a recurrence meets them.

    Attributes:
        item: (E,) codes.
        row: (E,) whose event it is; ``row[:sizes[0]]`` are all rows with events.
        sizes: events of each step, none of them 0, falling; in each step the rows stand in the same order.
    """

    item: Tensor
    row: Tensor
    sizes: tuple[int, ...]

    def previous(self) -> Tensor:
        """(E - rows with events,): where the event before each one stands, for all but the first ones."""
        size = torch.tensor(self.sizes, dtype=torch.int64, device=self.row.device)
        place = torch.arange(sum(self.sizes[:1]), len(self.row), device=self.row.device)
        return place - size[:-1].repeat_interleave(size[1:])

    def there(self) -> Tensor | None:
        """(E, 1) float32: 0 where a graph is drawn and a row has no event yet, else 1; None: all are events."""
        return (self.item != PADDING).to(torch.float32)[:, None] if drawing() else None


def steps_of(history: Tensor) -> Steps:
    """Codes (B, L), right-aligned, as steps from the oldest event on; where a graph is drawn every row is in every step."""
    if drawing():
        rows, length = history.shape
        return Steps(history.t().flatten(), torch.arange(rows, device=history.device).repeat(length), (rows,) * length)
    length = (history != PADDING).sum(1)
    order = length.argsort(descending=True, stable=True)
    there = torch.arange(history.shape[1], device=history.device)[:, None] < length[order]
    step, place = there.nonzero(as_tuple=True)
    row = order[place]
    sizes = tuple(n for n in there.sum(1).tolist() if n)
    return Steps(history[row, history.shape[1] - length[row] + step], row, sizes)


class GatedUnit(nn.Module):
    """A gated recurrent unit (Cho et al., EMNLP 2014), whose update gate attention may scale.

    ::

        u = a sigmoid(W_u x + U_u h + b_u)      a: the attention to x; 1 without
        r = sigmoid(W_r x + U_r h + b_r)
        n = tanh(W_n x + r * (U_n h) + b_n)
        h = (1 - u) * h + u * n                 h = 0 before the first event

    Args:
        width: of an input.
        size: of a state.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.input = nn.Linear(width, 3 * size)  # u, r, n
        self.state = nn.Linear(size, 3 * size, bias=False)

    def step(self, given: Tensor, state: Tensor, attention: Tensor | None = None) -> Tensor:
        """W x + b (n, 1, 3 size), states (n, C, size), attention (n, C) -> states (n, C, size)."""
        asked = self.state(state)
        gates, new = given.split([2 * self.size, self.size], 2)
        kept, fresh = asked.split([2 * self.size, self.size], 2)
        update, reset = (gates + kept).sigmoid().chunk(2, 2)
        new = torch.addcmul(new, reset, fresh).tanh()
        update = update if attention is None else attention[..., None] * update
        return torch.lerp(state, new.to(state.dtype), update.to(state.dtype))

    def forward(self, x: Tensor, sizes: Sequence[int], attention: Tensor | None = None) -> list[Tensor]:
        """The states after each step.

        Args:
            x: (E, width), ordered as ``Steps`` are.
            sizes: of the steps.
            attention: (E, C), a state for each of its columns; None: C = 1.

        Returns:
            For each step (its size, C, size).
        """
        columns = 1 if attention is None else attention.shape[1]
        state, states = x.new_zeros(sum(sizes[:1]), columns, self.size), list[Tensor]()
        if drawing():
            given, shape = self.input(x), (len(sizes), sizes[0], columns)
            weight = x.new_ones(shape) if attention is None else attention.view(shape)
            return list(recurrence(lambda *now: (self.step(now[1], now[0], now[2]),), (state,), (given.view(*shape[:2], 1, -1), weight)))
        given = self.input(x)[:, None].split(list(sizes))  # slices would each be as large as x on the way back
        weights = [None] * len(sizes) if attention is None else attention.split(list(sizes))
        for n, inputs, weight in zip(sizes, given, weights, strict=True):
            state = self.step(inputs, state[:n], weight)
            states.append(state)
        return states


class InterestExtraction(nn.Module):
    """A GRU over events: its state after each of them is the user's interest then.

    Args:
        width: of an event and of an interest.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = GatedUnit(width, width)

    def forward(self, event: Tensor, steps: Steps) -> Tensor:
        """Events (E, width) -> interests (E, width)."""
        return torch.cat([event[:0], *(state[:, 0] for state in self.unit(event, steps.sizes, steps.there()))])


class InterestEvolution(nn.Module):
    """AUGRU: a GRU over interests whose update gate is scaled by how much the candidate asks for each.

    ::

        a_t = softmax over t of h_t W q

    Args:
        width: of an interest, of a candidate and of what comes out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.asked = nn.Linear(width, width, bias=False)  # W
        self.unit = GatedUnit(width, width)

    def weights(self, interest: Tensor, steps: Steps, query: Tensor) -> Tensor:
        """Interests (E, width) and candidates (B, C, width) -> (E, C)."""
        asked, there = self.asked(query).index_select(0, steps.row), steps.there()
        score = (asked @ interest[..., None]).squeeze(2)
        if there is not None:
            score = score.masked_fill(there == 0, torch.finfo(score.dtype).min)
        weight = softmax_by_row(score, steps.row, query.shape[0])
        return weight if there is None else weight * there

    def forward(self, interest: Tensor, steps: Steps, query: Tensor) -> Tensor:
        """Interests (E, width) and candidates (B, C, width) -> (B, C, width); 0 for a user without events."""
        states = self.unit(interest, steps.sizes, self.weights(interest, steps, query))
        if drawing():
            return states[-1]  # of rows that are in every step, and move at their events alone
        left = [state[n:] for state, n in zip(states, [*steps.sizes[1:], 0], strict=False)]  # rows whose last event it was
        last = torch.cat([query[:0], *reversed(left)])
        return torch.zeros_like(query).index_copy(0, steps.row[: len(last)], last)


def shuffled_within(group: Tensor) -> Tensor:
    """Groups (n,) -> (n,) places, in which each element has one of its own group, and every element comes once."""
    mixed = torch.randperm(len(group), device=group.device)
    found = torch.empty_like(mixed)
    found[group.argsort(stable=True)] = mixed[group[mixed].argsort(stable=True)]
    return found


def tells_next(interest: Tensor, event: Tensor, other: Tensor, real: Tensor) -> Tensor:
    """Mean of -log s(h . e) - log(1 - s(h . e')): an interest tells the event that came next from another one.

    Args:
        interest, event, other: (n, width): h, e and e'.
        real: (n,) bool; False is left out.

    Returns:
        A scalar; 0 when all is left out.
    """
    loss = F.softplus(-(interest * event).sum(1)) + F.softplus((interest * other).sum(1))
    return (loss * real).sum() / real.sum().clamp_min(1)
