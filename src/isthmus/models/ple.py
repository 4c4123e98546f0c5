"""PLE: shared experts and experts of each domain's own, in levels, so that domains disturb each other less.

Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations, RecSys 2020; with domains in the place of tasks.  Equations and deviation:
``isthmus.layers.networks.ple``; x is ``Inputs``, the output one logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.ple import PLENetwork
from isthmus.model import Model
from isthmus.schema import Schema


class PLE(Model):
    """Progressive layered extraction.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        levels: 1 or more: extraction networks, then one CGC.
        own: experts of each domain's own, per level.
        shared: shared experts, per level.
        hidden: widths of an expert's layers, in every level; at least one.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Tang et al., Progressive Layered Extraction, RecSys 2020"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        levels: int = 2,
        own: int = 1,
        shared: int = 2,
        hidden: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = PLENetwork(
            len(schema.domains),
            self.inputs.width,
            out=1,
            levels=levels,
            own=own,
            shared=shared,
            hidden=hidden,
            tower=tower,
            dropout=dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
