"""``Network``: what the networks of all papers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from isthmus.errors import ConfigError


class Network(nn.Module, ABC):
    """Rows of several domains -> outputs.  Concrete networks are final and take their own hyper-parameters by keyword.

    A row's output depends on the row and its domain alone (in evaluation mode), never on the rows beside it.

    Args:
        domains: number of domains D.
        width: of the input.
        out: width of the output.
        own: hyper-parameters of the concrete network, all with defaults.
    """

    def __init__(self, domains: int, width: int, *, out: int, **own: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """Maps rows ordered by domain.

        Args:
            x: (N, width).
            offsets: D + 1 bounds; domain d has rows ``offsets[d]:offsets[d + 1]``.

        Returns:
            (N, out), without a final activation.
        """


def require_layers(hidden: Sequence[int]) -> None:
    """Raises ``ConfigError`` for experts without a layer."""
    if not hidden:
        raise ConfigError(f"hidden = {hidden!r}", "the width of at least one hidden layer", "give one, such as (64,)")
