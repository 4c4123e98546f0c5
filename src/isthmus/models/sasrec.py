"""SASRec: the next item from self-attention over the user's events.

Kang, McAuley: Self-Attentive Sequential Recommendation, ICDM 2018.

    s_t = encoder(e_1, ..., e_t),   score(i | s_t) = s_t . e_i      (eq. 6, one table for events and candidates)

Encoder and table are shared by all domains of a training; alone, a domain is trained by itself.  Deviations: see the encoder; events
carry their domain's vector; before the first event stands a vector that is learnt, so that a user without a history gets scores too.
The loss is fit's: all places at once, softmax over the domain's catalogue or ``objective = "bce"`` as printed.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.sequence import EncodedEvents
from isthmus.model import Sequential
from isthmus.schema import Schema


class SASRec(Sequential):
    """Self-attention over the history.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        blocks, heads, length, dropout: see ``isthmus.layers.encoders.sasrec``.
        id_dropout, bias, merged: see ``isthmus.layers.sequence.EncodedEvents``.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        blocks: int = 2,
        heads: int = 1,
        length: int = 51,
        dropout: float = 0.2,
        id_dropout: float = 0.0,
        bias: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__(schema)
        args = {"blocks": blocks, "heads": heads, "length": length, "dropout": dropout}
        self.events = EncodedEvents(schema, "sasrec", dim, args, id_dropout=id_dropout, bias=bias, merged=merged)
        self.needs = self.events.needs  # type: ignore[misc]

    def states(self, batch: Batch) -> Tensor:
        """(B, L, dim), or dim + 1: the state after each event."""
        return self.events.states(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes and domain indices (...) -> (..., dim), or dim + 1."""
        return self.events.candidates(item, domain)
