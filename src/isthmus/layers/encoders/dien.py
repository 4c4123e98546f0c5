"""DIEN's encoder: interests that evolve as far as each event is a part of them (Zhou et al., AAAI 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder
from isthmus.layers.evolution import GatedUnit


class InterestStates(Encoder):
    """A recurrence over events, and one over its states, whose update gate attention scales (AUGRU).

    ::

        x_t  = LN(e_t),   h_t = GRU(x_1, ..., x_t)              interest extraction
        a_t  = sigmoid(h_t-1 . W x_t)                           h_0 = 0
        h'_t = (1 - a_t u'_t) h'_t-1 + a_t u'_t n'_t            interest evolution: AUGRU over h
        s_t  = W_out h'_t + b_out  [+ x_t]

    Deviations: the candidate is not known here, so an event asks for itself: what the interest before it did not see coming moves the
    state less.  The weights are sigmoids, as a softmax over a sequence would know its end.  There is no auxiliary loss: its job, an
    interest that tells the next event, is what every place is trained for.

    Args:
        dim: width of an event and of a state.
        residual: add the last event itself, normed, as attention's blocks do.
        dropout: share of the events' and the states' activations dropped in training.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    def __init__(self, dim: int, *, residual: bool = False, dropout: float = 0.2) -> None:
        super().__init__(dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.extraction = nn.GRU(dim, dim, batch_first=True)
        self.asked = nn.Linear(dim, dim, bias=False)  # W
        self.evolution, self.out = GatedUnit(dim, dim), nn.Linear(dim, dim)
        self.dropout, self.residual = Dropout(dropout), residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        x = self.dropout(self.norm(x))
        interest, _ = self.extraction(x)
        before = F.pad(interest[:, :-1], (0, 0, 1, 0))
        attention = (before * self.asked(x)).sum(2).sigmoid()
        rows, length, _ = x.shape
        steps = interest.transpose(0, 1).flatten(0, 1), [rows] * length, attention.t().reshape(-1, 1)
        moved = self.out(self.dropout(torch.cat(self.evolution(*steps), 1)))
        return x + moved if self.residual else moved
