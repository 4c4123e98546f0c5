"""A user's three interests, as a candidate asks for them: her profile, what she did here, what she did elsewhere (MiNet, DADIN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.insight import Insight
from isthmus.layers.features import ContextFields, EntityFields
from isthmus.layers.target_attention import TargetAttention
from isthmus.schema import PADDING, Schema

NAMES = ("profile", "here", "elsewhere")
SAMPLE = 1024  # rows of a domain that looks average over


class InterestAttention(nn.Module):
    """Weighs interests by all that is known (DADIN, eq. 4-6).

    ::

        v_k = exp(g_k' ReLU(V_k [q, x_1, ..., x_K])) + b_k

    Args:
        interests: K.
        dim: width of each, and of the candidate.
        inside: the bias stands in the exponent, as MiNet prints it; False: outside, as DADIN prints it.
    """

    def __init__(self, interests: int, dim: int, *, inside: bool = False) -> None:
        super().__init__()
        self.inside = inside
        self.hidden = nn.Linear((1 + interests) * dim, interests * dim, bias=False)  # V_1 ... V_K
        self.read = nn.Parameter(torch.randn(interests, dim) * dim**-0.5)  # g
        self.bias = nn.Parameter(torch.zeros(interests))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 + interests, dim), the candidate first -> the same, each interest times its weight (DADIN, eq. 5)."""
        return torch.cat([x[:, :1], x[:, 1:] * self.weights(x)[..., None]], 1)

    def weights(self, x: Tensor) -> Tensor:
        """(N, 1 + interests, dim) -> (N, interests)."""
        hidden = self.hidden(x.flatten(1)).relu().view(x.shape[0], *self.read.shape)
        score = (hidden * self.read).sum(2)
        return (score + self.bias).exp() if self.inside else score.exp() + self.bias


class InterestLooks:
    """Gathers weights of interests domain by domain (DADIN's Figure 7)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | str]] = []

    def add(self, domain: str, weights: Tensor, label: Tensor) -> None:
        """One domain's rows.

        Args:
            domain: its name.
            weights: (N, interests).
            label: (N,) 0 or 1.
        """
        for clicked, name in ((1, "clicked"), (0, "not clicked")):
            mine = weights[label == clicked]
            if len(mine):
                means = zip(NAMES, mine.mean(0).tolist(), strict=True)
                self.rows += [{"interest": interest, "rows": f"{domain}, {name}", "weight": weight} for interest, weight in means]

    def looks(self) -> list[Insight]:
        """The mean weights; none without rows."""
        note = "Means over rows. A weight is what the interest's vector is multiplied with."
        return [Insight("interests", "Weights of interests", "heatmap", self.rows, "interest", "rows", "weight", note)] if self.rows else []


class Interests(nn.Module):
    """A candidate and the user's three interests, as vectors of one width.

    Fields are added up (DADIN, eq. 1): q of the item, p of the user and the event.  What she did in the row's own domain and
    elsewhere is weighted by q (eq. 2, 3).

    Args:
        schema: of an encoded data set.
        dim: width of all vectors.
        attention: weigh events; False: their mean.
        transfer: events elsewhere pass a matrix before they meet the candidate.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    def __init__(self, schema: Schema, dim: int, *, attention: bool = True, transfer: bool = False, id_dropout: float = 0.05) -> None:
        super().__init__()
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout, std=0.1)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout, std=0.1)
        self.context = ContextFields(schema.context, dim) if schema.context else None

        def attend(transfer: bool) -> TargetAttention | None:
            if not attention:
                return None
            return TargetAttention(dim, [dim], activation=lambda _: nn.ReLU(), softmax=True, profile=True, transfer=transfer)

        self.here, self.elsewhere = attend(False), attend(transfer)

    def forward(self, batch: Batch) -> Tensor:
        """(B, C, 4, dim): q, p, a (here), b (elsewhere)."""
        query = self.items(batch.item).sum(2)
        profile = self.users(batch.user).sum(1)
        if self.context is not None:
            profile = profile + self.context(batch.context).sum(1)
        here = self._pooled(batch.history, self.here, query, profile)
        elsewhere = self._pooled(batch.cross_history, self.elsewhere, query, profile)
        return torch.stack([query, profile[:, None].expand_as(query), here, elsewhere], 2)

    def _pooled(self, history: Tensor | None, attention: TargetAttention | None, query: Tensor, profile: Tensor) -> Tensor:
        """(B, L) codes -> (B, C, dim)."""
        assert history is not None
        if attention is None:
            return self.items.mean(history).sum(1)[:, None].expand_as(query)
        row, column = (history != PADDING).nonzero(as_tuple=True)
        return attention(self.items(history[row, column]).sum(1), row, query, profile)
