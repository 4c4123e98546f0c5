"""Any encoder by itself: the next item from the state that it has after each event.

    s_t = encoder(e_1, ..., e_t),   score(i | s_t) = s_t . e_i

What ``sasrec``, ``gru4rec`` and ``caser`` are for their encoders, for those that have no model of this form: the causal encoders of
DIEN, SLi-Rec and SURGE (the models of these names ask by the candidate, as printed), and files that are added.  Shared by all domains
of a training or, alone, of one domain: what ``man_dot`` over the same encoder is compared with (Lin et al., WSDM 2024, Figure 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.sequence import EncodedEvents
from isthmus.model import Sequential
from isthmus.schema import Schema


class Encoded(Sequential):
    """An encoder over the history.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        encoder: the name of a file in ``isthmus.layers.encoders``.
        encoder_args: its hyper-parameters; those left out, its defaults.
        id_dropout, bias, merged: see ``isthmus.layers.sequence.EncodedEvents``.

    Raises:
        ConfigError: no such encoder or hyper-parameter, or a timed encoder over merged histories.
    """

    needs: ClassVar[Needs] = Needs(history=True)
    paper: ClassVar[str] = "Lin et al., Mixed Attention Network for Cross-domain Sequential Recommendation, WSDM 2024: its base encoders"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        encoder: str = "dien",
        encoder_args: Mapping[str, Any] | None = None,
        id_dropout: float = 0.0,
        bias: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__(schema)
        self.events = EncodedEvents(schema, encoder, dim, encoder_args or {}, id_dropout=id_dropout, bias=bias, merged=merged)
        self.needs = self.events.needs  # type: ignore[misc]

    def states(self, batch: Batch) -> Tensor:
        """(B, L, dim), or dim + 1: the state after each event."""
        return self.events.states(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes and domain indices (...) -> (..., dim), or dim + 1."""
        return self.events.candidates(item, domain)
