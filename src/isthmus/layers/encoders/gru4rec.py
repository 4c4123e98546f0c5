"""GRU4Rec's encoder: a recurrent state that every event moves on (Hidasi, Karatzoglou, Baltrunas, Tikk, ICLR 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder


class Recurrent(Encoder):
    """Gated recurrent units, and a linear map of their states to the width of an item.

    ::

        z, r = sigmoid(W_z x_t + U_z h + b_z), sigmoid(W_r x_t + U_r h + b_r),   x = LN(e)
        h_t  = (1 - z) tanh(W x_t + b + r (U h + b')) + z h,                     s = W_out h_t + b_out  [+ x_t]

    Deviations: events are normed; the gates are those of today's libraries, where r gates what U has made of h.

    Args:
        dim: width of an event and of a state.
        hidden: width of the recurrent state; None: ``dim``.
        layers: recurrent layers above each other.
        residual: add the last event itself, as attention's blocks do: what followed it is learnt long before what a state tells.
        dropout: share of the events' and the states' activations dropped in training.

    Raises:
        ConfigError: no layer, a width below 1, or a dropout outside [0, 1).
    """

    def __init__(self, dim: int, *, hidden: int | None = None, layers: int = 1, residual: bool = False, dropout: float = 0.2) -> None:
        super().__init__(dim, dropout=dropout)
        if layers < 1 or (hidden is not None and hidden < 1):
            raise ConfigError(f"layers = {layers}, hidden = {hidden}", "1 or more", "use the defaults")
        self.norm = nn.LayerNorm(dim)
        self.gru = nn.GRU(dim, hidden or dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(hidden or dim, dim)
        self.dropout, self.residual = Dropout(dropout), residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        x = self.dropout(self.norm(x))
        states, _ = self.gru(x)
        moved = self.out(self.dropout(states))
        return x + moved if self.residual else moved
