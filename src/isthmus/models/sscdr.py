"""SSCDR: semi-supervised mapping between metric spaces (Kang, Hwang, Lee, Yu, CIKM 2019).

1. A metric space for each domain, where users lie near their items::

       r(u, i, d) = level_d + b_du + b_di - | x_du - y_di |^2

2. A mapping f_d into each target domain, with all vectors fixed, from the overlapping users (supervised) and from the source
   items they have, i, and have not, j (unsupervised: neighbours stay in order)::

       L_s = mean | f_d(x_source) - x_target |^2
       L_u = mean [ margin + | f_d(y_i) - x_target |^2 - | f_d(y_j) - x_target |^2 ]_+          L = L_s + weight L_u

3. A user new in d lies between f_d of her source vector and her neighbours, the source items i of her history::

       x = (1 - share) f_d(x_source) + share mean of f_d(y_i)

Deviations: stage 1 has the task's loss (the paper: a hinge on sampled pairs) and biases, and does not keep vectors in the
unit ball; the user's bias is mapped along with her vector (items enter the mapping with none) and counts in L_s; the items she
has are those of the history that a batch holds, of ratings those above the domain's mean; j is an item that the next overlapping
user of the batch has; aggregation makes one hop, to items, rather than several; of several source domains the mean user vector
is mapped, by the same f_d as their items; the mapping starts at zero.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.biases import Biases
from isthmus.layers.bridges import BridgedUsers, Chosen, Factors, Mapping, mean_of
from isthmus.layers.past import Past, past_of
from isthmus.layers.solved import find
from isthmus.model import Loss, Model, Retriever, Stage
from isthmus.schema import Schema


class SSCDR(Retriever):
    """Metric spaces per domain, and a mapping that keeps neighbours near.

    Args:
        schema: of an encoded data set.
        dim: of the spaces.
        mapping: ``linear`` or ``mlp``.
        hidden: width of the hidden layer of ``mlp``; None: twice that of a vector with its bias.
        margin: between the squared distances to an item that a user has and one that she has not.
        weight: of the unsupervised loss, 0 or more.
        share: of the neighbours in the place of a new user, from 0 (her own mapped vector alone) to 1; without neighbours it is 0.

    Raises:
        ConfigError: no such mapping, a negative margin or weight, or a share outside 0 to 1.
    """

    needs: ClassVar[Needs] = Needs(cross_history=True, history_label=True)
    paper: ClassVar[str] = "Kang et al., Semi-Supervised Learning for Cross-Domain Recommendation to Cold-Start Users, CIKM 2019"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        mapping: str = "mlp",
        hidden: int | None = None,
        margin: float = 0.5,
        weight: float = 0.5,
        share: float = 0.2,
    ) -> None:
        super().__init__(schema)
        if margin < 0 or weight < 0 or not 0 <= share <= 1:
            came = f"margin = {margin}, weight = {weight}, share = {share}"
            raise ConfigError(came, "margin and weight 0 or more, share from 0 to 1", "try 0.5")
        self.margin, self.weight, self.share = margin, weight, share
        self.biases = Biases(schema)
        self.users = BridgedUsers(schema, dim)
        self.items = Factors(schema.item, len(schema.domains), dim)
        self.mapping = Mapping(len(schema.domains), dim + 1, mapping, hidden)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2): [2 x, b + level - |x|^2, 1]."""
        found = self.users(batch, self._bridge)
        x, bias = found[:, :-1], found[:, -1] + self.biases.level[batch.domain]
        return torch.cat([2 * x, (bias - x.square().sum(1))[:, None], torch.ones_like(bias)[:, None]], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2): [y, 1, b - |y|^2]."""
        found = self.items(item, domain)
        y, bias = found[..., :-1], found[..., -1:]
        return torch.cat([y, torch.ones_like(bias), bias - y.square().sum(-1, keepdim=True)], -1)

    def stages(self) -> list[Stage]:
        """The spaces by the task's loss (in training every row's user has a place of her own), then the mapping."""
        spaces = [*self.users.parameters(), *self.items.parameters()]
        return [Stage("spaces", spaces, known=True), Stage("mapping", list(self.mapping.parameters()), loss=self._distances)]

    def _bridge(self, batch: Batch, rows: Chosen) -> Tensor:
        own, liked = self.mapping(self.users.source(rows), rows.offsets), self._liked(past_of(batch, rows, labels=True))
        count = liked.total(torch.ones_like(liked.row))[:, None]
        mean = liked.total(self._mapped(liked)) / count.clamp_min(1)
        place = torch.lerp(own[:, :-1], mean, self.share * (count > 0).to(mean.dtype))
        return torch.cat([place, own[:, -1:]], 1)

    def _liked(self, past: Past) -> Past:
        return past if past.label is None else past.where(past.label > self.biases.level[past.domain])

    def _mapped(self, past: Past) -> Tensor:
        """(E, dim): where the mapping puts the items."""
        with torch.no_grad():
            y = self.items(past.item, past.domain)
        y = torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], 1)
        return self.mapping(y, past.offsets)[:, :-1]

    def _distances(self, model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
        rows = self.users.overlapping(batch)
        target = self.users.factors(rows.user, rows.domain)
        supervised = (self.mapping(self.users.source(rows), rows.offsets) - target).square().sum(1)
        past = past_of(batch, rows, labels=True)
        liked = self._liked(past)
        has, misses = self._pairs(past, liked, _next(rows.offsets).to(target.device))
        place, user = self._mapped(liked), target[liked.row[has], :-1]
        far, farther = ((place[item] - user).square().sum(1) for item in (has, misses))
        hinge = (self.margin + far - farther).relu()
        return {"supervised": mean_of(supervised), "unsupervised": self.weight * mean_of(hinge)}

    def _pairs(self, past: Past, liked: Past, other: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a user's liked item and the one in the same column of another user's history, liked too, that she never met.

        Args:
            past: n rows' events.
            liked: some of them.
            other: (n,) int64 the row of the other user.

        Returns:
            (P,) and (P,) int64 places among ``liked``.
        """

        def key(row: Tensor, domain: Tensor, item: Tensor) -> Tensor:
            return (row * len(self.schema.domains) + domain) * self.schema.item.size + item

        length = liked.shape[1]
        theirs = find(liked.row * length + liked.column, other[liked.row] * length + liked.column)
        both = theirs < len(liked.row)
        mine, theirs = both.nonzero().flatten(), theirs[both]
        met = key(past.row, past.domain, past.item).sort().values
        strange = find(met, key(liked.row[mine], liked.domain[theirs], liked.item[theirs])) == len(met)
        return mine[strange], theirs[strange]


def _next(offsets: tuple[int, ...]) -> Tensor:
    """(n,) int64: for each row the next one of its domain, for the last the first."""
    return torch.cat([torch.arange(a, b).roll(-1) for a, b in itertools.pairwise(offsets)])
