"""``TimeLSTM``: an LSTM that knows how far apart events are and how long ago they were (SLi-Rec, Yu et al., IJCAI 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isthmus.layers.drawing import drawing, recurrence

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "step": 1.0}
LOG_YEAR = math.log1p(365 * 24 * 3600)


def scaled(gap: Tensor, unit: str) -> Tensor:
    """Times (...) int64 in a schema's unit -> (...) float32: log(1 + seconds) over that of a year; where only order counts, of steps."""
    return (gap.clamp_min(0).to(torch.float32) * SECONDS[unit]).log1p() / LOG_YEAR


class TimeLSTM(nn.Module):
    """One layer over rows of different length, event after event.

    With x_k the k-th event of a row, D_k its interval from the event before and S_k its span until now::

        d_k  = tanh(w_d D_k + b_d)                    s_k  = tanh(w_s S_k + b_s)
        T_dk = sig(W x_k + W d_k + b)                 T_sk = sig(W x_k + W s_k + b)          (interval gate, span gate)
        f_k  = sig(W x_k + W h_{k-1} + b)             i_k  = sig(W x_k + W h_{k-1} + b)
        o_k  = sig(W x_k + W h_{k-1} + W d_k + W s_k + b)
        c_k  = f_k * T_dk * c_{k-1} + i_k * T_sk * tanh(W x_k + W h_{k-1} + b)
        h_k  = o_k * tanh(c_k)

    each W and b its own.  All that does not depend on h is computed for all events at once; a step then handles the rows that
    still have an event, and no padding.

    Args:
        width: of an event.
        hidden: of a state.
        span: knows "now"; False: S is not given, and T_s is 1.
    """

    def __init__(self, width: int, hidden: int, *, span: bool = True) -> None:
        super().__init__()
        self.hidden = hidden
        self.event = nn.Linear(width, (5 + span) * hidden)  # f, i, o, the new content, T_d, T_s
        self.state = nn.Linear(hidden, 4 * hidden, bias=False)  # f, i, o, the new content
        self.interval, self.span = nn.Linear(1, hidden), nn.Linear(1, hidden) if span else None
        self.from_interval = nn.Linear(hidden, 2 * hidden, bias=False)  # o, T_d
        self.from_span = nn.Linear(hidden, 2 * hidden, bias=False) if span else None  # o, T_s
        with torch.no_grad():
            self.event.bias[:hidden] = 1.0  # at first it forgets little

    def forward(self, event: Tensor, row: Tensor, rows: int, interval: Tensor, span: Tensor | None = None, *, room: int = 0) -> Tensor:
        """Runs over the events of every row.

        Args:
            event: (E, width), the events of a row in order of time.
            row: (E,) int64, ascending.
            rows: their number; some may have no event.
            interval: (E,) since the row's event before; of a first event 0.
            span: (E,) until now; None without.
            room: no row has more events; asked for where a graph is drawn.

        Returns:
            (E, hidden): h after each event.
        """
        interval, span = interval[:, None], None if span is None else span[:, None]
        if drawing():  # what comes after a row's last event is computed too, and never read
            place = _step(row, torch.bincount(row, minlength=rows)) * rows + row
            wide = [
                x.new_zeros(room * rows, x.shape[1]).index_copy(0, place, x) for x in (event, interval, *([] if span is None else [span]))
            ]
            return torch.cat(self._run(*self._gates(wide[0], wide[1], None if span is None else wide[2]), [rows] * room, rows))[place]
        order, sizes = _steps(row, rows)
        gates, keep, enter = self._gates(event[order], interval[order], None if span is None else span[order])
        return torch.zeros_like(keep).index_copy(0, order, torch.cat(self._run(gates, keep, enter, sizes, rows)))

    def _run(self, gates: Tensor, keep: Tensor, enter: Tensor, sizes: list[int], rows: int) -> list[Tensor]:
        """What ``_gates`` gives, step by step, and how many rows each step has -> h after each, (its rows, hidden)."""
        h = c = gates.new_zeros(rows, self.hidden)
        if drawing():
            given = tuple(x.view(len(sizes), rows, -1) for x in (gates, keep, enter))
            return [recurrence(self._step, (h, c.clone()), given).flatten(0, 1)]
        states = [h[:0]]
        for now, kept, entering in zip(gates.split(sizes), keep.split(sizes), enter.split(sizes), strict=True):
            h, c = self._step(h[: len(now)], c[: len(now)], now, kept, entering)
            states.append(h)
        return states

    def _step(self, h: Tensor, c: Tensor, now: Tensor, kept: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        now = torch.addmm(now, h, self.state.weight.t())
        f, i, o = now[:, : 3 * self.hidden].sigmoid().chunk(3, 1)
        c = f * kept * c + i * entering * now[:, 3 * self.hidden :].tanh()
        return o * c.tanh(), c

    def _gates(self, event: Tensor, interval: Tensor, span: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(E, 4 hidden) what f, i, o and the content are before h comes in; (E, hidden) T_d and T_s."""
        f, i, o, content, keep, *enter = self.event(event).split(self.hidden, 1)
        o_d, t_d = self.from_interval(self.interval(interval).tanh()).chunk(2, 1)
        if self.span is None or self.from_span is None or span is None:
            return torch.cat([f, i, o + o_d, content], 1), (keep + t_d).sigmoid(), torch.ones_like(keep)
        o_s, t_s = self.from_span(self.span(span).tanh()).chunk(2, 1)
        return torch.cat([f, i, o + o_d + o_s, content], 1), (keep + t_d).sigmoid(), (enter[0] + t_s).sigmoid()


def _steps(row: Tensor, rows: int) -> tuple[Tensor, list[int]]:
    """Events (E,) of rows, ascending -> step by step, long rows before short ones: (E,) places, and how many rows each step has."""
    count = torch.bincount(row, minlength=rows)
    rank = torch.empty_like(count)
    rank[count.argsort(descending=True, stable=True)] = torch.arange(rows, device=row.device)
    step = _step(row, count)
    return (step * rows + rank[row]).argsort(), torch.bincount(step).tolist()


def _step(row: Tensor, count: Tensor) -> Tensor:
    """Rows (E,), ascending, of events and how many each has -> (E,) which of its row each event is, from 0."""
    return torch.arange(row.shape[0], device=row.device) - (count.cumsum(0) - count)[row]
