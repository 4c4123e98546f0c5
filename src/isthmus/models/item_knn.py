"""Item k-nearest neighbours: an item's score is its summed similarity to the items of the user's profile.

similarity(i, j) = n_ij / (sqrt(n_i n_j) + shrink), with n_ij the users who have both and n_i those who have i
(cosine of binary columns; Deshpande and Karypis, TOIS 2004; the shrinkage follows Koren and Bell's damping).
With ``decay`` recent events say more: an item last met k events back counts exp(-decay * k).  ``popularity`` times an item's share of
the domain is added: most candidates are similar to nothing that a short profile holds, and would tie.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.shares import Shares
from isthmus.layers.solved import ItemToItem
from isthmus.model import Model, Stage
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class ItemKnn(Model):
    """Cosine item-kNN, per domain or over all domains at once.

    Args:
        k: neighbours kept of each candidate item; 0 keeps all.
        shrink: number added to the norm, against chance pairs of rare items; at least 0.
        across: learn from the pooled users and items of all domains, and let a user's events in other domains
            speak too; False: each domain its own.
        max_items: items with weights, the most popular ones, per matrix.
        decay: how fast events of a profile fade: one that is k events back in its history (0 the latest; the own domain's
            and the other domains' each from their own end) counts exp(-decay * k), a repeated item by its latest event; at least 0.
        popularity: weight of an item's share of the domain's events; small, it orders what ties. Below 0 the rarer item comes first,
            as it should where tested negatives were drawn in proportion to popularity.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, whole_history=True)
    paper: ClassVar[str] = "Item-Based Top-N Recommendation Algorithms (Deshpande and Karypis, TOIS 2004)"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")
    shallow: ClassVar[bool] = True

    def __init__(
        self,
        schema: Schema,
        *,
        k: int = 0,
        shrink: float = 10.0,
        across: bool = False,
        max_items: int = 20_000,
        decay: float = 0.0,
        popularity: float = 0.0,
    ) -> None:
        super().__init__(schema)
        if k < 0 or shrink < 0 or not 0 <= decay < float("inf"):
            came = f"k = {k}, shrink = {shrink}, decay = {decay}"
            raise ConfigError(came, "numbers of at least 0", "use k = 0 to keep all neighbours, decay = 0 to keep all events alike")
        if not math.isfinite(popularity):
            raise ConfigError(f"popularity = {popularity}", "a finite number", "try 0.001, or -0.001 for rare items first")
        self.k, self.shrink, self.popularity = k, shrink, popularity
        self.items = ItemToItem(len(schema.domains), across, max_items, decay)
        self.shares = Shares(schema.item.size) if popularity else None

    def forward(self, batch: Batch) -> Output:
        """Profile times weights, and the share of each candidate, (B, C)."""
        similarity = self.items(batch)
        return Output(similarity if self.shares is None else similarity + self.popularity * self.shares.of(batch))

    def stages(self) -> list[Stage]:
        """One closed form."""
        return [Stage("count", solve=self._solve)]

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        self.items.learn(dataset.positives, domains, self._similarity)
        if self.shares is not None:
            self.shares.learn(dataset, domains)

    def _similarity(self, counts: Tensor) -> Tensor:
        """Counts (n, n) -> similarities (n, n), the k largest of each column kept."""
        norm = counts.diagonal().sqrt()
        similarity = counts / (norm[:, None] * norm + self.shrink)
        similarity.fill_diagonal_(0.0)
        if 0 < self.k < len(similarity):
            best = similarity.topk(self.k, dim=0)
            similarity = torch.zeros_like(similarity).scatter_(0, best.indices, best.values)
        return similarity
