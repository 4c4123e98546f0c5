"""DNN: one network for all rows, with nothing that knows the domains apart but their embedding.

Covington, Adams, Sargin: Deep Neural Networks for YouTube Recommendations, RecSys 2016 (the ranking network:
embedded ids, averaged watches, an MLP).  Trained on one domain it is the single-domain control; trained on all of
them it is the "mixed" baseline of the multi-domain papers.

    logit = MLP([user, context, domain, mean of watched items, candidate, products])

Deviations: the candidate also meets the averaged history and the user's id by elementwise products (see ``Inputs``);
the label's own loss stands in place of expected watch time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.dnn import DNNNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class DNN(Model):
    """Embeddings, concatenation, MLP.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (128, 64), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = DNNNetwork(len(schema.domains), self.inputs.width, out=1, hidden=hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
