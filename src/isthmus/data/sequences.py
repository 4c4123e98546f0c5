"""``Sequences``: the training events as sequences, for models that learn to say the next event at every place of one.

A row with its own history computes a user's whole sequence again for each of her events.  A window computes it once, and its
state after every event is asked for what came next: the same questions, at a share of the cost.

A sequence is what one user did in one domain in order of time, or, merged, what she did in all domains, asked for her events in one of
them.  Each event is asked at the state after the one before it; before the first there is a state that knows nothing.  Events of one
moment, ``plan.moment`` units of time, have no order: every epoch puts them in another one, so that each of them learns from the others
(``docs/log.md`` has what that is worth; events of a domain without times keep the order they came in).  Sequences longer than a window
are cut into several, from the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.order import CHUNKS, TIES, Order, Plan
from isthmus.errors import DataError
from isthmus.sorting import order_of

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

GROUP = 16  # steps whose windows are sorted by length together


@dataclass(frozen=True)
class Windows:
    """Some windows as arrays: B of them in order of domain, L slots, N targets in order of window.

    Attributes:
        user, domain: (B,) int64.
        offsets: (D + 1,) int64 bounds of the domains' windows.
        event: (B, L) int64 positions in the training part, the most recent last; -1 where a slot has no event.
        slot: (N,) int64 places in (B * L): the state that a target is asked at.
        target: (N,) int64 positions in the training part.
        target_offsets: (D + 1,) int64 bounds of the domains' targets.
    """

    user: np.ndarray
    domain: np.ndarray
    offsets: np.ndarray
    event: np.ndarray
    slot: np.ndarray
    target: np.ndarray
    target_offsets: np.ndarray

    def take(self, windows: slice) -> tuple[Windows, np.ndarray]:
        """Some of the windows, and the (n,) places of their targets among all."""
        rows, length = self.event.shape
        place = np.full(rows, -1)
        kept_rows = np.arange(rows)[windows]
        place[kept_rows] = np.arange(len(kept_rows))
        row, slot = np.divmod(self.slot, length)
        kept = np.flatnonzero(place[row] >= 0)
        domain, bounds = self.domain[windows], np.arange(len(self.offsets))
        whose = np.repeat(np.arange(len(self.target_offsets) - 1), np.diff(self.target_offsets))[kept]
        return Windows(
            user=self.user[windows],
            domain=domain,
            offsets=np.searchsorted(domain, bounds),
            event=self.event[windows],
            slot=place[row[kept]] * length + slot[kept],
            target=self.target[kept],
            target_offsets=np.searchsorted(whose, bounds),
        ), kept


class Sequences:
    """The windows of the training part, and which of them make up a batch.

    A batch holds about ``plan.batch_size`` slots, and windows of about one length: those of ``GROUP`` batches are sorted by length, cut
    into equal parts and put in any order.  Like ``Order`` it is a function of (seed, epoch, step) alone.

    Args:
        dataset: encoded.
        plan: sizes, domains, shares; ``history_length`` is the longest window.
        merged: sequences over all domains; where ``plan.cross`` is False, and for a single domain, they hold the domain's own events.

    Attributes:
        steps: batches of an epoch.

    Raises:
        DataError: no training event in the domains asked for.
    """

    def __init__(self, dataset: Dataset, plan: Plan, merged: bool = False) -> None:
        rows, domains = dataset.part("train"), len(dataset.schema.domains)
        cross = plan.domains is None if plan.cross is None else plan.cross
        kept = np.flatnonzero(rows.positive(dataset.schema.label, slice(0, len(rows))))
        user, domain = rows.user.take(kept).astype(np.int64), rows.domain.take(kept).astype(np.int64)
        came = rows.row.take(kept)
        time = came if rows.time is None else rows.time.take(kept).astype(np.int64) // plan.moment
        merged = merged and cross
        whose = user if merged else domain * dataset.schema.user.size + user
        order = order_of(whose, time, came)
        self.plan, self.length, self.rows = plan, max(1, plan.history_length), rows
        self.place, self.user = kept[order], user[order]
        wanted = plan.chosen(domains)
        begin, self._moment = self._runs(whose[order], time[order])
        parts = [self._cut(begin, domain[order] == d, merged) for d in wanted]
        counts = np.zeros(domains, np.int64)
        counts[[*wanted]] = [len(part) for part in parts]
        # Of each window: where its sequence begins, and its slots from and to; slot k knows k events and is asked for the next one.
        self.window = np.concatenate(parts) if parts else np.zeros((0, 3), np.int64)
        if not len(self.window):
            raise DataError("no training event in these domains", "at least one", "choose other domains")
        mean = float((self.window[:, 2] - self.window[:, 1]).mean())
        self._each = max(1, round(plan.batch_size / mean))  # windows of a batch, on average
        bounds = np.append(0, np.cumsum(counts))
        self._bounds, self._order = bounds, Order(bounds, plan, shuffle=True, batch_size=self._each * GROUP)
        self._group_of: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self._placed_of: tuple[int, np.ndarray] | None = None
        self.steps = -(-len(self.window) // self._each)

    def batch(self, epoch: int, step: int) -> Windows:
        """The windows of a step."""
        group, number = divmod(step, GROUP)
        if self._group_of is None or self._group_of[0] != (epoch, group):
            self._group_of = (epoch, group), self._group(epoch, group)
        return self._windows(self._group_of[1][number], self._placed(epoch))

    def _windows(self, chosen: np.ndarray, place: np.ndarray) -> Windows:
        """Chosen windows (B,), ascending, as arrays; ``place`` are the epoch's events."""
        begin, first, end = self.window[chosen].T
        size = end - first
        width = int(size.max())
        at = end[:, None] - width + np.arange(width)  # how many events each slot knows
        asked = at >= first[:, None]
        event = np.where((at > 0) & asked, place.take(begin[:, None] + at - 1, mode="clip"), -1)
        target = place.take((begin[:, None] + at)[asked])
        domain = np.searchsorted(self._bounds, chosen, side="right") - 1
        whose = np.repeat(domain, size)
        own = self.rows.domain.take(target) == whose  # merged: only what the domain asks for
        parts = np.arange(len(self._bounds))
        return Windows(
            user=self.user[begin],
            domain=domain,
            offsets=np.searchsorted(domain, parts),
            event=event,
            slot=np.flatnonzero(asked)[own],
            target=target[own],
            target_offsets=np.searchsorted(whose[own], parts),
        )

    def _placed(self, epoch: int) -> np.ndarray:
        """(N,) the events' positions in the training part: those of a moment in an order of the epoch's own."""
        if self._placed_of is None or self._placed_of[0] != epoch:
            rng = self.plan.rng(TIES, epoch)
            order = np.argsort(self._moment + rng.random(len(self._moment)), kind="stable")
            self._placed_of = epoch, self.place[order]
        return self._placed_of[1]

    def _cut(self, begin: np.ndarray, asked: np.ndarray, merged: bool) -> np.ndarray:
        """(W, 3) windows that have an event asked for, of the sequences that begin so."""
        begin, size = np.unique(begin if merged else begin[asked], return_counts=True)
        pieces = -(-size // self.length)
        of = np.repeat(np.arange(len(size)), pieces)
        end = size[of] - (pieces[of] - 1 - _counting(pieces)) * self.length
        start = np.maximum(end - self.length, 0)
        total = np.append(0, np.cumsum(asked))
        return np.stack([begin[of], start, end], 1)[total[begin[of] + end] > total[begin[of] + start]]

    def _runs(self, whose: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each event, in order of sequence and time: where its sequence begins, and where the events of its moment and window do."""
        place = np.arange(len(whose))
        new = _changes(whose)
        begin = np.maximum.accumulate(np.where(new, place, 0))
        size = np.diff(np.append(np.flatnonzero(new), len(whose)))
        piece = (place - begin + -np.repeat(size, size) % self.length) // self.length
        later = new | _changes(time) | _changes(piece)
        return begin, np.maximum.accumulate(np.where(later, place, 0))

    def _group(self, epoch: int, group: int) -> list[np.ndarray]:
        """The windows of up to ``GROUP`` steps: each step's, ascending."""
        chosen, _ = self._order.rows(epoch, group)
        size = self.window[chosen, 2] - self.window[chosen, 1]
        rng = self.plan.rng(CHUNKS, epoch, group)
        mixed = rng.permutation(len(chosen))
        mixed = mixed[order_of(size[mixed])]
        parts = min(GROUP, self.steps - group * GROUP)
        done = np.cumsum(size[mixed])
        ends = np.searchsorted(done, done[-1] * np.arange(1, parts + 1) / parts)
        ends = np.clip(ends + 1, np.arange(1, parts + 1), len(chosen) - np.arange(parts)[::-1])
        ends[-1] = len(chosen)
        ends = np.maximum.accumulate(ends)
        found = [np.sort(chosen[part]) for part in np.split(mixed, ends[:-1])]
        return [found[n] for n in rng.permutation(parts)]


def _changes(values: np.ndarray) -> np.ndarray:
    """(N,) bool: the first value, and each that differs from the one before."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _counting(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... for each size."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
