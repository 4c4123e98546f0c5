"""MAN: domains without common users share item space, sequence patterns and groups of users.

Lin, Gao, Zheng, Chang, Niu, Song, Gai, Li, Jin, Li, Wang: Mixed Attention Network for Cross-domain Sequential Recommendation,
WSDM 2024.

    E^A  = M^A + P^A,  E^Ag = M + P                       local and global vectors of the events         (eq. 1, 2)
    S^A  = Encoder_A(E^A),  S^Ag = Encoder_g(E^Ag)        each domain's own encoder, and the one of all  (eq. 3, 4)
    e    = item similarity of the candidate and E^A + E^Ag                                               (eq. 5, 6)
    s^As = sequence fusion of S^A and S^Ag                                                               (eq. 7-9)
    g^Au = group prototypes, relevant as far as the user is of each                                      (eq. 10-12)
    logit = MLP_A(e || s^As || g^Au || s^A || m) + MLP_g(s^Ag || m_g)                                    (eq. 14, 15)
    loss  = cross-entropy + L^g                                                                          (eq. 13, 16-18)

Each domain's part is trained by its own rows alone, so a batch may hold any of them ("independent updating", 3.3.2).

Deviations: a candidate has both vectors, as events have (m is their sum, m_g the global one); a vector that stands for "nothing yet" is a
sequence's first place, so that users without events are scored too; pooling is an average over places, as the text below eq. 15
says; L^g compares prototypes of length 1 unless ``bounded`` is False: as printed it has no lower bound; a share of items is unknown in
training, in both spaces, so that an item that training never saw has vectors that were trained.  ``man_dot`` is the same user side with
a dot product, which can be indexed and learns from all places of a sequence at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.data.samples import samples
from isthmus.insight import Insight
from isthmus.layers.biases import Levels
from isthmus.layers.domain import PerDomain
from isthmus.layers.group_looks import ROWS, group_looks
from isthmus.layers.local_global import LocalGlobal
from isthmus.layers.mixed_attention import GroupPrototypes, LocalPart, Mixed, through
from isthmus.layers.mlp import MLP
from isthmus.layers.sequence import Left
from isthmus.model import Model, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class MAN(Model):
    """Mixed attention, asked by each candidate.

    Args:
        schema: of an encoded data set.
        dim: width of an item's vector.
        domain_dim: width of the domain's vector beside it.
        encoder: the name of a file in ``isthmus.layers.encoders``.
        encoder_args: its hyper-parameters; those left out, its defaults.
        groups: N_g.
        group_weight: lambda_g of eq. 13.
        bounded: prototypes are compared at length 1.
        item_similarity, sequence_fusion, group_prototypes: False leaves one out: the paper's ablations.
        hidden: widths of the hidden layers of both prediction layers.
        length: places that are told apart; more than the events of a history.
        id_dropout: share of items replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Lin et al., Mixed Attention Network for Cross-domain Sequential Recommendation, WSDM 2024"
    tasks: ClassVar[tuple[str, ...]] = ("ctr", "retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        domain_dim: int = 4,
        encoder: str = "sasrec",
        encoder_args: Mapping[str, Any] | None = None,
        groups: int = 10,
        group_weight: float = 1e-3,
        bounded: bool = True,
        item_similarity: bool = True,
        sequence_fusion: bool = True,
        group_prototypes: bool = True,
        hidden: Sequence[int] = (100, 64),
        length: int = 51,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        domains, width = len(schema.domains), dim + domain_dim
        self.levels = Levels(schema)
        self.vectors = LocalGlobal(schema, dim, domain_dim, encoder, encoder_args, length, std=0.1, id_dropout=id_dropout)
        self.needs = Needs(history=True, history_time=self.vectors.timed)  # type: ignore[misc]
        self.groups = GroupPrototypes(groups, width, weight=group_weight, bounded=bounded) if group_prototypes else None
        parts = {"item": item_similarity, "sequence": sequence_fusion, "group": group_prototypes}
        self.local = PerDomain(domains, lambda: LocalPart(self.vectors.make(), width, groups, length, **parts))
        self.predict = PerDomain(domains, lambda: MLP((2 + sum(parts.values())) * width, hidden, out=1))
        self.predict_all = MLP(2 * width, hidden, out=1)
        self.read = [name for name, part in (("item", "item"), ("fused", "sequence"), ("group", "group")) if parts[part]] + ["local"]

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C), with the term ``groups`` (eq. 13) in training."""
        left = Left.of(batch, timed=self.vectors.timed)
        shared, state, event = self.vectors(left)
        real, gap = torch.arange(event.shape[1], device=event.device) <= left.count[:, None], left.gaps(self.schema.time_unit)
        domain = batch.domain[:, None].expand_as(batch.item)
        here, everywhere = self.vectors.items(batch.item, domain)
        item = here + everywhere
        prototype = None if self.groups is None else self.groups.prototype

        def run(part: LocalPart, rows: slice) -> Mixed:
            since = None if gap is None else gap[rows]
            return part.whole(event[rows], shared[rows], state[rows], real[rows], item[rows], prototype, since)

        mixed = through(self.local, batch.offsets, run)
        x = torch.cat([getattr(mixed, name).expand_as(item) for name in self.read] + [item], 2)
        pooled = ((real / real.sum(1, keepdim=True))[:, None] @ state).expand_as(item)
        own = self.predict(x.flatten(0, 1), batch.item_offsets)
        logit = own + self.predict_all(torch.cat([pooled, everywhere], 2).flatten(0, 1))  # eq. 14
        terms: dict[str, Tensor] = {}
        if self.training and self.groups is not None:
            terms["groups"] = self.groups.disentangle()
        return Output(logit.view(batch.item.shape) + self.levels.level[batch.domain, None], terms)

    def insights(self, dataset: Dataset) -> list[Insight]:
        """Figure 4: how much each domain's users are of each group, and the users by their pooled group representations."""
        if self.groups is None:
            return []
        with torch.no_grad(), evaluating(self):
            return group_looks(samples(dataset, self.needs, ROWS), self.vectors, self.local, self.groups.prototype)
