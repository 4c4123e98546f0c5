"""Caser's encoder: convolutions over the last few events (Tang and Wang, WSDM 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder


class Convolutions(Encoder):
    """What filters find in the last ``window`` events at every slot.

    ::

        horizontal: for each height h = 1 .. window, filters over h events and all dimensions; the largest ReLU in the window   (eq. 4-6)
        vertical:   for each filter, a weighted sum of the window's events                                                      (eq. 7, 8)
        s = W [ReLU(W' [horizontal, vertical])]  [+ x]                                                                          (eq. 9, 10)

    Deviations: the user's own vector, which stands beside the first layer's output in eq. 10, is left out: users may be new; events
    are normed before the filters.

    Args:
        dim: width of an event and of a state.
        window: events looked at.
        horizontal: filters of each height.
        vertical: vertical filters.
        residual: add the last event itself, normed, as attention's blocks do.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: a number below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self, dim: int, *, window: int = 5, horizontal: int = 16, vertical: int = 4, residual: bool = False, dropout: float = 0.2
    ) -> None:
        super().__init__(dim, dropout=dropout)
        if min(window, horizontal, vertical) < 1:
            came = f"window = {window}, horizontal = {horizontal}, vertical = {vertical}"
            raise ConfigError(came, "1 or more each", "use the defaults")
        self.window, self.residual, self.norm = window, residual, nn.LayerNorm(dim)
        self.horizontal = nn.ModuleList(nn.Conv1d(dim, horizontal, height) for height in range(1, window + 1))
        self.vertical = nn.Conv1d(1, vertical, window, bias=False)
        self.wide, self.out = nn.Linear(window * horizontal + vertical * dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        rows, length, dim = x.shape
        x = self.dropout(self.norm(x))
        early = F.pad(x.transpose(1, 2), (self.window - 1, 0))  # (B, dim, window - 1 + T)
        found = [F.max_pool1d(conv(early).relu(), self.window - n, stride=1) for n, conv in enumerate(self.horizontal)]
        sums = self.vertical(early.reshape(rows * dim, 1, -1)).view(rows, -1, length)
        both = torch.cat([*found, sums], 1).transpose(1, 2)
        moved = self.out(self.dropout(self.wide(both).relu()))
        return x + moved if self.residual else moved
