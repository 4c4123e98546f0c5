"""SLi-Rec's encoder: a lasting taste, an LSTM that knows the time between events, and how much of both (Yu et al., IJCAI 2019)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.layers.attention import masked_softmax
from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder
from isthmus.layers.mlp import MLP
from isthmus.layers.time_lstm import TimeLSTM


class LongAndShort(Encoder):
    """Two tastes after every event, and their fusion.

    ::

        x_t   = LN(e_t)
        p_l   = sum over j <= t of a_j x_j           a = softmax over j <= t of z . x_j        asymmetric SVD
        h_j   = an LSTM with a gate for the time since the event before (``isthmus.layers.time_lstm``)
        p_s   = sum over j <= t of b_j h_j           b = softmax over j <= t of h_j . M x_t / sqrt(dim)
        alpha = sigmoid(a network of [x_t, p_s, p_l, g_t])      g_t: the time since the event before
        s_t   = W_out (alpha p_s + (1 - alpha) p_l) + b_out  [+ x_t]

    Deviations from the paper, and from ``isthmus.models.sli_rec``, which keeps to it: the event asks in the place of the candidate, by a
    product instead of a network, as there are T^2 pairs; the time until now is left out, for each place has another now.

    Args:
        dim: width of an event and of a state.
        hidden: width of the fusion's hidden layer.
        residual: add the last event itself, normed, as attention's blocks do.
        dropout: share of the events' and the states' activations dropped in training.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    timed: ClassVar[bool] = True

    def __init__(self, dim: int, *, hidden: int = 40, residual: bool = False, dropout: float = 0.2) -> None:
        super().__init__(dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.long = nn.Linear(dim, 1, bias=False)  # z
        self.lstm = TimeLSTM(dim, dim, span=False)
        self.asked = nn.Linear(dim, dim, bias=False)  # M
        self.fusion, self.out = MLP(3 * dim + 1, [hidden], out=1), nn.Linear(dim, dim)
        self.dropout, self.residual = Dropout(dropout), residual

    def forward(self, x: Tensor, gap: Tensor | None = None) -> Tensor:
        """Encodes sequences.

        Args:
            x: (B, T, dim).
            gap: (B, T) scaled times since the event before; None: all 0.

        Returns:
            (B, T, dim).
        """
        rows, length, dim = x.shape
        x = self.dropout(self.norm(x))
        gap = x.new_zeros(rows, length) if gap is None else gap
        row = torch.arange(rows, device=x.device).repeat_interleave(length)
        state = self.lstm(x.flatten(0, 1), row, rows, gap.flatten(), room=length).view(x.shape)
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        long = masked_softmax(self.long(x).transpose(1, 2), seen) @ x
        short = masked_softmax(self.asked(x) @ state.transpose(1, 2) / math.sqrt(dim), seen) @ state
        alpha = self.fusion(torch.cat([x, short, long, gap[..., None]], 2)).sigmoid()
        moved = self.out(self.dropout(torch.lerp(long, short, alpha)))
        return x + moved if self.residual else moved
