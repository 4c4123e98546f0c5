"""PTUPCDR: a bridge of her own for each user (Zhu et al., WSDM 2022).

1. Factors of users and items in each domain by itself::

       r(u, i, d) = level_d + b_du + b_di + x_du' y_di

2. With all factors fixed, a bridge from what the user did in the source domains: items j of her source history, v_j = [y_j, b_j]
   and u_source = [x, b]::

       a_j = softmax over j of h_d(v_j)         h: one hidden layer
       p_u = sum of a_j v_j                     her characteristics
       W_u = g_d(p_u)                           the meta network: one hidden layer, k * k outputs
       [x_u, b_u] = W_u u_source

   learnt by the loss of the task on the target events of the overlapping users ("task-oriented"), not by distance.

A user with training events in d is served by her own factors, one with events elsewhere over her bridge, any other by biases.

Deviations: biases, bridged along with the vectors; of several source domains the mean user factor and the merged history; the
history is that before the moment predicted, and an empty one has characteristics of zero; g's output layer starts at zero; the
paper goes on to fine-tune the bridged vector where a user becomes known, here her own factors take over.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.biases import Biases
from isthmus.layers.bridges import BridgedUsers, Chosen, Factors, item_side, user_side
from isthmus.layers.domain import DomainLinear, DomainMLP
from isthmus.layers.mlp import start_at_zero
from isthmus.layers.past import past_of
from isthmus.model import Loss, Model, Retriever, Stage
from isthmus.schema import Schema


class PTUPCDR(Retriever):
    """Matrix factorisation in each domain, and a matrix for each user that carries her over.

    Args:
        schema: of an encoded data set.
        dim: number of factors.
        hidden: width of the attention's and the meta network's hidden layers.
    """

    needs: ClassVar[Needs] = Needs(cross_history=True)
    paper: ClassVar[str] = "Zhu et al., Personalized Transfer of User Preferences for Cross-domain Recommendation, WSDM 2022"

    def __init__(self, schema: Schema, *, dim: int = 16, hidden: int = 50) -> None:
        super().__init__(schema)
        domains, width = len(schema.domains), dim + 1
        self.biases = Biases(schema)
        self.users = BridgedUsers(schema, dim)
        self.items = Factors(schema.item, domains, dim)
        self.attention = DomainMLP(domains, width, [hidden], out=None)
        self.attend = DomainLinear(domains, hidden, 1, bias=False)  # a softmax does not see a bias
        self.meta = DomainMLP(domains, width, [hidden], out=width * width)
        start_at_zero(self.meta.last)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2)."""
        return user_side(self.users(batch, self.bridge), self.biases.level[batch.domain])

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        return item_side(self.items(item, domain))

    def stages(self) -> list[Stage]:
        """Factors by the task's loss (in training every row's user has factors of her own), then all that makes bridges."""
        factors = [*self.users.parameters(), *self.items.parameters()]
        bridge = [p for part in (self.attention, self.attend, self.meta) for p in part.parameters()]
        return [Stage("factors", factors, known=True), Stage("bridge", bridge, loss=partial(_task_oriented, _OverBridges(self)))]

    def bridge(self, batch: Batch, rows: Chosen) -> Tensor:
        """The chosen rows' users as their domain would have them, from elsewhere: (n, dim + 1)."""
        width = self.users.factors.weight.shape[1]
        bridge = self.meta(self.characteristics(batch, rows), rows.offsets).view(-1, width, width)
        return (bridge @ self.users.source(rows)[..., None]).squeeze(-1)

    def characteristics(self, batch: Batch, rows: Chosen) -> Tensor:
        """(n, dim + 1): the attention-weighted mean of the source items of the chosen rows' users; 0 without any."""
        past = past_of(batch, rows)
        with torch.no_grad():
            v = self.items(past.item, past.domain)
        offsets = past.offsets
        score = self.attend(self.attention(v, offsets), offsets).squeeze(1)
        return past.total(past.softmax(score)[:, None] * v)


class _OverBridges(Retriever):
    """The same model, where users of two domains are scored over their bridges too, and nobody else."""

    def __init__(self, model: PTUPCDR) -> None:
        super().__init__(model.schema)
        self.model = model

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2)."""
        rows, factors = self.model.users.overlapping(batch), self.model.users.factors.weight
        bridged = factors.new_zeros(len(batch), factors.shape[1]).index_copy(0, rows.place, self.model.bridge(batch, rows))
        return user_side(bridged, self.model.biases.level[batch.domain])

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        return self.model.item_vector(item, domain)


def _task_oriented(over: _OverBridges, model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
    """The task's loss of the overlapping users' rows, scored over their bridges; other rows weigh nothing."""
    weight = over.model.users.both(batch).to(torch.float32)
    return task(over, replace(batch, weight=weight if batch.weight is None else weight * batch.weight))
