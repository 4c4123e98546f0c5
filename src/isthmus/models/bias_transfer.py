"""Bias transfer: the level of a domain, the item's bias there, and what the user is known for elsewhere.

Koren and Bell's additive model ("Advances in collaborative filtering", 2011) with the user's bias carried over to a
domain where she may be new.  With residual r = rating - level - item bias of an event, s = ``shrink_users``, and sums
over the user's n events in other domains and her m earlier ones in the domain d itself::

    elsewhere = (sum of r elsewhere) / (n + s)
    user      = (sum of r in d + s w_d elsewhere) / (m + s)        a new user: w_d * elsewhere
    score     = level_d + bias_{d,i} + user

Clicks, in log-odds: what is known of a user are her impressions of the training part and how many clicks their levels
and item biases lead to expect; r is clicks - expected, and n counts in units of p (1 - p), the information of an
impression with click rate p: one Newton step of a logistic user bias.  A user without an earlier click elsewhere has nothing there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.data.batches import batches
from isthmus.data.order import Plan
from isthmus.errors import ConfigError
from isthmus.layers.biases import Biases
from isthmus.layers.user_clicks import UserClicks
from isthmus.model import Model, Stage
from isthmus.schema import PADDING, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

BATCH, MOST = 1024, 32  # rows at once, and batches that weights are learnt from: one number a domain needs no more


class BiasTransfer(Model):
    """Biases of items, and of users from other domains.

    Args:
        shrink_items: events that a domain's mean is worth against an item's own.
        shrink_users: events that no bias is worth against a user's own.
        weight: w, how much of a user's bias elsewhere holds in a domain; None: learnt for each domain, by least squares
            over the training rows of users with events elsewhere.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, history_label=True, whole_history=True)
    paper: ClassVar[str] = "Koren and Bell, Advances in Collaborative Filtering, 2011; the user's bias from other domains"
    tasks: ClassVar[tuple[str, ...]] = ("ctr", "rating")
    shallow: ClassVar[bool] = True
    weight: Tensor

    def __init__(self, schema: Schema, *, shrink_items: float = 5.0, shrink_users: float = 5.0, weight: float | None = None) -> None:
        super().__init__(schema)
        if shrink_users <= 0:
            raise ConfigError(f"shrink_users = {shrink_users}", "a number above 0", "try 5")
        self.shrink, self.given = shrink_users, weight
        self.biases = Biases(schema, shrink_items)
        self.clicks = UserClicks(schema, shrink_items) if schema.label == "click" else None
        if self.clicks is not None:  # the training part's counts stand in for histories, which hold no impressions
            self.needs = Needs(cross_history=True, whole_history=True)  # type: ignore[misc]  # less than the class declares
        self.register_buffer("weight", torch.full((len(schema.domains),), 0.0 if weight is None else float(weight)))

    def forward(self, batch: Batch) -> Output:
        """(B, C)."""
        (own, m), (other, n) = self._known(batch)
        carried = self.weight[batch.domain] * other / (n + self.shrink)
        user = (own + self.shrink * carried) / (m + self.shrink)
        domain = batch.domain[:, None].expand_as(batch.item)
        return Output(self.biases.level[domain] + self.biases.item(batch.item, domain)[0] + user[:, None])

    def stages(self) -> list[Stage]:
        """One pass over the training part."""
        return [Stage("count", solve=self._solve)]

    def _known(self, batch: Batch) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Sum of residuals and number of events, each (B,): in the row's own domain, and in the others."""
        assert batch.cross_history is not None
        if self.clicks is not None:
            some = (batch.cross_history != PADDING).any(1)
            own, other = self.clicks.here_and_elsewhere(batch.user, batch.domain)
            other = other * some[:, None]
            return (own[:, 0], own[:, 1]), (other[:, 0], other[:, 1])
        assert batch.history is not None
        assert batch.cross_domain is not None
        domain = batch.domain[:, None].expand_as(batch.history)
        return (
            self._residuals(batch.history, domain, batch.history_label),
            self._residuals(batch.cross_history, batch.cross_domain.clamp_min(0), batch.cross_label),
        )

    def _residuals(self, item: Tensor, domain: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Events (B, L) -> sum of residuals and number, both (B,)."""
        assert label is not None
        real = item != PADDING
        return (self.biases.residual(item, domain, label) * real).sum(1), real.sum(1).to(label.dtype)

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        if self.given is None:
            self._learn_weights(dataset, domains)

    def _learn_weights(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        """w = sum of x y / sum of x^2 in each domain, x what is known from elsewhere and y what the item leaves of the label."""
        top, bottom = torch.zeros(2, len(self.schema.domains), dtype=torch.float64, device=self.weight.device)
        plan = Plan(BATCH, temperature=0.0, domains=domains, cross=len(domains) == len(self.schema.domains))
        for batch in itertools.islice(batches(dataset, "train", self.needs, plan), MOST):
            batch = batch.to(self.weight.device)
            assert batch.label is not None
            _, (other, n) = self._known(batch)
            item, label = batch.item[:, 0], batch.label[:, 0]
            level = self.biases.level[batch.domain] + self.biases.item(item, batch.domain, label)[0]
            x = (other / (n + self.shrink)).double()
            if self.clicks is None:
                y, weight = (label - level).double(), x
            else:  # one Newton step of logistic regression
                rate = torch.sigmoid(level).double()
                y, weight = label - rate, x
                x = x * rate * (1 - rate)
            top.index_add_(0, batch.domain, weight * y)
            bottom.index_add_(0, batch.domain, weight * x)
        self.weight = (top / bottom.clamp_min(1e-9)).to(self.weight)
