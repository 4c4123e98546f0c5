"""EMCDR: embed in each domain, then map the users over (Man, Shen, Jin, Cheng, IJCAI 2017).

1. Factors of users and items in each domain by itself::

       r(u, i, d) = level_d + b_du + b_di + x_du' y_di

2. A mapping f_d for each target domain, learnt from the overlapping users with all factors fixed::

       min  mean over overlapping users of  | f_d([x, b]_source) - [x, b]_target |^2

A user with training events in d is served by her own factors, one with events elsewhere by f_d of those, any other by biases.

Deviations: the loss of stage 1 is the task's (the paper: PMF's squared error, or BPR); the bias is mapped along with the
vector (PMF has none, so that its vectors must hold it); of several source domains the mean factor is mapped; each overlapping
user counts once for each of her target events, so that users known well weigh more, where the paper leaves out those known
badly; the mapping starts at zero; the hidden layer has twice the width, as in the paper, but is rectified.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.biases import Biases
from isthmus.layers.bridges import BridgedUsers, Chosen, Factors, Mapping, item_side, mean_of, user_side
from isthmus.model import Loss, Model, Retriever, Stage
from isthmus.schema import Schema


class EMCDR(Retriever):
    """Matrix factorisation in each domain, and a mapping of users into it.

    Args:
        schema: of an encoded data set.
        dim: number of factors.
        mapping: ``linear`` or ``mlp``.
        hidden: width of the hidden layer of ``mlp``; None: twice that of a factor.

    Raises:
        ConfigError: no such mapping.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str] = "Man et al., Cross-Domain Recommendation: An Embedding and Mapping Approach, IJCAI 2017"

    def __init__(self, schema: Schema, *, dim: int = 16, mapping: str = "mlp", hidden: int | None = None) -> None:
        super().__init__(schema)
        self.biases = Biases(schema)
        self.users = BridgedUsers(schema, dim)
        self.items = Factors(schema.item, len(schema.domains), dim)
        self.mapping = Mapping(len(schema.domains), dim + 1, mapping, hidden)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2)."""
        return user_side(self.users(batch, self._bridge), self.biases.level[batch.domain])

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        return item_side(self.items(item, domain))

    def stages(self) -> list[Stage]:
        """Factors by the task's loss (in training every row's user has factors of her own), then the mapping."""
        factors = [*self.users.parameters(), *self.items.parameters()]
        return [Stage("factors", factors, known=True), Stage("mapping", list(self.mapping.parameters()), loss=self._distance)]

    def _bridge(self, batch: Batch, rows: Chosen) -> Tensor:
        return self.mapping(self.users.source(rows), rows.offsets)

    def _distance(self, model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
        rows = self.users.overlapping(batch)
        target = self.users.factors(rows.user, rows.domain)
        return {"distance": mean_of((self._bridge(batch, rows) - target).square().sum(1))}
