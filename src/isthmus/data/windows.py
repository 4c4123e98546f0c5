"""``window_batches``: training sequences -> torch, for models that are asked for what comes next at every place of one."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch

from isthmus.batch import Batch, Needs, Targets
from isthmus.data.ahead import ahead
from isthmus.data.batches import as_long, make_pool, part_of
from isthmus.data.negatives import Negatives
from isthmus.data.order import NEGATIVES, Plan
from isthmus.data.pools import POOLED, Pools
from isthmus.data.sequences import Sequences
from isthmus.schema import PADDING

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class WindowBatches:
    """Batches of windows, made once for a whole training.

    Args:
        dataset: encoded.
        needs: what the model reads: of histories its own domain's, or the merged ones, and their times.
        plan: sizes, shares, negatives.

    Attributes:
        steps: batches of an epoch.
    """

    def __init__(self, dataset: Dataset, needs: Needs, plan: Plan) -> None:
        self.sequences = Sequences(dataset, plan, merged=needs.merged_history)
        self.needs, self.plan, self.rows = needs, plan, dataset.part("train")
        self.steps = self.sequences.steps
        shared = plan.sampler in POOLED
        self.pools = Pools(dataset, plan.sampler, plan.negatives, plan.alpha) if shared else None
        self.negatives = None if shared else Negatives(dataset, max(1, plan.negatives), plan.sampler, plan.alpha)

    def epoch(self, epoch: int, start: int = 0, prefetch: int = 2) -> Generator[Batch, None, None]:
        """One epoch from a step on, made ahead in a background thread; see ``isthmus.data.batches.batches``."""

        def make(step: int) -> Batch:
            batch = self.batch(epoch, step)
            return batch.pinned() if self.plan.pinned else batch

        return ahead(make, range(start, self.steps), prefetch)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step: a function of (seed, epoch, step) alone."""
        found, rows, needs = self.sequences.batch(epoch, step), self.rows, self.needs
        there = found.event >= 0
        item = np.where(there, rows.item.take(found.event, mode="clip"), PADDING)
        target, asked = rows.item.take(found.target).astype(np.int64), np.diff(found.target_offsets)
        domain = np.repeat(np.arange(len(asked)), asked)
        rng = self.plan.rng(NEGATIVES, epoch, step)
        bounds = tuple(found.target_offsets.tolist())
        pool = negative = log_q = None
        if self.pools is not None:
            pool = make_pool(self.pools.sample(bounds, target, rng), self.plan.log_q)
        if self.negatives is not None:
            users = rows.user.take(found.target)
            drawn, corrected = self.negatives.sample(users, found.target_offsets, target, rng)
            negative, log_q = torch.from_numpy(drawn), torch.from_numpy(corrected) if self.plan.log_q else None
        share = 1.0
        if self.plan.ranks > 1:  # what was drawn is the whole batch's; what follows is for this rank's windows alone
            mine, share = self.plan.own(len(found.user))
            cut, kept = found.take(mine)
            share *= part_of(rows.weight, found.target, kept)
            found, item, there, target, domain = cut, item[mine], there[mine], target[kept], domain[kept]
            bounds = tuple(cut.target_offsets.tolist())
            negative, log_q = (None if values is None else values[kept] for values in (negative, log_q))
            if pool is not None and pool.own is not None:
                pool.own = pool.own[kept]
        weight = None if rows.weight is None else torch.from_numpy(rows.weight.take(found.target))
        out = Batch(
            as_long(found.user),
            torch.zeros(len(found.user), 0, dtype=torch.int64),
            as_long(found.domain),
            tuple(found.offsets.tolist()),
            pool=pool,
            target=Targets(as_long(found.slot), torch.from_numpy(target), torch.from_numpy(domain), bounds, negative, log_q, weight),
            epoch=epoch,
            share=share,
        )
        if needs.history:
            out.history = as_long(item)
        if needs.history_time and rows.time is not None:
            out.history_time = as_long(np.where(there, rows.time.take(found.event, mode="clip"), 0))
        if needs.merged_history:
            out.merged_history = as_long(item)
            out.merged_domain = as_long(np.where(there, rows.domain.take(found.event, mode="clip"), -1))
        return out
