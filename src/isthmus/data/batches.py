"""``batches``: the door from a data set on disk to torch.

Which rows make up a batch is computed, never stored or carried along: batch (epoch, step) is a pure function
of the seed, so that a run resumes anywhere and the number of threads changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.data.negatives import Negatives
from isthmus.data.shuffle import key_of, permute
from isthmus.errors import ConfigError, DataError

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset, Rows

T = TypeVar("T")
ROWS, NEGATIVES = 1, 2  # two streams of randomness from one seed


@dataclass(frozen=True)
class Plan:
    """How rows become batches.

    Attributes:
        batch_size: rows of a batch; an epoch's last one may be smaller.
        seed: of the order of the rows and of the negatives; 0 or more.
        temperature: domain d gets a share of every batch ~ n_d ** temperature: 1 visits every row exactly
            once per epoch, 0 gives all domains equal shares (small ones come round several times).
        negatives: sampled per row; 0 for none.
        sampler, alpha: see ``isthmus.data.negatives``.
        history_length: L, the events of a history.
        domains: indices to take rows from; None for all.
        cross: whether cross histories hold anything; None: only when ``domains`` is None, because a
            single-domain control must not see the other domains.
    """

    batch_size: int = 4096
    seed: int = 0
    temperature: float = 1.0
    negatives: int = 0
    sampler: str = "uniform"
    alpha: float = 0.75
    history_length: int = 50
    domains: tuple[int, ...] | None = None
    cross: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("negatives", 0), ("history_length", 0), ("temperature", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}", f"at least {least}", "correct it")


def steps(dataset: Dataset, part: str, plan: Plan, *, positives_only: bool = False) -> int:
    """Number of batches in an epoch."""
    return _Order(dataset, part, plan, shuffle=False, positives_only=positives_only).steps


def batches(
    dataset: Dataset,
    part: str,
    needs: Needs,
    plan: Plan,
    *,
    epoch: int = 0,
    start: int = 0,
    labels: bool = True,
    shuffle: bool = True,
    positives_only: bool = False,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """One epoch of batches, rows ordered by domain within each.

    Args:
        dataset: what to read.
        part: ``train``, ``valid`` or ``test``.
        needs: what the model reads beyond ids.
        plan: sizes, shares, negatives.
        epoch: which epoch; with ``plan.seed`` it decides the order.
        start: first step, to go on in mid-epoch.
        labels: put the rows' labels in (implicit events: 1; sampled negatives: 0).
        shuffle: False for the stored order (by domain, then as the events came), each row once.
        positives_only: leave out clicks with label 0.
        prefetch: batches made ahead in a background thread; 0 for none.

    Returns:
        A generator; closing it ends the background thread.  What goes wrong there is raised here.

    Raises:
        ConfigError: a domain or sampler that does not exist.
    """
    pairs = batches_with_rows(
        dataset,
        part,
        needs,
        plan,
        epoch=epoch,
        start=start,
        labels=labels,
        shuffle=shuffle,
        positives_only=positives_only,
        prefetch=prefetch,
    )
    return _second(pairs)


def batches_with_rows(
    dataset: Dataset,
    part: str,
    needs: Needs,
    plan: Plan,
    *,
    epoch: int = 0,
    start: int = 0,
    labels: bool = True,
    shuffle: bool = True,
    positives_only: bool = False,
    prefetch: int = 2,
) -> Generator[tuple[np.ndarray, Batch], None, None]:
    """Like ``batches``, each with the (B,) int64 positions of its rows in ``dataset.part(part)``."""
    order = _Order(dataset, part, plan, shuffle=shuffle, positives_only=positives_only)
    negatives = Negatives(dataset, plan.negatives, plan.sampler, plan.alpha) if plan.negatives else None
    build = _Build(dataset, part, needs, plan, labels, negatives)

    def make(step: int) -> tuple[np.ndarray, Batch]:
        position, offsets = order.rows(epoch, step)
        return position, build(position, offsets, epoch, step)

    return _ahead(make, range(start, order.steps), prefetch)


def query_batch(
    dataset: Dataset,
    needs: Needs,
    user: np.ndarray,
    domain: np.ndarray,
    time: np.ndarray | None,
    item: np.ndarray,
    history_length: int = 50,
    *,
    cross: bool = True,
    context: dict[str, np.ndarray] | None = None,
) -> Batch:
    """A batch for any questions: how would this user rate these items, in this domain, at this time?

    Args:
        dataset: where the histories come from.
        needs: what the model reads.
        user: (B,) user codes.
        domain: (B,) domain indices, ascending.
        time: (B,) int64, or None: with the whole history.
        item: (B, C) item codes; lists of unequal length are padded with 0, and the scores of padding are the
            caller's to throw away.
        history_length: L.
        cross: False leaves cross histories empty.
        context: (B,) values by field, for models that read context.

    Raises:
        DataError: rows that are not ordered by domain, or items that are not (B, C).
    """
    domain = np.asarray(domain, np.int64)
    if item.ndim != 2 or len(item) != len(domain):
        raise DataError(f"items of shape {item.shape} for {len(domain)} rows", "(B, C)", "pad lists of unequal length with 0")
    if (np.diff(domain) < 0).any():
        raise DataError("rows that are not ordered by domain", "ascending domain indices", "sort the rows by domain first")
    offsets = np.searchsorted(domain, np.arange(len(dataset.schema.domains) + 1))
    histories = _histories(dataset, needs, user, time, domain, history_length, None, cross)
    return Batch(
        _long(user),
        _long(item),
        _long(domain),
        tuple(offsets.tolist()),
        time=_long(time) if time is not None and needs.history_time else None,
        context={name: _context(value) for name, value in (context or {}).items()} if needs.context else {},
        **histories,
    )


class _Order:
    """Which rows make up batch (epoch, step).

    Each domain is an endless stream of its own rows: pass after pass, each in an order of its own.  The rows of
    all batches so far are dealt to the streams by Webster's rule, under which a domain's count never falls as
    the total grows (largest remainders would let it), and which is exact at the end of every epoch when shares
    are proportional to sizes.
    """

    def __init__(self, dataset: Dataset, part: str, plan: Plan, *, shuffle: bool, positives_only: bool) -> None:
        rows = dataset.part(part)
        domains, self.plan, self.shuffle = len(rows.offsets) - 1, plan, shuffle
        if any(not 0 <= d < domains for d in plan.domains or ()):
            raise ConfigError(f"domain indices {plan.domains}", f"0 to {domains - 1}", "see schema.domain_names")
        offsets = np.asarray(rows.offsets, np.int64)
        self.subset: np.ndarray | None = None
        if positives_only and rows.label is not None and dataset.schema.label == "click":
            self.subset = np.flatnonzero(rows.label == 1)
            offsets = np.searchsorted(self.subset, offsets)
        chosen = range(domains) if plan.domains is None else sorted(set(plan.domains))
        self.domain = np.array([d for d in chosen if offsets[d] < offsets[d + 1]], np.int64)
        self.first, self.size = offsets[self.domain], np.diff(offsets)[self.domain]
        self.before = np.cumsum(self.size) - self.size
        self.total, self.domains = int(self.size.sum()), domains
        share = self.size.astype(np.float64) ** plan.temperature
        self.share = share / share.sum()
        self.steps = -(-self.total // plan.batch_size)

    def rows(self, epoch: int, step: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """(B,) int64 positions in the part, ordered by domain, and the D + 1 offsets."""
        if self.shuffle:
            first = epoch * self.total + step * self.plan.batch_size
            last = min(first + self.plan.batch_size, (epoch + 1) * self.total)
            begin, end = dealt(self.share, first), dealt(self.share, last)
        else:
            first = step * self.plan.batch_size
            begin, end = (np.clip(n - self.before, 0, self.size) for n in (first, first + self.plan.batch_size))
        count = end - begin
        stream = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(stream)) + np.repeat(begin - (np.cumsum(count) - count), count)
        if self.shuffle:
            turn, place = np.divmod(place, self.size[stream])
            key = key_of(self.plan.seed, ROWS, self.domain[stream], turn)
            place = permute(place, self.size[stream], key)
        position = self.first[stream] + place
        offsets = np.zeros(self.domains + 1, np.int64)
        offsets[self.domain + 1] = count
        return position if self.subset is None else self.subset[position], tuple(np.cumsum(offsets).tolist())


@dataclass(frozen=True)
class _Build:
    """Rows of a part -> Batch."""

    dataset: Dataset
    part: str
    needs: Needs
    plan: Plan
    labels: bool
    negatives: Negatives | None

    def __call__(self, position: np.ndarray, offsets: tuple[int, ...], epoch: int, step: int) -> Batch:
        rows, plan, needs = self.dataset.part(self.part), self.plan, self.needs
        user, item, time = rows.user.take(position), rows.item.take(position), None if rows.time is None else rows.time.take(position)
        domain = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        items, log_q = item[:, None], None
        if self.negatives is not None:
            rng = np.random.Generator(np.random.Philox(key=[plan.seed, NEGATIVES], counter=[0, 0, step, epoch]))
            drawn, log_q = self.negatives.sample(user, np.array(offsets), item, rng)
            items = np.concatenate([items, drawn], axis=1)
        # Without times a training row would find its own answer in its history.
        own = item if time is None and self.part == "train" else None
        cross = plan.domains is None if plan.cross is None else plan.cross
        return Batch(
            _long(user),
            _long(items),
            torch.from_numpy(domain),
            offsets,
            label=self._label(rows, position, items.shape) if self.labels else None,
            weight=None if rows.weight is None else torch.from_numpy(rows.weight.take(position)),
            log_q=None if log_q is None else torch.from_numpy(log_q),
            time=_long(time) if time is not None and needs.history_time else None,
            context={name: _context(take_context(value, position)) for name, value in rows.context.items()} if needs.context else {},
            **_histories(self.dataset, needs, user, time, domain, plan.history_length, own, cross),
        )

    @staticmethod
    def _label(rows: Rows, position: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        label = np.zeros(shape, np.float32)
        label[:, 0] = 1 if rows.label is None else rows.label.take(position)
        return torch.from_numpy(label)


def _histories(
    dataset: Dataset,
    needs: Needs,
    user: np.ndarray,
    time: np.ndarray | None,
    domain: np.ndarray,
    length: int,
    own_item: np.ndarray | None,
    cross: bool,
) -> dict[str, Tensor]:
    """The history fields of a batch that ``needs`` asks for."""
    columns = ["item", *(["time"] if needs.history_time else []), *(["behaviour"] if needs.behaviour else [])]
    wanted = None if needs.whole_history else length
    out: dict[str, Tensor] = {}
    if needs.history:
        found = dataset.history.cut(user, time, domain, wanted, exclude_item=own_item, columns=columns)
        names = {"item": "history", "time": "history_time", "behaviour": "history_behaviour"}
        out |= {names[column]: _long(values) for column, values in found.items()}
    if needs.cross_history:
        found = dataset.history.cut(user, time, domain, wanted if cross else 0, others=True, columns=[*columns, "domain"])
        names = {"item": "cross_history", "time": "cross_time", "behaviour": "cross_behaviour", "domain": "cross_domain"}
        if not cross:  # nothing but padding, in the usual shape
            found = {name: np.full((len(user), length), -1 if name == "domain" else 0) for name in found}
        out |= {names[column]: _long(values) for column, values in found.items()}
    return out


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


def take_context(column: Any, position: np.ndarray) -> np.ndarray:
    """Some rows of a context column of ``Rows``.

    Args:
        column: (N,) codes or numbers; multi-valued: (N + 1,) offsets and the flat codes.
        position: (B,) rows.

    Returns:
        (B,), or (B, M) codes padded with 0 for a multi-valued one.
    """
    if isinstance(column, np.ndarray):
        return column.take(position)
    offsets, codes = column
    start, length = offsets.take(position), offsets.take(position + 1) - offsets.take(position)
    slot = np.arange(int(length.max(initial=0)))
    inside = slot < length[:, None]
    out = np.zeros(inside.shape, np.int64)
    out[inside] = codes.take((start[:, None] + slot)[inside])
    return out


def _context(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(value, np.float32)) if np.issubdtype(value.dtype, np.floating) else _long(value)


def _long(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(value, np.int64, order="C"))  # a copy: files are mapped read-only, callers keep their arrays


def _ahead(make: Callable[[int], T], numbers: Iterable[int], prefetch: int) -> Generator[T, None, None]:
    """``make`` of each number in turn, up to ``prefetch`` of them made ahead by one background thread."""
    if not prefetch:
        yield from map(make, numbers)
        return
    pool, waiting = ThreadPoolExecutor(1, "isthmus-batches"), deque[Any]()
    try:
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _second(pairs: Generator[tuple[np.ndarray, T], None, None]) -> Generator[T, None, None]:
    """The second of each pair; closing this closes what it reads from."""
    try:
        for _, value in pairs:
            yield value
    finally:
        pairs.close()
