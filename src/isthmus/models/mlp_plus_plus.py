"""MLP++: a network per domain, on shared embeddings.

Hu, Zhang, Yang: CoNet: Collaborative Cross Networks for Cross-Domain Recommendation, CIKM 2018, where it is the base model.
Equation: ``isthmus.layers.networks.mlp_plus_plus``; x is ``Inputs``, the output one logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.mlp_plus_plus import MLPPlusPlusNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class MLPPlusPlus(Model):
    """An MLP per domain; users, items and fields are shared.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the hidden layers of each domain's network.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Hu et al., CoNet, CIKM 2018 (its base model)"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (64, 32), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = MLPPlusPlusNetwork(len(schema.domains), self.inputs.width, out=1, hidden=hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
