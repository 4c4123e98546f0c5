"""STAR: each domain's weights are the product of shared weights and its own.

Sheng et al.: One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction, CIKM 2021.
Equations, cost and deviation: ``isthmus.layers.networks.star``; the output is one logit.

Deviation: x (``Inputs``) holds a domain embedding already, which the normalisation cancels within a domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.star import STARNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class STAR(Model):
    """Star topology adaptive recommender.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector, the domain indicator's included.
        hidden: widths of the star network's hidden layers.
        auxiliary: widths of the auxiliary network's hidden layers.
        norm: partitioned normalisation of the input.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Sheng et al., Star Topology Adaptive Recommender, CIKM 2021"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        auxiliary: Sequence[int] = (32,),
        norm: bool = True,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = STARNetwork(
            len(schema.domains), self.inputs.width, out=1, hidden=hidden, auxiliary=auxiliary, indicator=dim, norm=norm, dropout=dropout
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
