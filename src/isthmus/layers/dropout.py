"""``Dropout``: torch's, with random numbers that cost a tenth on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.checks import require_share

LEVELS = 1 << 16


def scaled_mask(x: Tensor, share: float) -> Tensor:
    """What dropout multiplies by: 0 with probability ``share``, else 1 / (1 - share); like ``x`` in shape and type, on a CPU.

    torch draws a number of 53 random bits for each; here four share one of 64: a share is rounded to a multiple of 2^-16.
    """
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].view(x.shape) >= round(share * LEVELS) - LEVELS // 2
    return kept.to(x.dtype).mul_(1 / (1 - share))


class Dropout(nn.Module):
    """Each number becomes 0 with probability ``share``, in training; the others grow by 1 / (1 - share).

    On a CPU see ``scaled_mask``: torch's own numbers take a tenth of a small encoder's step.

    Args:
        share: from 0 to below 1.

    Raises:
        ConfigError: a share outside of that.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        require_share("dropout", share)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        return x * scaled_mask(x, self.share)

    def extra_repr(self) -> str:
        return f"{self.share}"
