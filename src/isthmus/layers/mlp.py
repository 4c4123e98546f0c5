"""Plain multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

NORMS = {None: None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Linear, norm, activation, dropout for every hidden width; then a linear output when one is asked for.

    Args:
        width: of the input.
        hidden: widths of the hidden layers.
        dropout: share of activations dropped in training.
        norm: None, ``batch`` or ``layer``.
        out: width of the output; None: the last hidden layer's activation is the output.
    """

    def __init__(self, width: int, hidden: Sequence[int], *, dropout: float = 0.0, norm: str | None = None, out: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        make_norm = NORMS[norm]
        for size in hidden:
            layers.append(nn.Linear(width, size))
            if make_norm is not None:
                layers.append(make_norm(size))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        if out is not None:
            layers.append(nn.Linear(width, out))
            width = out
        self.width = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, out or last hidden width)."""
        return self.layers(x)
