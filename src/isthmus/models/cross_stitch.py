"""Cross-Stitch: a network per domain, and after every layer a learned linear mix of all of them.

Misra, Shrivastava, Gupta, Hebert: Cross-Stitch Networks for Multi-task Learning, CVPR 2016; with domains in the
place of tasks.  Equations, cost and deviations: ``isthmus.layers.networks.cross_stitch``; x is ``Inputs``, the output
one logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.features import Inputs
from isthmus.layers.networks.cross_stitch import CrossStitchNetwork
from isthmus.model import Model
from isthmus.schema import Schema


class CrossStitch(Model):
    """Stitched networks; the output layer is the row's own domain's.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        hidden: widths of the hidden layers of each domain's network; at least one.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Misra et al., Cross-Stitch Networks, CVPR 2016"

    def __init__(
        self, schema: Schema, *, dim: int = 16, hidden: Sequence[int] = (64, 32), dropout: float = 0.0, id_dropout: float = 0.05
    ) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, id_dropout=id_dropout)
        self.network = CrossStitchNetwork(len(schema.domains), self.inputs.width, out=1, hidden=hidden, dropout=dropout)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        return Output(self.inputs.logit(self.network, batch))
