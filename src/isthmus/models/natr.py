"""NATR: what other domains know of the items in a user's history; nothing of any user crosses.

Gao, Chen, Feng, Zhao, He, Li, Jin: Cross-domain Recommendation Without Sharing User-relevant Data, SIGIR 2019.

Every domain d has vectors p_du of its users and q_di of its items.  In d, an item that other domains know, and a user's history::

    t_di  = mean of W_ds q_si over the domains s other than d that know i                   embedding adaptation
    z     = sum over j of a_j t_dj                 a = softmax over j of f(t_dj, q)         item-level attention
    p     = b_1 p_du + b_2 z                       b = softmax of g(p_du, q), g(z, q)       domain-level attention
    logit = level_d + b_du + b_di + p'q                                                     q = q_di, of the candidate

with j the events whose items are known elsewhere; of a user without such events p = p_du.  f and g are networks with one hidden
layer of [v, q, v * q].  A domain knows the items that have events in its training part.

Deviations: of D domains each is the target of its own rows and a source for the others (the paper: one source, one target), so
W is one for each pair, and several sources are averaged; all domains train at once, and a target's loss sends no gradient to
its sources' vectors (the paper trains the source first, then leaves its vectors as they are); levels and biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.attention import masked_softmax
from isthmus.layers.biases import Levels
from isthmus.layers.bridges import Factors
from isthmus.layers.domain import grouped_linear
from isthmus.layers.drawing import all_of
from isthmus.layers.from_data import FromData
from isthmus.layers.growing import Growing, Rows, one_row_each
from isthmus.layers.mlp import MLP
from isthmus.layers.target_attention import TargetAttention
from isthmus.model import Model
from isthmus.schema import PADDING, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class KnownElsewhere(FromData, Growing):
    """Which domains know an item from training, and which domains a domain takes vectors from.

    Buffers: ``known`` (item.size, D) bool; ``reads`` (D, D) bool, target by source: all but itself, and of a grown model's old
    domains none of the new ones, so that they score as before.

    Args:
        schema: of an encoded data set.
    """

    known: Tensor
    reads: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        domains = len(schema.domains)
        self.trained = schema.item.trained
        self.register_buffer("known", torch.zeros(schema.item.size, domains, dtype=torch.bool))
        self.register_buffer("reads", ~torch.eye(domains, dtype=torch.bool))

    def take(self, dataset: Dataset) -> None:
        """Notes which items have training events (of any label) in which domain."""
        rows = dataset.part("train")
        known = np.zeros(self.known.shape, bool)
        known[np.asarray(rows.item), np.asarray(rows.domain)] = True
        self.known.copy_(torch.from_numpy(known))

    def forward(self, item: Tensor, domain: Tensor) -> Tensor:
        """Codes and target domains (n,) -> (n, D) bool: the sources that know the item."""
        return self.known[item] & self.reads[domain]

    def grow_from(self, old: KnownElsewhere) -> set[str]:
        """What the old domains know is as it was, and so is where they take vectors from."""
        before = len(old.reads)
        self.known[:, :before] = False
        self.known[: old.trained, :before] = old.known[: old.trained]
        self.reads[:before] = False
        self.reads[:before, :before] = old.reads
        return {"known", "reads"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing: the data say it."""
        return {}


class PairMaps(Growing):
    """A linear map W_ts from every source s to every target t.

    ``weight``: (D, D, dim, dim), target by source; a domain's map to itself is never used.

    Args:
        domains: their number.
        dim: of the vectors.
    """

    def __init__(self, domains: int, dim: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(domains, domains, dim, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, known: Tensor, offsets: Sequence[int]) -> Tensor:
        """The mean over sources of what the maps make of their vectors.

        Args:
            x: (n, D, dim) vectors by source, rows ordered by target.
            known: (n, D) bool, the sources that count.
            offsets: D + 1 bounds of the targets.

        Returns:
            (n, dim); zeros where no source counts.
        """
        share = known.to(x.dtype) / known.sum(1, keepdim=True).clamp_min(1)
        weight = self.weight.transpose(1, 2).flatten(2)  # (D, dim, D dim): the sum over sources is part of the product
        return grouped_linear((x * share[..., None]).flatten(1), offsets, weight)

    def grow_from(self, old: PairMaps) -> set[str]:
        """Pairs of old domains keep their maps; of another pair the map is the mean over old pairs with the same source, or over all."""
        before = len(old.weight)
        pairs = old.weight[~torch.eye(before, dtype=torch.bool, device=old.weight.device)]
        if len(pairs):
            self.weight[:] = pairs.mean(0)
        if before > 1:
            total = old.weight.sum(0) - old.weight.diagonal().movedim(-1, 0)
            self.weight[before:, :before] = total / (before - 1)
        self.weight[:before, :before] = old.weight
        return {"weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The maps into the domains."""
        return {"weight": one_row_each(len(self.weight), domains)}


class NATR(Model):
    """Attention over transferred vectors of items, and between them and the user's own vector.

    Args:
        schema: of an encoded data set.
        dim: of the vectors.
        attention: width of the hidden layer of both attention networks.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Gao et al., Cross-domain Recommendation Without Sharing User-relevant Data, SIGIR 2019"

    def __init__(self, schema: Schema, *, dim: int = 16, attention: int = 32) -> None:
        super().__init__(schema)
        domains = len(schema.domains)
        self.levels = Levels(schema)
        self.users = Factors(schema.user, domains, dim)
        self.items = Factors(schema.item, domains, dim)
        self.elsewhere = KnownElsewhere(schema)
        self.maps = PairMaps(domains, dim)
        self.item_level = TargetAttention(dim, (attention,), activation=lambda width: nn.ReLU(), softmax=True)
        first = MLP(3 * dim, (attention,))
        self.domain_level = nn.Sequential(first, nn.Linear(attention, 1, bias=False))  # a softmax does not see a bias

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        user = self.users(batch.user, batch.domain)
        item = self.items(batch.item, batch.domain[:, None])
        own, candidate = user[:, None, :-1].expand_as(item[..., :-1]), item[..., :-1]
        event, row = self.transferred(batch)
        both = torch.stack([own, self.item_level(event, row, candidate)], 2)
        weight = self.weights(both, candidate, torch.bincount(row, minlength=batch.user.shape[0]) > 0)
        biases = self.levels.level[batch.domain, None] + user[:, None, -1] + item[..., -1]
        return Output(biases + ((weight[..., None] * both).sum(2) * candidate).sum(2))

    def transferred(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What other domains know of the histories: E events whose items they know.

        Returns:
            (E, dim) t_d of the items, and (E,) int64 their rows, ascending.
        """
        assert batch.history is not None
        row, column = (batch.history != PADDING).nonzero(as_tuple=True)
        item = batch.history[row, column]
        known = self.elsewhere(item, batch.domain[row])
        some = known.any(1)
        row, item, known = row[some], item[some], known[some]
        source = torch.arange(known.shape[1], device=item.device).expand_as(known)
        with torch.no_grad():  # a source's vectors are its own
            x = self.items(item[:, None].expand_as(known), source)[..., :-1]
        offsets = all_of(batch.offsets, row.shape[0]) or torch.searchsorted(row, torch.tensor(batch.offsets, device=row.device)).tolist()
        return self.maps(x, known, offsets), row

    def weights(self, both: Tensor, candidate: Tensor, some: Tensor) -> Tensor:
        """How much of either vector of a user counts.

        Args:
            both: (B, C, 2, dim) her own and the transferred one.
            candidate: (B, C, dim).
            some: (B,) bool, rows with anything transferred.

        Returns:
            (B, C, 2), sums to 1.
        """
        asked = candidate[:, :, None].expand_as(both)
        score = self.domain_level(torch.cat([both, asked, both * asked], 3))[..., 0]
        return masked_softmax(score, torch.stack([torch.ones_like(some), some], 1)[:, None])
