"""MiNet: three interests of a user, weighted by the candidate.

Ouyang, Zhang, Zhao, Luo, Zhang, Zou, Liu, Du: MiNet: Mixed Interest Network for Cross-Domain Click-Through Rate Prediction, CIKM 2020.

    p                                                           long-term interest: the profile
    a = sum of alpha_j e_j,  b = sum of beta_j e_j              short-term interests: events here, and elsewhere (through a matrix M)
    logit = level_d + MLP_d([q, v_p p, v_a a, v_b b])           v: ``isthmus.layers.interests``

A network per domain; the source's own predictions are the auxiliary task that the paper adds to the target's.

Deviations: a vector is the sum of its fields, not their concatenation; every domain reads all three interests, so that none of them
needs to be called source or target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from isthmus.batch import Batch, Needs, Output
from isthmus.data.samples import samples
from isthmus.insight import Insight
from isthmus.layers.biases import Levels
from isthmus.layers.domain import DomainMLP
from isthmus.layers.interests import NAMES, SAMPLE, InterestAttention, InterestLooks, Interests
from isthmus.model import Model, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class MiNet(Model):
    """Item-level and interest-level attention, and a network per domain.

    Args:
        schema: of an encoded data set.
        dim: width of all vectors.
        item_attention: weigh events by the candidate; False: their mean.
        interest_attention: weigh interests; False: all as they are.
        hidden: widths of the networks' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, context=True)
    paper: ClassVar[str] = "Ouyang et al., MiNet, CIKM 2020"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        item_attention: bool = True,
        interest_attention: bool = True,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.levels = Levels(schema)
        self.interests = Interests(schema, dim, attention=item_attention, transfer=True, id_dropout=id_dropout)
        self.attention = InterestAttention(len(NAMES), dim, inside=True) if interest_attention else None
        self.networks = DomainMLP(len(schema.domains), (1 + len(NAMES)) * dim, hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        x = self.interests(batch).flatten(0, 1)  # (B * C, 4, dim)
        if self.attention is not None:
            x = self.attention(x)
        logit = self.networks(x.flatten(1), batch.item_offsets)
        return Output(logit.view(batch.item.shape) + self.levels.level[batch.domain, None])

    def insights(self, dataset: Dataset) -> list[Insight]:
        """Mean weights of the interests, by domain and label."""
        looks = InterestLooks()
        if self.attention is None:
            return []
        with torch.no_grad(), evaluating(self):
            for name, batch in samples(dataset, self.needs, SAMPLE, labels=True):
                batch = batch.to(self.levels.level.device)
                assert batch.label is not None
                looks.add(name, self.attention.weights(self.interests(batch).flatten(0, 1)), batch.label.flatten())
        return looks.looks()
