"""Markov transitions: what usually comes after the events that the user has just had.

Sequential rules (SR) as in Ludewig and Jannach: Evaluation of Session-based Recommendation Algorithms, UMUAI 2018, for the last
few events instead of the last one.  j_0 is the latest event of the user's history, j_1 the one before; n(j) counts the events
of item j in training, and n(j -> i) how often i came at most ``window`` events after j, 1/distance each::

    score(i) = sum over k < window of decay^k n(j_k -> i) / (n(j_k) + shrink)  +  popularity * share of i in the domain asked for

A user's sequence is her positives of the training part, in order of time (of one moment, or without times: as stored), those of
each domain by themselves.  With ``across`` it is those of all domains together, and the history alike, where of one moment,
or without times, the own domain's events come last.

Deviations: the printed score has the last event only (``decay`` near 0), no ``window`` and no shrinkage, and divides by the
number of rules that fired for j, not of its events.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.shares import Shares
from isthmus.layers.transitions import Transitions
from isthmus.model import Model, Stage
from isthmus.schema import PADDING, Schema
from isthmus.sorting import order_of

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class Markov(Model):
    """Transitions between items, per domain or over all domains at once.

    Args:
        window: events that speak, and distance up to which one event follows another; at least 1.
        decay: what an event counts against the one after it, above 0 and at most 1.
        shrink: events that no transition is worth, against chance pairs of rare items; at least 0.
        popularity: weight of an item's share of the domain's events, for where transitions say nothing, or the same; below 0 the
            rarer item comes first, as it should where tested negatives were drawn in proportion to popularity.
        across: sequences over all domains, in training and as history; False: each domain its own.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "SR of Ludewig and Jannach, Evaluation of Session-based Recommendation Algorithms, UMUAI 2018"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")
    shallow: ClassVar[bool] = True

    def __init__(
        self,
        schema: Schema,
        *,
        window: int = 3,
        decay: float = 0.5,
        shrink: float = 5.0,
        popularity: float = 0.01,
        across: bool = False,
    ) -> None:
        super().__init__(schema)
        if window < 1 or not 0 < decay <= 1 or shrink < 0 or not math.isfinite(popularity):
            came = f"window = {window}, decay = {decay}, shrink = {shrink}, popularity = {popularity}"
            wanted = "window from 1, decay in (0, 1], shrink from 0, a finite popularity"
            raise ConfigError(came, wanted, "try window = 3, decay = 0.5")
        if across:
            self.needs = Needs(history=True, cross_history=True, history_time=True)  # type: ignore[misc]  # more than the class declares
        self.window, self.decay, self.shrink, self.popularity, self.across = window, decay, shrink, popularity, across
        self.transitions = Transitions(schema.item.size)
        self.shares = Shares(schema.item.size)

    def forward(self, batch: Batch) -> Output:
        """(B, C)."""
        event = self._latest(batch)
        weight = self.decay ** torch.arange(event.shape[1] - 1, -1, -1, device=event.device, dtype=torch.float32)
        group = batch.domain * int(not self.across)
        return Output(self.transitions(group, event, weight, batch.item) + self.popularity * self.shares.of(batch))

    def stages(self) -> list[Stage]:
        """One pass over the training part."""
        return [Stage("count", solve=self._solve)]

    def _latest(self, batch: Batch) -> Tensor:
        """The last ``window`` events (B, up to ``window``), the latest last, after padding."""
        assert batch.history is not None
        own = batch.history[:, -self.window :]
        if not self.across:
            return own
        assert batch.cross_history is not None
        event = torch.cat([batch.cross_history[:, -self.window :], own], 1)
        time = torch.zeros_like(event)
        if batch.cross_time is not None and batch.history_time is not None:
            time = torch.cat([batch.cross_time[:, -self.window :], batch.history_time[:, -self.window :]], 1)
        time = time.masked_fill(event == PADDING, torch.iinfo(torch.int64).min)
        return event.gather(1, time.argsort(dim=1, stable=True)[:, -self.window :])

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        rows, label = dataset.part("train"), self.schema.label
        chosen = np.concatenate([rows.of(d).start + np.flatnonzero(rows.positive(label, rows.of(d))) for d in domains])
        user, item, group, stored = (np.asarray(c[chosen], np.int64) for c in (rows.user, rows.item, rows.domain, rows.row))
        self.shares.learn(dataset, domains)
        group *= int(not self.across)
        moment = stored if rows.time is None else np.asarray(rows.time[chosen], np.int64)
        order = order_of(group, user, moment, stored)
        self.transitions.solve(group[order], user[order], item[order], window=self.window, shrink=self.shrink)
