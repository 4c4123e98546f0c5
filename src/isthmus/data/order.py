"""``Plan`` and ``Order``: which rows make up batch (epoch, step), computed and never stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.shuffle import key_of, permute, permute_nearby
from isthmus.errors import ConfigError

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

RUN = 1 << 15  # rows worked out at once: small batches by themselves cost twice as much, most of it for many small calls
ROWS, NEGATIVES, CHUNKS, TIES = 1, 2, 3, 4  # streams of randomness from one seed


@dataclass(frozen=True)
class Plan:
    """How rows become batches.

    Attributes:
        batch_size: rows of a batch; an epoch's last one may be smaller.
        seed: of the order of the rows and of the negatives; 0 or more.
        temperature: domain d gets a share of every batch ~ n_d ** temperature: 1 visits every row exactly
            once per epoch, 0 gives all domains equal shares (small ones come round several times).
        negatives: sampled per row; 0 for none.
        sampler, alpha: see ``isthmus.data.negatives`` and ``isthmus.data.pools``.
        log_q: put the log-probabilities of the negatives in.
        history_length: L, the events of a history.
        moment: units of time that count as one moment, see ``isthmus.data.sequences``.
        domains: indices to take rows from; None for all.
        cross: whether cross histories hold anything; None: only when ``domains`` is None, because a
            single-domain control must not see the other domains.
        rank, ranks: which part of each batch is made, of how many: every ``ranks``-th row (or window).  Order, negatives and shared
            candidates are those of the whole batch, so that the parts together are what one process would have made.
        shuffle_buffer: rows that are shuffled together, see ``isthmus.data.shuffle.permute_nearby``; None: all of a domain.
        pinned: batches that are made ahead lie in memory from which a GPU takes them by itself.
    """

    batch_size: int = 4096
    seed: int = 0
    temperature: float = 1.0
    negatives: int = 0
    sampler: str = "uniform"
    alpha: float = 0.75
    log_q: bool = True
    history_length: int = 50
    moment: int = 1
    domains: tuple[int, ...] | None = None
    cross: bool | None = None
    rank: int = 0
    ranks: int = 1
    shuffle_buffer: int | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("negatives", 0), ("history_length", 0), ("temperature", 0), ("moment", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}", f"at least {least}", "correct it")

    def rng(self, stream: int, epoch: int, step: int = 0) -> np.random.Generator:
        """Random numbers of a step's own, whatever was drawn before."""
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, step, epoch]))

    def own(self, rows: int) -> tuple[slice, float]:
        """The places of this rank's rows in a batch of so many, ascending, and a factor for its loss.

        A batch of fewer rows than ranks goes to all of them, and counts for each as one of as many.
        """
        if rows < self.ranks:
            return slice(None), 1 / self.ranks
        return (slice(self.rank, None, self.ranks), 1.0) if self.ranks > 1 else (slice(None), 1.0)

    def chosen(self, domains: int) -> tuple[int, ...]:
        """The domains to take rows from, of so many, ascending.

        Raises:
            ConfigError: an index that is none.
        """
        if any(not 0 <= d < domains for d in self.domains or ()):
            raise ConfigError(f"domain indices {self.domains}", f"0 to {domains - 1}", "see schema.domain_names")
        return tuple(range(domains) if self.domains is None else sorted(set(self.domains)))


@dataclass(frozen=True)
class _Run:
    """Some batches that come one after the other.

    Attributes:
        key: epoch and number.
        position: of all their rows.
        ends: where each batch begins, and where the last one ends.
        offsets: of the domains in each batch.
    """

    key: tuple[int, int]
    position: np.ndarray
    ends: np.ndarray
    offsets: list[list[int]]


class Order:
    """Which rows make up batch (epoch, step).

    Each domain is an endless stream of its own rows: pass after pass, each in an order of its own.  The rows of
    all batches so far are dealt to the streams by Webster's rule, under which a domain's count never falls as
    the total grows (largest remainders would let it), and which is exact at the end of every epoch when shares
    are proportional to sizes.

    Args:
        offsets: (D + 1,) where each domain's rows begin.
        plan: domains, shares, seed.
        shuffle: False: the stored order.
        batch_size: rows of a batch; None: the plan's.
    """

    def __init__(self, offsets: np.ndarray, plan: Plan, *, shuffle: bool, batch_size: int | None = None) -> None:
        domains, self.plan, self.shuffle = len(offsets) - 1, plan, shuffle
        self.batch_size = plan.batch_size if batch_size is None else batch_size
        self.subset: np.ndarray | None = None
        chosen = plan.chosen(domains)
        self.domain = np.array([d for d in chosen if offsets[d] < offsets[d + 1]], np.int64)
        self.first, self.size = offsets[self.domain], np.diff(offsets)[self.domain]
        self.before = np.cumsum(self.size) - self.size
        self.total, self.domains = int(self.size.sum()), domains
        share = self.size.astype(np.float64) ** plan.temperature
        self.share = share / share.sum()
        self.steps = -(-self.total // self.batch_size)
        self.run = max(1, RUN // self.batch_size)  # batches worked out at once
        self._held: _Run | None = None

    @classmethod
    def of(cls, dataset: Dataset, part: str, plan: Plan, *, shuffle: bool, positives_only: bool) -> Order:
        """The order of a part's rows."""
        rows = dataset.part(part)
        offsets = np.asarray(rows.offsets, np.int64)
        if not positives_only or rows.label is None or dataset.schema.label != "click":
            return cls(offsets, plan, shuffle=shuffle)
        subset = np.flatnonzero(rows.label == 1)
        order = cls(np.searchsorted(subset, offsets), plan, shuffle=shuffle)
        order.subset = subset
        return order

    def rows(self, epoch: int, step: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """(B,) int64 positions in the part, ordered by domain, and the D + 1 offsets."""
        key, held = (epoch, step // self.run), self._held
        if held is None or held.key != key:
            held = self._held = self._run(*key)
        n = step % self.run
        return held.position[held.ends[n] : held.ends[n + 1]], tuple(held.offsets[n])

    def _run(self, epoch: int, number: int) -> _Run:
        """The batches of a run."""
        last = np.minimum(np.arange(number * self.run, min((number + 1) * self.run, self.steps) + 1) * self.batch_size, self.total)
        if self.shuffle:
            bounds = np.stack([dealt(self.share, epoch * self.total + n) for n in last.tolist()])
        else:
            bounds = np.clip(last[:, None] - self.before, 0, self.size)
        count = np.diff(bounds, axis=0)  # (batches, streams)
        each = count.ravel()
        stream = np.repeat(np.tile(np.arange(len(self.domain)), len(count)), each)
        place = np.arange(len(stream)) + np.repeat(bounds[:-1].ravel() - (np.cumsum(each) - each), each)
        if self.shuffle:
            size, buffer = self.size[stream], self.plan.shuffle_buffer
            turn, place = np.divmod(place, size)
            key = key_of(self.plan.seed, ROWS, self.domain[stream], turn)
            if buffer is None:
                place = permute(place, size, key)
            else:
                place = permute_nearby(place, size, key, (buffer * self.size // self.total)[stream])
        position = self.first[stream] + place
        offsets = np.zeros((len(count), self.domains + 1), np.int64)
        offsets[:, self.domain + 1] = count
        ends = np.append(0, np.cumsum(count.sum(1)))
        return _Run((epoch, number), position if self.subset is None else self.subset[position], ends, offsets.cumsum(1).tolist())


def dealt(share: np.ndarray, total: int) -> np.ndarray:
    """How many of the first ``total`` rows come from each stream, by Webster's rule.

    Row k of a stream with share s is due at (k + 1/2) / s; the first ``total`` rows due are dealt (ties to the
    earlier stream).  A count is never further than the number of streams from its share, so that only a few
    rows of each stream need to be looked at.

    Args:
        share: (A,) positive, summing to 1.
        total: 0 or more.

    Returns:
        (A,) int64, summing to ``total``.
    """
    sure = np.maximum(np.floor(share * (total - len(share))), 0).astype(np.int64)
    open_ = np.floor(share * (total + len(share)) + 1).astype(np.int64) - sure
    stream = np.repeat(np.arange(len(share)), open_)
    number = np.arange(len(stream)) + np.repeat(sure - (np.cumsum(open_) - open_), open_)
    due = np.argsort((number + 0.5) / share[stream], kind="stable")
    return sure + np.bincount(stream[due[: total - int(sure.sum())]], minlength=len(share))
