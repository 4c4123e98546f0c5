"""User k-nearest neighbours across domains: those who judged alike elsewhere say what she will like here.

Herlocker, Konstan, Borchers and Riedl (SIGIR 1999), with Koren and Bell's damping ("Advances in collaborative filtering",
2011).  Of a user's pair j of domain and item, e_j = rating - level - item bias, b_u = sum of e / (number of pairs + s_u) her
bias, and r_{u,j} = e_j - b_u; n(u,v) counts the pairs that both users have, in whatever domains::

    sim(u,v) = n(u,v) / (n(u,v) + damping) * sum of r_{u,j} r_{v,j} over common j / (|r_u| |r_v|)
    score    = level_d + bias_{d,i} + b_u + sum of sim(u,v) r_{v,(d,i)} / (sum of sim(u,v) + shrink)

over the k most similar users v of those who have the candidate i in the domain d asked for.  Users who disagree (sim < 0) are
no neighbours, and nobody is her own.  What is known of the user are her histories, as of the moment; of the neighbours, the
training part, averaged where a pair repeats.

Clicks: r = e = click - p, p the rate that level and item bias (log-odds) lead to expect, and b_u = 0: a history holds clicks
alone.  The last sum becomes one Newton step in log-odds: sum of sim r / (sum of sim p (1 - p) + shrink), p of the candidate.
Implicit data: r = 1, b_u = 0, so that candidates rank as by the plain sum of similarities.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.biases import Biases
from isthmus.layers.drawing import drawing
from isthmus.layers.solved import WORKING_SET, Solved, find
from isthmus.model import Model, Stage
from isthmus.schema import PADDING, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class UserKnn(Model):
    """User-kNN on what users did in all domains.

    A block of n rows holds n similarities to every user of the training part, and time grows alike.

    Args:
        k: neighbours of each candidate; 0: all who have it.
        shrink: similarity that no opinion is worth against the neighbours'; above 0.
        damping: common pairs that a similarity needs to count by half; at least 0.
        shrink_users: pairs that no bias is worth against a user's own; at least 0.
        shrink_items: events that a domain's mean is worth against an item's own.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, history_label=True, whole_history=True)
    paper: ClassVar[str] = "Herlocker et al., An Algorithmic Framework for Performing Collaborative Filtering, SIGIR 1999"
    shallow: ClassVar[bool] = True

    def __init__(
        self,
        schema: Schema,
        *,
        k: int = 0,
        shrink: float = 0.3,
        damping: float = 5.0,
        shrink_users: float = 10.0,
        shrink_items: float = 5.0,
    ) -> None:
        super().__init__(schema)
        if k < 0 or shrink <= 0 or damping < 0 or shrink_users < 0:
            came = f"k = {k}, shrink = {shrink}, damping = {damping}, shrink_users = {shrink_users}"
            raise ConfigError(came, "shrink above 0, the others at least 0", "use k = 0 to keep all neighbours")
        self.k, self.shrink, self.damping = k, shrink, damping
        self.shrink_users = shrink_users if schema.label == "rating" else None
        self.biases = Biases(schema, shrink_items)
        self.posts = Postings()

    def forward(self, batch: Batch) -> Output:
        """(B, C)."""
        row, pair, error = self._profiles(batch)
        domain = batch.domain[:, None].expand_as(batch.item)
        expected = self.biases.level[domain] + self.biases.item(batch.item, domain)[0]
        own, wanted = self.posts.place(pair), self.posts.place(self._pair(batch.item, domain))
        residual, bias, norm = _split(error, row, batch.user.shape[0], self.shrink_users)
        parts = []
        for a, b, some in self._blocks(row, own, wanted):
            alike = self._similarities(row[some] - a, own[some], residual[some], norm[a:b])
            alike[torch.arange(b - a, device=row.device), find(self.posts.users, batch.user[a:b])] = 0.0
            parts.append(self._told(alike, wanted[a:b]))
        top, bottom = torch.cat(parts).unbind(-1) if parts else (expected, expected)
        if self.schema.label == "click":
            rate = torch.sigmoid(expected)
            bottom = bottom * rate * (1 - rate)
        return Output(expected + bias[:, None] + top / (bottom + self.shrink))

    def stages(self) -> list[Stage]:
        """One pass over the training part."""
        return [Stage("count", solve=self._solve)]

    def _pair(self, item: Tensor, domain: Tensor) -> Tensor:
        return domain * self.schema.item.size + item

    def _error(self, item: Tensor, domain: Tensor, label: Tensor) -> Tensor:
        """e: what events (...) say beyond their item."""
        if self.schema.label != "click":
            return self.biases.residual(item, domain, label)
        return label - torch.sigmoid(self.biases.level[domain] + self.biases.item(item, domain)[0])

    def _profiles(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The users' pairs, each once a row: (N,) ascending rows, (N,) pairs, (N,) mean e."""
        assert batch.history is not None
        assert batch.cross_history is not None
        assert batch.cross_domain is not None
        item = torch.cat([batch.history, batch.cross_history], 1)
        domain = torch.cat([batch.domain[:, None].expand_as(batch.history), batch.cross_domain], 1)
        labels = [label for label in (batch.history_label, batch.cross_label) if label is not None]
        row, column = (item != PADDING).nonzero(as_tuple=True)
        item, domain = item[row, column], domain[row, column]
        label = torch.cat(labels, 1)[row, column] if labels else torch.ones_like(item, dtype=torch.float32)
        span = len(self.schema.domains) * self.schema.item.size
        key, where = torch.unique(row * span + self._pair(item, domain), return_inverse=True)
        return key // span, key % span, _mean(self._error(item, domain, label), where, key.shape[0])

    def _blocks(self, row: Tensor, own: Tensor, wanted: Tensor) -> list[tuple[int, int, slice]]:
        """Ranges of rows, each of about the working set or one row, and where their pairs stand."""
        if drawing():
            return [(0, wanted.shape[0], slice(None))]
        bounds = torch.searchsorted(row, torch.arange(len(wanted) + 1, device=row.device))
        cost = self.posts.length[wanted].sum(1).index_add_(0, row, self.posts.length[own]) + len(self.posts.norm)
        block = (cost.cumsum(0) - cost) // WORKING_SET
        ends = torch.unique_consecutive(block, return_counts=True)[1].cumsum(0).tolist()
        return [(a, b, slice(*bounds[[a, b]].tolist())) for a, b in itertools.pairwise([0, *ends])]

    def _similarities(self, row: Tensor, own: Tensor, residual: Tensor, norm: Tensor) -> Tensor:
        """Pairs of n rows' users -> (n, users + 1) similarities, the last column for nobody."""
        n, users = norm.shape[0], len(self.posts.norm)
        at, user, value = self.posts.expand(own)
        cell = row[at] * users + user
        product, common = value.new_zeros(n * users), value.new_zeros(n * users)
        product.index_add_(0, cell, residual[at] * value)
        common.index_add_(0, cell, torch.ones_like(value))
        scale = (common + self.damping).mul_((norm[:, None] * self.posts.norm).flatten()).clamp_min_(1e-9)
        return product.mul_(common).div_(scale).view(n, users)

    def _told(self, alike: Tensor, wanted: Tensor) -> Tensor:
        """Similarities (n, users) and candidates (n, C) -> (n, C, 2), sum of sim * r and of sim over the neighbours."""
        width = wanted.shape[1]
        place, user, value = self.posts.expand(wanted.flatten())
        weight = alike[place // max(width, 1), user].clamp_min_(0.0)
        if self.k:
            order = weight.argsort(descending=True, stable=True)
            order = order[place[order].argsort(stable=True)]
            start = torch.searchsorted(place, place)  # of each candidate's neighbours, which come nearest first
            order = order[torch.arange(place.shape[0], device=place.device) - start < self.k]
            place, value, weight = place[order], value[order], weight[order]
        told = torch.stack([weight * value, weight], 1)
        return told.new_zeros(wanted.numel(), 2).index_add_(0, place, told).view(*wanted.shape, 2)

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        rows = dataset.part("train")
        chosen = np.concatenate([np.arange(rows.offsets[d], rows.offsets[d + 1]) for d in domains])
        user, item, domain = (torch.from_numpy(np.asarray(c[chosen], np.int64)) for c in (rows.user, rows.item, rows.domain))
        label = torch.ones(len(user)) if rows.label is None else torch.from_numpy(np.asarray(rows.label[chosen], np.float32))
        device = self.biases.level.device
        error = self._error(item.to(device), domain.to(device), label.to(device)).cpu()
        self.posts.solve(self._pair(item, domain), user, error, self.shrink_users)


class Postings(Solved):
    """Who has a pair of domain and item, and the residual: users by pair.

    Buffers, of N entries, P pairs and U users: ``keys`` (P,) pairs, ascending; ``first`` and ``length`` (P + 1,) where each
    pair's entries begin and how many there are, 0 for the last, every other pair; ``user`` (N,) places in ``users`` (U,), the
    codes, ascending; ``value`` (N,); ``norm`` (U + 1,) length of each user's vector of values, the last one nobody's.
    """

    keys: Tensor
    first: Tensor
    length: Tensor
    user: Tensor
    value: Tensor
    users: Tensor
    norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, size in (("keys", 0), ("first", 1), ("length", 1), ("user", 0), ("users", 0)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(0))
        self.register_buffer("norm", torch.zeros(1))

    def solve(self, pair: Tensor, user: Tensor, value: Tensor, shrink: float | None) -> None:
        """Takes events (n,): pairs, users, and what they say (e), averaged where both repeat; ``shrink`` as in ``_split``."""
        users, user = torch.unique(user, return_inverse=True)
        cell, where = torch.unique(pair * len(users) + user, return_inverse=True)
        keys, length = torch.unique_consecutive(cell // max(len(users), 1), return_counts=True)
        length = torch.cat([length, length.new_zeros(1)])
        user = cell % max(len(users), 1)
        value, _, norm = _split(_mean(value, where, len(cell)), user, len(users) + 1, shrink)
        keys = keys.clone()  # without the room that was made for it
        self.fill(keys=keys, first=length.cumsum(0) - length, length=length, user=user, value=value, users=users, norm=norm)

    def place(self, pair: Tensor) -> Tensor:
        """Pairs (...) -> their places (...)."""
        return find(self.keys, pair)

    def expand(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places (n,) -> for each entry of each of them: which of the n, the user's place and the value, all (total,)."""
        length = self.length[place]
        which = torch.arange(place.shape[0], device=place.device).repeat_interleave(length)
        entry = torch.arange(which.shape[0], device=place.device) + (self.first[place] - length.cumsum(0) + length)[which]
        return which, self.user[entry], self.value[entry]


def _mean(value: Tensor, where: Tensor, size: int, shrink: float = 0.0) -> Tensor:
    """(size,) mean of the values (n,) of each place, shrunk towards 0."""
    total = value.new_zeros(2, size).index_add_(1, where, torch.stack([value, torch.ones_like(value)]))
    return total[0] / (total[1] + shrink).clamp_min(1e-9)


def _split(error: Tensor, user: Tensor, users: int, shrink: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """What pairs say (n,) -> (n,) r, (users,) biases, 0 where ``shrink`` is None, and (users,) |r|."""
    bias = error.new_zeros(users) if shrink is None else _mean(error, user, users, shrink)
    residual = error - bias[user]
    return residual, bias, torch.zeros_like(bias).index_add_(0, user, residual**2).sqrt()
