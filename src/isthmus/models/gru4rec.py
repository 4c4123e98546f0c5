"""GRU4Rec: the next item from a recurrent state.

Hidasi, Karatzoglou, Baltrunas, Tikk: Session-based Recommendations with Recurrent Neural Networks, ICLR 2016.

    h_t = GRU(e_t, h_{t-1}),   score(i | h_t) = W h_t . e_i

Encoder and table are shared by all domains of a training; alone, a domain is trained by itself.  Deviations: candidates and events have
one table; events carry their domain's vector; the loss is fit's, over all places of whole histories instead of parallel sessions.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.sequence import EncodedEvents
from isthmus.model import Sequential
from isthmus.schema import Schema


class GRU4Rec(Sequential):
    """Gated recurrent units over the history.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        hidden, layers, residual, dropout: see ``isthmus.layers.encoders.gru4rec``.
        id_dropout, bias, merged: see ``isthmus.layers.sequence.EncodedEvents``.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Hidasi et al., Session-based Recommendations with RNNs, ICLR 2016"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: int | None = None,
        layers: int = 1,
        residual: bool = False,
        dropout: float = 0.2,
        id_dropout: float = 0.0,
        bias: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__(schema)
        args = {"hidden": hidden, "layers": layers, "residual": residual, "dropout": dropout}
        self.events = EncodedEvents(schema, "gru4rec", dim, args, id_dropout=id_dropout, bias=bias, merged=merged)
        self.needs = self.events.needs  # type: ignore[misc]

    def states(self, batch: Batch) -> Tensor:
        """(B, L, dim), or dim + 1: the state after each event."""
        return self.events.states(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes and domain indices (...) -> (..., dim), or dim + 1."""
        return self.events.candidates(item, domain)
