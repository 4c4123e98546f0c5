"""Shared-Bottom: one bottom for all domains, a tower for each.

Caruana: Multitask Learning, Machine Learning 28, 1997; with domains in the place of tasks.  Equations:
``isthmus.layers.networks.shared_bottom``; x is ``Inputs``, the output one logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.shared_bottom import SharedBottomNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class SharedBottom(Model):
    """A shared MLP below one tower per domain; a row passes its own domain's tower only.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the bottom's layers.
        tower: widths of the towers' hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
        tower_norm: batch norm per domain in the towers (costs quality where a domain is small).
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Caruana, Multitask Learning, Machine Learning 1997"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128,),
        tower: Sequence[int] = (64,),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
        tower_norm: bool = False,
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = SharedBottomNetwork(
            len(schema.domains), self.inputs.width, out=1, hidden=hidden, tower=tower, tower_norm=tower_norm, dropout=dropout
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
