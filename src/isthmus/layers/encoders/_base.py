"""``Encoder``: what all encoders of sequences have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.checks import require_share


class Places(nn.Module):
    """A learnt vector for each place of a sequence, counted from its begin.

    Args:
        length: places that are told apart; later ones are the last.
        dim: width of a vector.

    Raises:
        ConfigError: no place.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1:
            raise ConfigError(f"length = {length}", "1 or more places", "use the defaults")
        self.place = nn.Parameter(torch.randn(length, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim), each slot with its place added."""
        return x + self.place[torch.arange(x.shape[1], device=x.device).clamp_max(len(self.place) - 1)]


class Encoder(nn.Module, ABC):
    """Events -> the state after each.  Concrete encoders are final and take their own hyper-parameters by keyword.

    Args:
        dim: width of an event and of a state.
        dropout: share of activations dropped in training.
        own: hyper-parameters of the concrete encoder, all with defaults.  One that tells places apart takes ``length``, of which 0 means
            that events bring their own.

    Class attributes:
        timed: its ``forward`` takes how long after the event before each one came, as a second argument.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    timed: ClassVar[bool] = False

    def __init__(self, dim: int, *, dropout: float = 0.0, **own: Any) -> None:
        super().__init__()
        require_share("dropout", dropout)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Encodes sequences.

        Args:
            x: (B, T, dim), each sequence from slot 0 on; what stands after its end is anything.

        Returns:
            (B, T, dim): slot t depends on the slots 0 to t alone.
        """

    def states(self, x: Tensor, gap: Tensor | None) -> Tensor:
        """(B, T, dim), and for timed encoders (B, T) scaled times since the event before or None -> (B, T, dim)."""
        return self(x, gap) if self.timed else self(x)
