"""MAN with a dot product: the user side of ``man``, asked after every event, and items that can be indexed.

Lin et al., WSDM 2024, eq. 1-13; see ``isthmus.models.man`` for what the parts are.

    u    = s^A + MLP_A(e || s^As || g^Au || s^A)                after every event: its last event asks for item similarity
    score(i) = u . m_A(i) + s^Ag . m(i)                         local and global prediction (eq. 14, 15) as dot products

As printed each candidate goes through the prediction layers by itself, and item similarity is asked by the candidate.  Where the last
event asks, and scores are dot products, one pass over a sequence trains all its places against the whole catalogue, and a catalogue of
a million is searched by an index.  The states are the last ones, not averages over places: the encoders are trained at every place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.data.samples import samples
from isthmus.insight import Insight
from isthmus.layers.domain import PerDomain
from isthmus.layers.domain_items import ItemBias
from isthmus.layers.dropout import Dropout
from isthmus.layers.group_looks import ROWS, group_looks
from isthmus.layers.local_global import LocalGlobal
from isthmus.layers.mixed_attention import GroupPrototypes, LocalPart, Mixed, through
from isthmus.layers.mlp import start_at_zero
from isthmus.layers.sequence import Left, Own, needs_of
from isthmus.model import Loss, Model, Sequential, Stage, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class MANDot(Sequential):
    """Mixed attention, asked after every event.

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
        length: places that are told apart; more than the events of a history.
        dropout: share of what the mixed parts say that is dropped in training.
        bias: a number for each item in each domain, see ``ItemBias``.
        merged: the global encoder reads the user's events in all domains, in order of time, and so do item similarity and sequence
            fusion; the domain's encoder its own.  For domains that do share users.

    Raises:
        ConfigError: no such encoder or hyper-parameter, or a timed encoder over merged histories.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Lin et al., Mixed Attention Network for Cross-domain Sequential Recommendation, WSDM 2024"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        domain_dim: int = 4,
        encoder: str = "sasrec",
        encoder_args: Mapping[str, Any] | None = None,
        groups: int = 10,
        group_weight: float = 1e-3,
        bounded: bool = True,
        item_similarity: bool = True,
        sequence_fusion: bool = True,
        group_prototypes: bool = True,
        length: int = 51,
        dropout: float = 0.2,
        bias: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__(schema)
        self.merged = merged
        domains, width = len(schema.domains), dim + domain_dim
        self.vectors = LocalGlobal(schema, dim, domain_dim, encoder, encoder_args, length, std=0.02, id_dropout=0.0)
        self.needs = needs_of(encoder, self.vectors.timed, merged)  # type: ignore[misc]
        self.groups = GroupPrototypes(groups, width, weight=group_weight, bounded=bounded) if group_prototypes else None
        parts = {"item": item_similarity, "sequence": sequence_fusion, "group": group_prototypes}
        self.local = PerDomain(domains, lambda: LocalPart(self.vectors.make(), width, groups, length, **parts))
        self.read = [name for name, part in (("item", "item"), ("fused", "sequence"), ("group", "group")) if parts[part]]
        self.predict = PerDomain(domains, lambda: _Prediction((1 + len(self.read)) * width, width, dropout)) if self.read else None
        self.bias = ItemBias(schema) if bias else None

    def stages(self) -> list[Stage]:
        """One, with the term ``groups`` (eq. 13)."""
        return [Stage("fit", loss=_with_groups if self.groups is not None else None)]

    def states(self, batch: Batch) -> Tensor:
        """(B, L, 2 (dim + domain_dim) [+ 1]): the state after each event."""
        left = Left.of(batch, self.merged, self.vectors.timed)
        among = Own.of(left) if self.merged else None
        shared, state, event = self.vectors(left)
        gap = left.gaps(self.schema.time_unit)
        prototype = None if self.groups is None else self.groups.prototype

        def run(part: LocalPart, rows: slice) -> Mixed:
            since, known = None if gap is None else gap[rows], None if among is None else among.rows(rows)
            return part.each(event[rows], shared[rows], state[rows], prototype, since, known)

        mixed = through(self.local, batch.offsets, run)
        own = mixed.local
        if self.predict is not None:
            rows, length, width = own.shape
            x = torch.cat([getattr(mixed, name) for name in self.read] + [own], 2)
            own = own + self.predict(x.flatten(0, 1), [o * length for o in batch.offsets]).view(rows, length, width)
        both = left.right(torch.cat([own, state], 2))
        return both if self.bias is None else self.bias.user(both)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes and domain indices (...) -> (..., 2 (dim + domain_dim) [+ 1])."""
        both = torch.cat(self.vectors.items(item, domain), -1)
        return both if self.bias is None else self.bias.item(both, item, domain)

    def insights(self, dataset: Dataset) -> list[Insight]:
        """Figure 4: how much each domain's users are of each group, and the users by their pooled group representations."""
        if self.groups is None:
            return []
        with torch.no_grad(), evaluating(self):
            return group_looks(
                samples(dataset, Needs(history=True, history_time=self.vectors.timed), ROWS),
                self.vectors,
                self.local,
                self.groups.prototype,
            )


class _Prediction(nn.Sequential):
    """What a domain's mixed parts add to its own state; nothing at first."""

    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, out), nn.ReLU(), Dropout(dropout), nn.Linear(out, out))
        start_at_zero(self[3])


def _with_groups(model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
    """The task's terms and eq. 13."""
    assert isinstance(model, MANDot)
    assert model.groups is not None
    return {**task(model, batch), "groups": model.groups.disentangle()}
