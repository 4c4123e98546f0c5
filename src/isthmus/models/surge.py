"""SURGE: the history as a graph of interests, which a candidate fuses and pools to a short sequence.

Chang, Gao, Zheng, Hui, Niu, Song, Jin, Li: Sequential Recommendation with Graph Neural Networks, SIGIR 2021.

    A           joins events whose vectors are alike                                    (eq. 1 to 3)
    h', b       events fused with their neighbours, and how much q asks for each        (eq. 4 to 8)
    S           which of m interests each event belongs to                              (eq. 11)
    h*, gamma*  = S' h', S' softmax(b)                                                  (eq. 9, 10)
    h_g   = sum over events of softmax(b)_i h'_i                                        (eq. 15)
    h_s   = AUGRU(h*_1, ..., h*_m), gamma* scales the update gates                      (eq. 16)
    logit = level_d + MLP([user, domain, context, q, h_s, h_g, h_g * q])                (eq. 17)

Three terms make S clear (eq. 12 to 14).  Each step is written out in ``isthmus.layers.interest_graph``.

Deviations.  Equation 8 adds to the score of a neighbour j the cluster score of the event i that receives, the same for all j, which
cancels in the softmax: here it is the neighbour's own.  An edge is 0 or 1 and would let no gradient through to w: that of an edge
that is there goes to its similarity.  A cluster is an event with its direct neighbours (k = 1), the graph convolution has one
head, and there is one layer of pooling.  W_q and W_c stand in the products alone; the networks' first layers read h_j itself.
Equation 14 holds sums of positions against 1, ..., m, though they add up to n (n + 1) / 2: here it is means of positions, scaled
to m.  User, domain and context stand beside the candidate, as in all models for clicks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.biases import Levels
from isthmus.layers.drawing import drawing
from isthmus.layers.evolution import GatedUnit
from isthmus.layers.fields import Fields
from isthmus.layers.interest_graph import InterestGraph, assignment_terms, augru
from isthmus.layers.mlp import MLP
from isthmus.model import Model
from isthmus.schema import PADDING, Schema


class SURGE(Model):
    """A graph of the events in the row's own domain, pooled as the candidate asks.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        clusters: number of interests that a history is pooled to.
        heads: of the similarity of events.
        edges: share of pairs of events that are joined, above 0, at most 1.
        attention: width of the attention networks' hidden layer.
        regular: weight of the three terms on the assignment; 0: none.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.

    Raises:
        ConfigError: a negative ``regular``, or what ``InterestGraph`` refuses.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Chang et al., Sequential Recommendation with Graph Neural Networks, SIGIR 2021"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        clusters: int = 8,
        heads: int = 4,
        edges: float = 0.5,
        attention: int = 40,
        regular: float = 1e-3,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        if regular < 0:
            raise ConfigError(f"regular = {regular}", "0 or more", "try 0.001")
        self.regular = regular
        self.levels = Levels(schema)
        self.fields = Fields(schema, dim, id_dropout=id_dropout, history=False)
        width = self.fields.items.fields * dim  # of an event, an interest and a candidate: all fields of the item
        self.graph = InterestGraph(width, clusters=clusters, heads=heads, edges=edges, hidden=attention)
        self.unit = GatedUnit(width, width)
        self.mlp = MLP(self.fields.count * dim + 3 * width, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C); in training, and unless their weight is 0, the three terms."""
        assert batch.history is not None
        history = _trimmed(batch.history)
        event = self.fields.item(history).flatten(2)
        candidate = self.fields.item(batch.item).flatten(2)
        adjacency = self.graph.adjacency(event, history != PADDING)
        fused, gamma = self.graph.fuse(event, adjacency, candidate)
        pooled = self.graph.pool(fused, gamma, adjacency)
        readout = (gamma[:, :, None] @ fused).squeeze(2)
        evolved = augru(self.unit, pooled.vector, pooled.score)
        user = self.fields.row(batch).flatten(1)[:, None].expand(-1, candidate.shape[1], -1)
        x = torch.cat([user, candidate, evolved, readout, readout * candidate], 2)
        logit = self.mlp(x.flatten(0, 1)).view(batch.item.shape) + self.levels.level[batch.domain, None]
        if not (self.training and self.regular):
            return Output(logit)
        terms = assignment_terms(pooled.assignment, adjacency)
        return Output(logit, {name: self.regular * term for name, term in terms.items()})


def _trimmed(history: Tensor) -> Tensor:
    """Codes (B, L), right-aligned -> the last columns, as many as the longest history has."""
    if drawing():
        return history
    used = (history != PADDING).any(0).sum().item()
    return history[:, history.shape[1] - int(used) :]
