"""How fields meet: by pairs (bi-interaction), layer by layer (CIN, cross network), or by attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError


def bi_interaction(x: Tensor) -> Tensor:
    """The sum of the elementwise products of all pairs of fields, in linear time (He and Chua, SIGIR 2017, eq. 4).

        sum over f < g of x_f * x_g  =  1/2 ((sum of x_f)^2 - sum of x_f^2)

    Args:
        x: (..., fields, dim).

    Returns:
        (..., dim).
    """
    return 0.5 * (x.sum(-2).square() - x.square().sum(-2))


class CIN(nn.Module):
    """Compressed interaction network (Lian et al., KDD 2018, eq. 6-8).

    ::

        X^k_h = sum over i, j of W^k_hij (X^(k-1)_i * X^0_j)      fields by fields, elementwise over the vector
        p^k_h = sum over the vector's elements of X^k_h           and all p side by side are the output

    Args:
        fields: of x.
        widths: number of feature maps in each layer.

    Attributes:
        width: of the output.

    Raises:
        ConfigError: no layer.
    """

    def __init__(self, fields: int, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("a CIN without layers", "at least one width", "cin=(32, 32)")
        before = [fields, *widths]
        self.layers = nn.ModuleList(nn.Linear(b * fields, h, bias=False) for b, h in zip(before, widths, strict=False))
        self.width = sum(widths)

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields, dim) -> (N, width)."""
        first = x.transpose(1, 2)  # (N, dim, fields): every element of the vector is a row of its own
        now, found = first, []
        for layer in self.layers:
            now = layer((now[..., :, None] * first[..., None, :]).flatten(2))
            found.append(now.sum(1))
        return torch.cat(found, 1)


class CrossNetwork(nn.Module):
    """The cross network of DCN-v2 (Wang et al., WWW 2021, eq. 1 and 2).

    ::

        x_(l+1) = x_0 * (W_l x_l + b_l) + x_l       W_l = U_l V_l' where a rank is given

    Args:
        width: of x.
        layers: how many.
        rank: of W; None: full.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()

        def matrix() -> nn.Module:
            if rank is None:
                return nn.Linear(width, width)
            return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

        self.layers = nn.ModuleList(matrix() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, width)."""
        now = x
        for layer in self.layers:
            now = torch.addcmul(now, x, layer(now))
        return now


class FieldAttention(nn.Module):
    """A layer in which fields attend to each other (Song et al., CIKM 2019, eq. 5-8).

    ::

        a^h_mk = softmax over k of <W_Q^h e_m, W_K^h e_k>       not scaled
        e_m    = ReLU([sum over k of a^h_mk W_V^h e_k, all heads] + W_R e_m)

    Args:
        dim: width of a field's vector.
        width: of all heads together.
        heads: how many.

    Raises:
        ConfigError: a width that heads do not divide.
    """

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"{heads} heads for a width of {width}", "heads that divide the width", "heads=2, width=32")
        self.heads = heads
        self.query, self.key, self.value, self.rest = (nn.Linear(dim, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields, dim) -> (N, fields, width)."""
        query, key, value = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # eq. 5-7
        return (seen.transpose(1, 2).flatten(2) + self.rest(x)).relu()  # eq. 8
