"""MMoE: shared experts, mixed by a gate per domain, and a tower per domain.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018; with domains in the place of tasks.  Equations: ``isthmus.layers.networks.mmoe``; the
output is one logit.

Deviation: ``Inputs`` gives every model here the same x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.mmoe import MMoENetwork
from isthmus.model import Model
from isthmus.schema import Schema


class MMoE(Model):
    """Multi-gate mixture of experts.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        experts: how many.
        hidden: widths of an expert's layers; at least one.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
        tower_norm: batch norm per domain in the towers (costs quality where a domain is small).
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Ma et al., Multi-gate Mixture-of-Experts, KDD 2018"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        experts: int = 4,
        hidden: Sequence[int] = (128, 64),
        tower: Sequence[int] = (32,),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
        tower_norm: bool = False,
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = MMoENetwork(
            len(schema.domains),
            self.inputs.width,
            out=1,
            experts=experts,
            hidden=hidden,
            tower=tower,
            tower_norm=tower_norm,
            dropout=dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
