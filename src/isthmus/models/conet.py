"""CoNet: a network per domain, and from every layer to the next a way across.

Hu, Zhang, Yang: CoNet: Collaborative Cross Networks for Cross-Domain Recommendation, CIKM 2018.  Equations, cost and deviations:
``isthmus.layers.networks.conet``; x is ``Inputs``, the output one logit.

    loss = the task's + sparse * sum of |H|             SCoNet, their sparse variant, where sparse > 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.features import Inputs
from isthmus.layers.networks.conet import CoNetNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class CoNet(Model):
    """Networks with cross connections.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the hidden layers of each domain's network; at least one, and two for anything to cross.
        sparse: weight of the cross connections' absolute values in the loss.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.

    Raises:
        ConfigError: no hidden layer, or a negative ``sparse``.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Hu et al., CoNet, CIKM 2018"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        sparse: float = 0.0,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        if sparse < 0:
            raise ConfigError(f"sparse = {sparse}", "0 or more", "try 1e-4")
        self.sparse = sparse
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = CoNetNetwork(len(schema.domains), self.inputs.width, out=1, hidden=hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C); in training, and where asked for, the term ``sparse``."""
        extra = {"sparse": self.sparse * self.network.transfer()} if self.training and self.sparse else {}
        return Output(self.inputs.logit(self.network, batch), extra)
