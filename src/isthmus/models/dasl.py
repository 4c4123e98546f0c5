"""DASL: a user's embeddings in two domains with an orthogonal map between them, and attention over both of her sequences.

Li, Jiang, Que, Hu, Tuzhilin: Dual Attentive Sequential Learning for Cross-Domain Click-Through Rate Prediction, KDD 2021.

Dual embedding.  A user u has an embedding p in each domain, and domains are turned into one another by orthogonal maps, so that
what is alike in one is alike in the other, and the way back is the transpose:

    p_B->A(u) = X p_B(u),    p_A->B(u) = X' p_A(u),    X X' = I
    L_dual    = mean over users of |p_A(u) - p_B->A(u)|^2

Dual attention.  For a row of domain A with candidate v, and states h of a GRU in each domain:

    s_A    = sum over j of softmax_j(h_A,j' (Q_A h_A + R_A v) / sqrt(dim)) h_A,j         within the domain; h_A: the last state
    s_B    = sum over j of softmax_j(h_B,j' (Q_AB h_A + R_AB v) / sqrt(dim)) h_B,j       across
    logit  = level_A + MLP_A([user's fields, p_A, p_B->A, v, s_A, s_B])
    L      = L_y + dual L_dual

Deviations: X = O_A' O_B with an orthogonal O for each domain (a Cayley transform, orthogonal at every step, not by a penalty), so that
there may be any number of domains; with more than two, p and s from elsewhere are those of all others together, p weighted by
events; a user without events elsewhere has none of either; embeddings are learnt along with all the rest, not before it; domains
share one table of items; a GRU's start is learnt, and what is new in a state starts as the event itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.attention import masked_softmax
from isthmus.layers.biases import Levels
from isthmus.layers.bridges import Factors
from isthmus.layers.checks import require_share
from isthmus.layers.domain import DomainMLP, grouped_linear
from isthmus.layers.drawing import drawing
from isthmus.layers.features import EntityFields
from isthmus.layers.growing import Stacked
from isthmus.layers.parallel import ParallelEncoders, States
from isthmus.model import Model
from isthmus.schema import PADDING, Schema


class _DualEmbedding(Stacked):
    """Users' embeddings in each domain, and the orthogonal maps between domains.

    With W of a domain, S = W - W' and O = (I + S)^-1 (I - S); the map from domain B to domain A is O_A' O_B.

    Args:
        schema: of an encoded data set.
        dim: width of an embedding, which starts at 0: what a user has in a domain where training never saw her.
        id_dropout: share of users left out in training.
    """

    stacked: ClassVar[tuple[str, ...]] = ("turn",)

    def __init__(self, schema: Schema, dim: int, id_dropout: float) -> None:
        super().__init__()
        require_share("id_dropout", id_dropout)
        self.domains, self.id_dropout = len(schema.domains), id_dropout
        self.factors = Factors(schema.user, self.domains, dim - 1)
        self.turn = nn.Parameter(torch.randn(self.domains, dim, dim) / dim)  # W
        with torch.no_grad():
            self.factors.weight.zero_()

    def maps(self) -> Tensor:
        """O of each domain, (D, dim, dim)."""
        skew = self.turn - self.turn.transpose(1, 2)
        one = torch.eye(skew.shape[1], device=skew.device, dtype=skew.dtype)
        return torch.linalg.solve(one + skew, one - skew)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """p_A and p_B->A, (B, dim) each, of rows with cross histories."""
        user = batch.user
        if self.training and self.id_dropout > 0:
            user = user.masked_fill(torch.rand(user.shape, device=user.device) < self.id_dropout, PADDING)
        return self.factors(user, batch.domain), self._elsewhere(batch, user)

    def _elsewhere(self, batch: Batch, user: Tensor) -> Tensor:
        """The mean over a row's events elsewhere of the user's embedding in the event's domain, brought here; zeros without any."""
        assert batch.cross_history is not None
        assert batch.cross_domain is not None
        real, maps = batch.cross_history != PADDING, self.maps()
        if drawing():  # domain after domain
            there = torch.stack([((batch.cross_domain == d) & real).sum(1) for d in range(self.domains)], 1)
            share = there / real.sum(1, keepdim=True).clamp_min(1)
            each = [self.factors(user, d) @ of.t() for d, of in enumerate(maps)]
            return grouped_linear((torch.stack(each, 1) * share[..., None]).sum(1), batch.offsets, maps.transpose(1, 2))
        key = (batch.cross_domain * len(batch) + torch.arange(len(batch), device=user.device)[:, None])[real]
        pair, count = key.unique(return_counts=True)  # domain and row, ordered by domain
        domain, row = pair // len(batch), pair % len(batch)
        offsets = torch.searchsorted(domain, torch.arange(self.domains + 1, device=user.device)).tolist()
        share = count / real.sum(1)[row]
        shared = grouped_linear(self.factors(user[row], domain), offsets, maps) * share[:, None]
        total = shared.new_zeros(len(batch), shared.shape[1]).index_add(0, row, shared)
        return grouped_linear(total, batch.offsets, maps.transpose(1, 2))


class _Query(Stacked):
    """Attention over states by the row's last own state (Q) and each candidate (R).

    Args:
        domains: number of domains; each asks in its own way.
        width: of a candidate.
        dim: of a state.
    """

    stacked: ClassVar[tuple[str, ...]] = ("state", "candidate")

    def __init__(self, domains: int, width: int, dim: int) -> None:
        super().__init__()
        self.state, self.candidate = (
            nn.Parameter(torch.empty(domains, dim, size).uniform_(-1 / math.sqrt(size), 1 / math.sqrt(size))) for size in (dim, width)
        )

    def forward(self, states: States, last: Tensor, candidate: Tensor, batch: Batch) -> Tensor:
        """States, last own states (B, dim), candidates (B, C, width) -> (B, C, dim); zeros for rows without events."""
        asked = grouped_linear(candidate.flatten(0, 1), batch.item_offsets, self.candidate).view(*candidate.shape[:2], -1)
        query = (asked + grouped_linear(last, batch.offsets, self.state)[:, None]) / math.sqrt(last.shape[1])
        weight = masked_softmax(query @ states.state.transpose(1, 2), states.mask[:, None])
        return weight @ states.state


class DASL(Model):
    """Dual embedding and dual attention, and a network per domain.

    Args:
        schema: of an encoded data set.
        dim: width of an embedding and of a state, 2 or more.
        dual: weight of L_dual; 0: embeddings meet in the network alone.
        hidden: widths of the networks' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.

    Raises:
        ConfigError: a number out of range.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True)
    paper: ClassVar[str] = "Li et al., Dual Attentive Sequential Learning, KDD 2021"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        dual: float = 0.1,
        hidden: Sequence[int] = (80, 40),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        for name, value, least in (("dim", dim, 2), ("dual", dual, 0)):
            if not value >= least:
                raise ConfigError(f"{name} = {value}", f"{least} or more", "leave it out for the default")
        self.dual, domains = dual, len(schema.domains)
        self.levels = Levels(schema)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout, std=0.1)
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout) if schema.user.fields else None  # of which fields alone
        self.embedding = _DualEmbedding(schema, dim, id_dropout)
        width = self.items.fields * dim
        self.encoders = ParallelEncoders(domains, width, dim)
        self.within, self.across = (_Query(domains, width, dim) for _ in range(2))
        self.networks = DomainMLP(domains, len(schema.user.fields) * dim + width + 4 * dim, hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        own, other = self.encoders(batch, self.items)
        here, there = self.embedding(batch)
        user = [here, there] if self.users is None else [self.users(batch.user)[:, 1:].flatten(1), here, there]
        candidate = self.items(batch.item).flatten(2)
        seen = [query(states, own.last, candidate, batch) for query, states in ((self.within, own), (self.across, other))]
        x = torch.cat([torch.cat(user, 1)[:, None].expand(-1, candidate.shape[1], -1), candidate, *seen], 2)
        logit = self.networks(x.flatten(0, 1), batch.item_offsets).view(batch.item.shape) + self.levels.level[batch.domain, None]
        if not self.training or not self.dual:
            return Output(logit)
        apart = (here - there).square().sum(1)[other.length > 0]
        return Output(logit, {"dual": self.dual * apart.sum() / max(len(apart), 1)})
