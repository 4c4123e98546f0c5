"""``Sequences``: the training events as sequences, for models that learn to say the next event at every place of one.

A row with its own history computes a user's whole sequence again for each of her events.  A window computes it once, and its
state after every event is asked for what came next: the same questions, at a share of the cost.

A sequence is what one user did in one domain in order of time (events of one moment in the order they came), or, merged, what she did in
all domains, asked for her events in one of them.  What comes after the k-th event is asked at the state that knows all that
was strictly before it: after the last event of an earlier moment, as where a model is judged; before them all there is a state that knows
nothing.  Sequences longer than a window are cut into several, from the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.order import CHUNKS, Order, Plan
from isthmus.errors import DataError

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
        time = came if rows.time is None else rows.time.take(kept)
        merged = merged and cross
        whose = user if merged else domain * dataset.schema.user.size + user
        order = np.lexsort((came, time, whose))
        self.plan, self.length, self.rows = plan, max(1, plan.history_length), rows
        self.place, self.user, self.domain = kept[order], user[order], domain[order]
        wanted = plan.chosen(domains)
        begin, self._run = _runs(whose[order], time[order])
        self.known = self._run - begin
        parts = [self._cut(begin, self.domain == d, merged) for d in wanted]
        counts = np.zeros(domains, np.int64)
        counts[[*wanted]] = [len(part) for part in parts]
        # Of each window: its sequence's first event, its slots from and to (slot k: k events are known), its targets from and to.
        self.window = np.concatenate(parts) if parts else np.zeros((0, 5), np.int64)
        if not len(self.window):
            raise DataError("no training event in these domains", "at least one", "choose other domains")
        mean = float((self.window[:, 2] - self.window[:, 1]).mean())
        self._each = max(1, round(plan.batch_size / mean))  # windows of a batch, on average
        bounds = np.append(0, np.cumsum(counts))
        self._bounds, self._order = bounds, Order(bounds, plan, shuffle=True, batch_size=self._each * GROUP)
        self._last: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self.steps = -(-len(self.window) // self._each)

    def batch(self, epoch: int, step: int) -> Windows:
        """The windows of a step."""
        group, number = divmod(step, GROUP)
        if self._last is None or self._last[0] != (epoch, group):
            self._last = (epoch, group), self._group(epoch, group)
        return self.windows(self._last[1][number])

    def windows(self, chosen: np.ndarray) -> Windows:
        """Chosen windows (B,), ascending, as arrays."""
        begin, first, end, low, high = self.window[chosen].T
        width = int((end - first).max())
        at = end[:, None] - width + np.arange(width)  # how many events each slot knows
        event = np.where((at > 0) & (at >= first[:, None]), self.place.take(begin[:, None] + at - 1, mode="clip"), -1)
        count = high - low
        row = np.repeat(np.arange(len(chosen)), count)
        target = np.arange(len(row)) + np.repeat(low - (np.cumsum(count) - count), count)
        domain = np.searchsorted(self._bounds, chosen, side="right") - 1
        own = self.domain[target] == domain[row]  # merged: only what the domain asks for
        row, target = row[own], target[own]
        slot = row * width + self.known[target] - (end[row] - width)
        parts = np.arange(len(self._bounds))
        return Windows(
            user=self.user[begin],
            domain=domain,
            offsets=np.searchsorted(domain, parts),
            event=event,
            slot=slot,
            target=self.place[target],
            target_offsets=np.searchsorted(domain[row], parts),
        )

    def _cut(self, begin: np.ndarray, asked: np.ndarray, merged: bool) -> np.ndarray:
        """(W, 5) windows of all sequences that have an event asked for."""
        begin, size = np.unique(begin if merged else begin[asked], return_counts=True)
        pieces = -(-size // self.length)
        of = np.repeat(np.arange(len(size)), pieces)
        end = size[of] - (pieces[of] - 1 - _counting(pieces)) * self.length
        start = np.maximum(end - self.length, 0)
        # The run of an event is, counted from its sequence's first one, the state that it is asked at: in order of event they ascend.
        low, high = (np.searchsorted(self._run, begin[of] + cut) for cut in (start, end))
        total = np.append(0, np.cumsum(asked))
        return np.stack([begin[of], start, end, low, high], 1)[total[high] > total[low]]

    def _group(self, epoch: int, group: int) -> list[np.ndarray]:
        """The windows of up to ``GROUP`` steps: each step's, ascending."""
        chosen, _ = self._order.rows(epoch, group)
        size = self.window[chosen, 2] - self.window[chosen, 1]
        rng = np.random.Generator(np.random.Philox(key=[self.plan.seed, CHUNKS], counter=[0, 0, group, epoch]))
        mixed = rng.permutation(len(chosen))
        mixed = mixed[np.argsort(size[mixed], kind="stable")]
        parts = min(GROUP, self.steps - group * GROUP)
        done = np.cumsum(size[mixed])
        ends = np.searchsorted(done, done[-1] * np.arange(1, parts + 1) / parts)
        ends = np.clip(ends + 1, np.arange(1, parts + 1), len(chosen) - np.arange(parts)[::-1])
        ends[-1] = len(chosen)
        ends = np.maximum.accumulate(ends)
        found = [np.sort(chosen[part]) for part in np.split(mixed, ends[:-1])]
        return [found[n] for n in rng.permutation(parts)]


def _runs(whose: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each event, in order of sequence and time: where its sequence begins, and where the events of its moment do."""
    place = np.arange(len(whose))
    new = np.append(True, whose[1:] != whose[:-1])[: len(whose)]
    later = new | np.append(True, time[1:] != time[:-1])[: len(whose)]
    begin, run = (np.maximum.accumulate(np.where(mark, place, 0)) for mark in (new, later))
    return begin, run


def _counting(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... for each size."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
