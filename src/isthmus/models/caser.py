"""Caser: the next item from convolutions over the last few events.

Tang, Wang: Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding, WSDM 2018.

    s_t = filters over the last events,   score(i | s_t) = s_t . e_i + b_i      (eq. 10)

Encoder and table are shared by all domains of a training; alone, a domain is trained by itself.  Deviations: no vector of the user
(users may be new); candidates and events have one table; events carry their domain's vector; the loss is fit's, over all places.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.sequence import EncodedEvents
from isthmus.model import Sequential
from isthmus.schema import Schema


class Caser(Sequential):
    """Horizontal and vertical convolutions over the end of the history.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        window, horizontal, vertical, residual, dropout: see ``isthmus.layers.encoders.caser``.
        id_dropout, bias, merged: see ``isthmus.layers.sequence.EncodedEvents``.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Tang and Wang, Convolutional Sequence Embedding (Caser), WSDM 2018"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        window: int = 5,
        horizontal: int = 16,
        vertical: int = 4,
        residual: bool = False,
        dropout: float = 0.2,
        id_dropout: float = 0.0,
        bias: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__(schema)
        args = {"window": window, "horizontal": horizontal, "vertical": vertical, "residual": residual, "dropout": dropout}
        self.events = EncodedEvents(schema, "caser", dim, args, id_dropout=id_dropout, bias=bias, merged=merged)
        self.needs = self.events.needs  # type: ignore[misc]

    def states(self, batch: Batch) -> Tensor:
        """(B, L, dim), or dim + 1: the state after each event."""
        return self.events.states(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes and domain indices (...) -> (..., dim), or dim + 1."""
        return self.events.candidates(item, domain)
