"""Popularity: one number per item and domain, the same for every user.

By the labels (s = ``smoothing``, n events of the item in the domain, k of them clicks, y their labels)::

    implicit   log(n + s q)                      q = 1
    click      logit((k + s q) / (n + s))        q = the domain's click rate
    rating     (sum of y + s q) / (n + s)        q = the domain's mean rating

An item without events in the domain gets q.  With ``across``, q also knows the item's events in all domains together:
its share of them over the mean share (implicit), or the domain's rate or mean moved by how far the item's pooled one,
shrunk likewise, is from the grand one (in log-odds for clicks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.solved import PairTable
from isthmus.model import Retriever, Stage
from isthmus.schema import FIRST, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

Floats = NDArray[np.float64]


class Popularity(Retriever):
    """Smoothed item counts, click rates or mean ratings.

    Args:
        smoothing: events that the prior is worth, above 0.
        across: the prior of an item knows its events in all domains.
        by: ``count`` (how often), ``mean`` (how well), or ``auto``: count for implicit data, mean otherwise.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str] = "the usual baseline; shrinkage to the domain's mean as in empirical Bayes"
    shallow: ClassVar[bool] = True
    prior: Tensor
    offset: Tensor

    def __init__(
        self, schema: Schema, *, smoothing: float = 5.0, across: bool = False, by: Literal["auto", "count", "mean"] = "auto"
    ) -> None:
        super().__init__(schema)
        if smoothing <= 0:
            raise ConfigError(f"smoothing = {smoothing}", "a number above 0", "try 5")
        if by not in ("auto", "count", "mean") or (by == "mean" and schema.label == "implicit"):
            raise ConfigError(f"by = {by!r} with {schema.label} labels", "auto, count, or (with labels) mean", "use by = 'auto'")
        self.smoothing, self.across = smoothing, across
        self.link = "log" if by == "count" or schema.label == "implicit" else "logit" if schema.label == "click" else "identity"
        self.items = PairTable(schema.item.size, 1)
        self.register_buffer("prior", torch.zeros(len(schema.domains)))
        self.register_buffer("offset", torch.zeros(schema.item.size))

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, 1): 1, for everyone is the same."""
        return self.prior.new_ones(batch.user.shape[0], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., 1): the items' numbers."""
        return (self.prior[domain] + self.offset[item])[..., None] + self.items(domain, item)

    def stages(self) -> list[Stage]:
        """One pass over the counts."""
        return [Stage("count", solve=self._solve)]

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        counted = {d: self._counts(dataset, d) for d in domains}
        size, s = self.schema.item.size, self.smoothing
        offset = self._offset(*np.sum(list(counted.values()), axis=0)) if self.across else np.zeros(size)
        prior, keys, rows = np.zeros(len(self.schema.domains)), [], []
        for d, (events, total) in counted.items():
            prior[d] = np.log(s) if self.link == "log" else self._to(_mean(events.sum(), total.sum()))
            seen = np.flatnonzero(events)
            expected = self._back(prior[d] + offset[seen])
            value = total[seen] + expected if self.link == "log" else (total[seen] + s * expected) / (events[seen] + s)
            keys.append(d * size + seen)
            rows.append(self._to(value) - prior[d] - offset[seen])
        self.prior = torch.from_numpy(prior).to(self.prior)
        self.offset = torch.from_numpy(offset).to(self.offset)
        self.items.solve(torch.from_numpy(np.concatenate(keys)), torch.from_numpy(np.concatenate(rows))[:, None], torch.zeros(1))

    def _counts(self, dataset: Dataset, domain: int) -> tuple[Floats, Floats]:
        """(items,) number of events and sum of their labels; both the number of positives when counting."""
        size = self.schema.item.size
        if self.link == "log":
            return (count := np.asarray(dataset.popularity(domain), np.float64)), count
        rows = dataset.part("train")
        assert rows.label is not None
        own = rows.of(domain)
        item = np.asarray(rows.item[own])
        events, total = np.bincount(item, minlength=size), np.bincount(item, rows.label[own], size)
        return events.astype(np.float64), total.astype(np.float64)

    def _offset(self, events: Floats, total: Floats) -> Floats:
        """(items,) what the pooled domains say of an item, on the scale of the link."""
        if self.link == "log":
            return np.log((total + 1) / (total[FIRST:].mean() + 1))
        grand = _mean(events.sum(), total.sum())
        return self._to((total + self.smoothing * grand) / (events + self.smoothing)) - self._to(grand)

    def _to(self, value: Floats) -> Floats:
        return np.log(value) if self.link == "log" else np.log(value / (1 - value)) if self.link == "logit" else value

    def _back(self, value: Floats) -> Floats:
        return np.exp(value) if self.link == "log" else 1 / (1 + np.exp(-value)) if self.link == "logit" else value


def _mean(events: Floats, total: Floats) -> Floats:
    """The mean label, never exactly 0 or 1."""
    return (total + 0.5) / (events + 1)
