"""Plain multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.checks import require_share
from isthmus.layers.dropout import Dropout

NORMS: dict[str | None, Callable[[int], nn.Module] | None] = {None: None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def start_at_zero(layer: nn.Module | None) -> None:
    """Sets the weights of a network's last layer to 0: before training it says nothing."""
    assert layer is not None
    for weight in layer.parameters():
        nn.init.zeros_(weight)


class MLP(nn.Module):
    """Linear, norm, activation, dropout for every hidden width; then a linear output when one is asked for.

    Args:
        width: of the input.
        hidden: widths of the hidden layers.
        dropout: share of activations dropped in training.
        norm: None, ``batch`` or ``layer``.
        out: width of the output; None: the last hidden layer's activation is the output.
        activation: makes the module between layers from their width.

    Attributes:
        width: of the output.

    Raises:
        ConfigError: no such norm, a layer without width, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        norm: str | None = None,
        out: int | None = None,
        activation: Callable[[int], nn.Module] = lambda width: nn.ReLU(),
    ) -> None:
        super().__init__()
        require_share("dropout", dropout)
        if norm not in NORMS:
            raise ConfigError(f"norm {norm!r}", f"one of {tuple(NORMS)}", "correct it, or leave it out")
        if any(size < 1 for size in hidden):
            raise ConfigError(f"hidden = {list(hidden)}", "a width of 1 or more for each layer", "leave the layer out")
        layers: list[nn.Module] = []
        make_norm = NORMS[norm]
        for size in hidden:
            layers.append(nn.Linear(width, size))
            if make_norm is not None:
                layers.append(make_norm(size))
            layers.append(activation(size))
            if dropout:
                layers.append(Dropout(dropout))
            width = size
        if out is not None:
            layers.append(nn.Linear(width, out))
            width = out
        self.width = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, out or last hidden width)."""
        return self.layers(x)
