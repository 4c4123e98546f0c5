"""The network of ADI's towers, equation by equation (8 to 26); see ``isthmus.models.adi`` for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from isthmus.layers.domain import DomainBatchNorm, DomainLinear, domain_of_rows
from isthmus.layers.dropout import Dropout
from isthmus.layers.growing import Stacked
from isthmus.layers.networks.star import star_linear


class Tower(Stacked):
    """One tower's network: (N, fields, dim), rows ordered by domain -> (N, dim).  For the arguments see ``isthmus.models.adi``.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    stacked: ClassVar[tuple[str, ...]] = ("f_domain",)

    def __init__(
        self,
        domains: int,
        fields: int,
        dim: int,
        *,
        hidden: Sequence[int],
        shared: int,
        fusion: str,
        norm: str,
        adaptation: str,
        placement: str,
        residual: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        width, last = fields * dim, hidden[-1]

        def adapt(copies: int) -> nn.Module | None:
            return None if adaptation == "none" else Adaptation(adaptation, copies, fields, dim)

        def network(copies: int) -> nn.Module:
            return Network(domains, copies, [width, *hidden], norm, dropout)

        own = placement == "per_network"
        self.adapt = None if own else adapt(domains if placement == "per_domain" else 1)
        self.adapt_spec = adapt(domains) if own else None
        self.adapt_shared = nn.ModuleList(a for _ in range(shared) if (a := adapt(1)) is not None) if own else None
        if fusion == "network_mul":
            self.fusion: nn.Module = NetworkMul(domains, [width, *hidden], norm, dropout)
            self.shared = self.spec = None
        else:
            self.shared = nn.ModuleList(network(1) for _ in range(shared))
            self.spec = network(domains)
            self.fusion = (Concat if fusion == "concat" else Sum)(domains, dim, last)
            self.share = nn.Linear(dim, shared) if shared > 1 else None  # W_shared^k and b_shared^k of eq. 8
            self.f_domain = nn.Parameter(torch.randn(domains, dim) * 0.1)
        self.forward_network = DomainLinear(domains, 3 * last if fusion == "concat" else last, dim)
        self.gate = nn.Parameter(torch.zeros(())) if residual else None  # starts as the sum of the fields

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, fields, dim) -> (N, dim)."""
        x = self._adapted(self.adapt, x, offsets)
        if self.shared is None or self.spec is None:
            fused = self.fusion(x.flatten(1), offsets)  # eq. 17
        else:
            spec = self.spec(self._adapted(self.adapt_spec, x, offsets).flatten(1), offsets)  # eq. 10
            each = [n(self._adapted(self._shared_adapt(k), x, offsets).flatten(1), offsets) for k, n in enumerate(self.shared)]
            domain = domain_of_rows(offsets, x.device)
            common = each[0]
            if self.share is not None:
                alpha = self.share(self.f_domain).softmax(-1)[domain]  # eq. 8
                common = (alpha[:, :, None] * torch.stack(each, 1)).sum(1)  # eq. 9
            fused = self.fusion(spec, common, self.f_domain, domain)
        out = self.forward_network(fused, offsets)  # eq. 18
        return out if self.gate is None else self.gate * out + x.sum(1)

    def adaptation_weights(self, x: Tensor, offsets: Sequence[int]) -> Tensor | None:
        """(N, fields) how much of each field passes: alpha of eq. 23 and 25, or the mean W of eq. 22."""
        layer = self.adapt or self.adapt_spec
        return None if layer is None else layer.weights(x, offsets)  # type: ignore[operator]

    def _shared_adapt(self, k: int) -> nn.Module | None:
        return None if not self.adapt_shared else self.adapt_shared[k]

    @staticmethod
    def _adapted(layer: nn.Module | None, x: Tensor, offsets: Sequence[int]) -> Tensor:
        return x if layer is None else layer(x, offsets)


class Adaptation(Stacked):
    """The domain interest adaptation layer: (N, fields, dim) -> (N, fields, dim).

    Args:
        kind: ``linear``, ``attention`` or ``se``.
        copies: D, each for its own domain's rows, or 1 for all rows.
        fields, dim: of the input.
    """

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias", "query")

    def __init__(self, kind: str, copies: int, fields: int, dim: int) -> None:
        super().__init__()
        self.kind, self.copies = kind, copies
        if kind == "linear":
            self.weight = nn.Parameter(torch.ones(copies, fields, dim))
            self.bias = nn.Parameter(torch.zeros(copies, fields, dim))
        elif kind == "attention":
            self.query = nn.Parameter(torch.randn(copies, fields, dim) * 0.1)
        else:
            self.squeeze = DomainLinear(copies, fields, max(fields // 2, 2))
            self.excite = DomainLinear(copies, max(fields // 2, 2), fields)
            nn.init.ones_(self.excite.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """Weighted fields, of the same shape."""
        if self.kind == "linear":
            domain = self._copy_of(x, offsets)
            return self.weight[domain] * x + self.bias[domain]  # eq. 22
        return self.weights(x, offsets)[:, :, None] * x  # eq. 24, 26

    def weights(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, fields)."""
        if self.kind == "linear":
            return self.weight.mean(-1)[self._copy_of(x, offsets)]
        if self.kind == "attention":
            return (self.query[self._copy_of(x, offsets)] * x).sum(-1).sigmoid()  # eq. 23
        bounds = offsets if self.copies > 1 else everybody(offsets)
        return self.excite(self.squeeze(x.mean(-1), bounds).relu(), bounds)  # eq. 25

    def _copy_of(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N,) which copy each row meets."""
        return domain_of_rows(offsets if self.copies > 1 else everybody(offsets), x.device)


class Network(nn.Module):
    """Linear, norm, ReLU for every layer; one copy per domain, or one for all rows.

    Args:
        domains: D.
        copies: D or 1.
        widths: of the input and of the layers.
        norm: see ``Norm``; statistics are a domain's own even where the layer is shared.
        dropout: share of activations dropped in training.
    """

    def __init__(self, domains: int, copies: int, widths: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        self.copies = copies
        self.layers = nn.ModuleList(DomainLinear(copies, i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(Norm(norm, domains, o) for o in widths[1:])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, last width)."""
        bounds = offsets if self.copies > 1 else everybody(offsets)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(norm(layer(x, bounds), offsets).relu())
        return x


class NetworkMul(Stacked):
    """Eq. 16: the layers of STAR, and a norm after each."""

    stacked: ClassVar[tuple[str, ...]] = ("weights", "biases")

    def __init__(self, domains: int, widths: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        self.shared = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(domains, o, i)) for i, o in pairwise(widths))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(domains, o)) for o in widths[1:])
        self.norms = nn.ModuleList(Norm(norm, domains, o) for o in widths[1:])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, last width)."""
        for shared, weight, bias, norm in zip(self.shared, self.weights, self.biases, self.norms, strict=True):
            x = self.dropout(norm(star_linear(x, offsets, shared, weight, bias), offsets).relu())  # type: ignore[arg-type]  # eq. 16
        return x


class Concat(Stacked):
    """Eq. 11-13."""

    stacked: ClassVar[tuple[str, ...]] = ("spec", "shared")

    def __init__(self, domains: int, dim: int, width: int) -> None:
        super().__init__()
        self.spec = nn.Parameter(torch.randn(domains, width, dim) * dim**-0.5)
        self.shared = nn.Parameter(torch.randn(domains, width, dim) * dim**-0.5)

    def forward(self, spec: Tensor, shared: Tensor, f_domain: Tensor, domain: Tensor) -> Tensor:
        """(N, width) twice -> (N, 3 * width)."""
        beta1 = torch.einsum("dwe,de->dw", self.spec, f_domain).sigmoid()[domain]  # eq. 11
        beta2 = torch.einsum("dwe,de->dw", self.shared, f_domain).sigmoid()[domain]  # eq. 12
        spec, shared = beta1 * spec, beta2 * shared
        return torch.cat([spec, spec * shared, shared], 1)  # eq. 13


class Sum(Stacked):
    """Eq. 14, 15."""

    stacked: ClassVar[tuple[str, ...]] = ("gate",)

    def __init__(self, domains: int, dim: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(domains, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, spec: Tensor, shared: Tensor, f_domain: Tensor, domain: Tensor) -> Tensor:
        """(N, width) twice -> (N, width)."""
        alpha = ((self.gate * f_domain).sum(-1) + self.bias).sigmoid()[domain, None]  # eq. 14
        return alpha * spec + (1 - alpha) * shared  # eq. 15


class Norm(nn.Module):
    """Batch norm with each domain's own statistics (eq. 20), with those of all rows (eq. 19), or none.

    Args:
        kind: ``domain``, ``batch`` or ``none``.
        domains, width: of the input.
    """

    def __init__(self, kind: str, domains: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = None if kind == "none" else DomainBatchNorm(domains if kind == "domain" else 1, width)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, width) -> (N, width)."""
        return x if self.norm is None else self.norm(x, offsets if self.kind == "domain" else everybody(offsets))


def everybody(offsets: Sequence[int]) -> tuple[int, int]:
    """Offsets for a layer that all domains share."""
    return (0, offsets[-1])
