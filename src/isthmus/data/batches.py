"""``batches``: the door from a data set on disk to torch.

Which rows make up a batch is computed, never stored or carried along: batch (epoch, step) is a pure function
of the seed, so that a run resumes anywhere and the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Pool, history_field
from isthmus.data.ahead import ahead
from isthmus.data.negatives import Negatives
from isthmus.data.order import NEGATIVES, Order, Plan
from isthmus.data.pools import POOLED, Pools, Shared
from isthmus.errors import DataError

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset, Rows

T = TypeVar("T")


def steps(dataset: Dataset, part: str, plan: Plan, *, positives_only: bool = False) -> int:
    """Number of batches in an epoch."""
    return Order.of(dataset, part, plan, shuffle=False, positives_only=positives_only).steps


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
    order = Order.of(dataset, part, plan, shuffle=shuffle, positives_only=positives_only)
    negatives = pools = None
    if plan.sampler in POOLED:
        pools = Pools(dataset, plan.sampler, plan.negatives, plan.alpha)
    elif plan.negatives:
        negatives = Negatives(dataset, plan.negatives, plan.sampler, plan.alpha)
    build = _Build(dataset, part, needs, plan, labels, negatives, pools)

    def make(step: int) -> tuple[np.ndarray, Batch]:
        position, offsets = order.rows(epoch, step)
        batch = build(position, offsets, epoch, step)
        return position[plan.own(len(position))[0]], batch.pinned() if plan.pinned else batch

    return ahead(make, range(start, order.steps), prefetch)


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
        as_long(user),
        as_long(item),
        as_long(domain),
        tuple(offsets.tolist()),
        time=as_long(time) if time is not None and needs.history_time else None,
        context={name: _tensor(value) for name, value in (context or {}).items()} if needs.context else {},
        **histories,
    )


@dataclass(frozen=True)
class _Build:
    """Rows of a part -> Batch; of several ranks this one's share of them."""

    dataset: Dataset
    part: str
    needs: Needs
    plan: Plan
    labels: bool
    negatives: Negatives | None
    pools: Pools | None

    def __call__(self, position: np.ndarray, offsets: tuple[int, ...], epoch: int, step: int) -> Batch:
        rows, plan, needs = self.dataset.part(self.part), self.plan, self.needs
        user, item, time = rows.user.take(position), rows.item.take(position), None if rows.time is None else rows.time.take(position)
        domain = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        items, log_q, pool = item[:, None], None, None
        if self.pools is not None:
            pool = make_pool(self.pools.sample(offsets, item, plan.rng(NEGATIVES, epoch, step)), plan.log_q)
        if self.negatives is not None:
            drawn, log_q = self.negatives.sample(user, np.array(offsets), item, plan.rng(NEGATIVES, epoch, step))
            items = np.concatenate([items, drawn], axis=1)
        mine, share = plan.own(len(position))
        if plan.ranks > 1:  # all that was drawn is the whole batch's; what follows is for the rows here alone
            share *= part_of(rows.weight, position, mine)
            position, user, item, domain, items = (values[mine].copy() for values in (position, user, item, domain, items))
            time, log_q = (None if values is None else values[mine].copy() for values in (time, log_q))
            offsets = tuple(np.searchsorted(domain, np.arange(len(offsets))).tolist())
            if pool is not None and pool.own is not None:
                pool.own = pool.own[mine]
        # Without times a training row would find its own answer in its history.
        own = item if time is None and self.part == "train" else None
        cross = plan.domains is None if plan.cross is None else plan.cross
        return Batch(
            as_long(user),
            as_long(items),
            torch.from_numpy(domain),
            offsets,
            label=self._label(rows, position, items.shape) if self.labels else None,
            weight=None if rows.weight is None else torch.from_numpy(rows.weight.take(position)),
            log_q=None if log_q is None or not plan.log_q else torch.from_numpy(log_q),
            pool=pool,
            epoch=epoch,
            share=share,
            time=as_long(time) if time is not None and needs.history_time else None,
            context={name: _tensor(take_context(value, position)) for name, value in rows.context.items()} if needs.context else {},
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
) -> dict[str, Any]:
    """The history fields of a batch that ``needs`` asks for."""
    wanted, cut = None if needs.whole_history else length, dataset.history.cut
    out: dict[str, Any] = {}
    for name, columns in needs.histories.items():
        if name == "history":
            found = cut(user, time, domain, wanted, exclude_item=own_item, columns=columns)
        elif name == "cross_history":
            found = cut(user, time, domain, wanted if cross else 0, others=True, columns=columns)
            if not cross:  # nothing but padding, in the usual shape
                found = {c: np.full((len(user), length), -1 if c == "domain" else 0, values.dtype) for c, values in found.items()}
        elif cross:
            found = cut(user, time, None, wanted, exclude_item=own_item, columns=columns)
        else:  # of all domains the row's own alone
            item = cut(user, time, domain, wanted, exclude_item=own_item, columns=("item",))["item"]
            found = {"item": item, "domain": np.where(item > 0, domain[:, None], -1)}
        out |= {history_field(name, column): _tensor(values) for column, values in found.items()}
    return out


def part_of(weight: np.ndarray | None, position: np.ndarray, mine: np.ndarray | slice) -> float:
    """How much of what a batch's rows (B,) weigh together some of them weigh."""
    held = np.ones(len(position)) if weight is None else weight.take(position).astype(np.float64)
    return float(held[mine].sum() / max(held.sum(), 1e-12))


def make_pool(drawn: Shared, log_q: bool) -> Pool:
    """Shared candidates as tensors; ``log_q``: with the correction."""
    corrected = drawn.log_q if log_q or drawn.log_q is None else np.zeros_like(drawn.log_q)
    return Pool(
        as_long(drawn.item),
        torch.arange(len(drawn.offsets) - 1).repeat_interleave(torch.from_numpy(np.diff(drawn.offsets))),
        tuple(drawn.offsets.tolist()),
        None if drawn.own is None else as_long(drawn.own),
        None if corrected is None else torch.from_numpy(corrected),
    )


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
    slot = np.arange(int(length.max(initial=1)))  # of rows without any value a column of padding: torch takes no mean of (B, 0)
    inside = slot < length[:, None]
    out = np.zeros(inside.shape, np.int64)
    out[inside] = codes.take((start[:, None] + slot)[inside])
    return out


def _tensor(value: np.ndarray) -> Tensor:
    """Numbers as float32, codes as int64."""
    return torch.from_numpy(np.array(value, np.float32)) if np.issubdtype(value.dtype, np.floating) else as_long(value)


def as_long(value: np.ndarray) -> Tensor:
    """Integers as int64, a copy."""
    return torch.from_numpy(np.array(value, np.int64, order="C"))  # a copy: files are mapped read-only, callers keep their arrays


def _second(pairs: Generator[tuple[np.ndarray, T], None, None]) -> Generator[T, None, None]:
    """The second of each pair; closing this closes what it reads from."""
    try:
        for _, value in pairs:
            yield value
    finally:
        pairs.close()
