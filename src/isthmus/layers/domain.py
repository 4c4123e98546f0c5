"""Layers that hold one copy per domain; rows arrive ordered by domain and meet their own copy only.

``offsets`` are D + 1 integers: domain d has rows ``offsets[d]:offsets[d + 1]``.  Nothing here computes a row in
another domain's copy, and an absent domain gets an exact zero gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.layers.drawing import alone
from isthmus.layers.dropout import Dropout
from isthmus.layers.growing import Growing, Rows, Stacked
from isthmus.layers.mlp import MLP

Offsets = Sequence[int]
FEW = 64  # rows a domain, on average, that are too few to fill a product of their own
PADDED = 2  # at most so many times as many rows as there are
CALL = 400_000  # what calling a product costs, in multiplications


def slices(offsets: Offsets) -> Iterator[tuple[int, int, int]]:
    """(domain, start, end) of every domain that has rows."""
    only = alone(offsets)
    if only is not None:
        yield only, 0, offsets[-1]
        return
    for domain, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end > start:
            yield domain, start, end


class _Together(NamedTuple):
    """All domains in one product, each padded to M rows.

    Attributes:
        shape: (D, M, -1).
        row: (D * M,) the row at each place; padding repeats its domain's last one, if it has any.
        live: (D * M, 1) 0 for padding, else 1.
        place: (N,) the place of each row.
        empty: domains without rows.
    """

    shape: tuple[int, int, int]
    row: Tensor
    live: Tensor
    place: Tensor
    empty: Tensor

    def lay(self, x: Tensor) -> Tensor:
        """(N, width) -> (D, M, width)."""
        return x.index_select(0, self.row).view(self.shape)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """(N, out) and (N, in) -> (D, out, in); exact zeros for the empty, whatever the others hold."""
        laid = grad.index_select(0, self.row).mul_(self.live).view(self.shape)
        return torch.bmm(laid.transpose(1, 2), self.lay(x)).index_fill_(0, self.empty, 0)

    def rows(self, laid: Tensor) -> Tensor:
        """(D, M, width) -> (N, width)."""
        return laid.flatten(0, 1).index_select(0, self.place)


@lru_cache(maxsize=64)  # a batch meets several layers, forwards and backwards
def _together(sizes: tuple[int, ...], numbers: int, device: torch.device) -> _Together | None:
    """How to multiply all domains, by matrices of so many numbers, at once: where that costs less than a product for each."""
    rows, most, domains = sum(sizes), max(sizes), len(sizes)
    if not 0 < rows < FEW * domains or domains * most > PADDED * rows or (domains * most - rows) * numbers > CALL * domains:
        return None
    size, nth = torch.tensor(sizes)[:, None], torch.arange(most)
    end, live = size.cumsum(0), (nth < size).flatten()
    row = (end - size + nth).minimum(end - 1).clamp_min(0).flatten()
    found = (row, live[:, None].float(), live.nonzero().squeeze(1), (size[:, 0] == 0).nonzero().squeeze(1))
    return _Together((domains, most, -1), *(tensor.to(device) for tensor in found))


class _Grouped(torch.autograd.Function):
    """A matrix product for each domain, or one for all, into storage made once: no graph node per domain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        out = _products(x, sizes, weight.transpose(1, 2))
        if bias is not None:
            out += bias[_domains(sizes, x.device)]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad, dx, dw, db = grad.contiguous(), None, None, None
        if ctx.needs_input_grad[0]:
            dx = _products(grad, ctx.sizes, weight)
        if ctx.needs_input_grad[2]:
            together = _together(ctx.sizes, weight[0].numel(), grad.device)
            if together is not None:
                dw = together.weight_gradient(grad, x)
            else:
                dw = torch.empty_like(weight)
                for g, rows, o in zip(grad.split(ctx.sizes), x.split(ctx.sizes), dw.unbind(), strict=True):
                    torch.mm(g.t(), rows, out=o)  # no rows: exact zeros
        if ctx.has_bias and ctx.needs_input_grad[3]:
            db = grad.new_zeros(weight.shape[:2]).index_add_(0, _domains(ctx.sizes, grad.device), grad)
        return dx, None, dw, db


def _products(x: Tensor, sizes: tuple[int, ...], weight: Tensor) -> Tensor:
    """Rows (N, in) of domains through their weights (D, in, out): (N, out)."""
    together = _together(sizes, weight[0].numel(), x.device)
    if together is not None:
        return together.rows(torch.bmm(together.lay(x), weight))
    out = x.new_empty(x.shape[0], weight.shape[2])
    # views are made by one call each: slicing in Python would cost as much as the products
    for rows, w, o in zip(x.split(sizes), weight.unbind(), out.split(sizes), strict=True):
        torch.mm(rows, w, out=o)
    return out


def _domains(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The domain of each row, from the number of rows of each domain."""
    counts = torch.tensor(sizes, device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(counts, output_size=sum(sizes))


def domain_of_rows(offsets: Offsets, device: torch.device) -> Tensor:
    """The domain of each row, (N,) int64, ascending."""
    only = alone(offsets)
    if only is not None:
        return torch.full((offsets[-1],), only, device=device)
    return _domains([end - start for start, end in itertools.pairwise(offsets)], device)


def grouped_linear(x: Tensor, offsets: Offsets, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every domain's rows through its own linear layer.

    Args:
        x: (N, in), rows ordered by domain.
        offsets: D + 1 bounds.
        weight: (D, out, in).
        bias: (D, out) or None.

    Returns:
        (N, out).

    Raises:
        ValueError: offsets of other rows or domains.
    """
    only = alone(offsets)
    if only is not None:
        return F.linear(x, weight[only], None if bias is None else bias[only])
    if len(offsets) != len(weight) + 1 or offsets[-1] != len(x):
        raise ValueError(f"offsets of {len(offsets) - 1} domains and {offsets[-1]} rows, not of {len(weight)} and {len(x)}")
    sizes = tuple(end - start for start, end in itertools.pairwise(offsets))
    if torch.is_autocast_enabled(x.device.type):  # which does not reach into a function of our own
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    return cast("Tensor", _Grouped.apply(x, sizes, weight, bias))


class DomainLinear(Stacked):
    """A linear layer per domain: one stacked weight (D, out, in).

    Args:
        n: number of domains.
        width: of the input.
        out: of the output.
        bias: with a bias per domain.
    """

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, n: int, width: int, out: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(n, out, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """(N, in) -> (N, out)."""
        return grouped_linear(x, offsets, self.weight, self.bias)

    def specialise(self, domain: int) -> nn.Linear:
        """Domain ``domain``'s layer alone, on a copy of its weights."""
        _, out, width = self.weight.shape
        plain = nn.Linear(width, out, bias=self.bias is not None)
        with torch.no_grad():
            plain.weight.copy_(self.weight[domain])
            if self.bias is not None:
                plain.bias.copy_(self.bias[domain])
        return plain


class DomainBatchNorm(Stacked):
    """Batch normalisation with statistics of each domain's own rows (DSBN, Chang et al. 2019).

    A domain with no row in the batch is untouched.  One row has no variance: it is normalised with the running
    statistics and does not move them.

    Args:
        n: number of domains.
        width: of the input.
        affine: a gain and an offset per domain.
        momentum: weight of the new batch in the running statistics.
    """

    stacked: ClassVar[tuple[str, ...]] = ("weight", "bias", "running_mean", "running_var")
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n: int, width: int, *, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(n, width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(n, width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(n, width))
        self.register_buffer("running_var", torch.ones(n, width))

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """(N, width) -> (N, width)."""
        x = x.to(self.running_mean.dtype)
        mean, var, domain = self.running_mean, self.running_var, None if self.training else alone(offsets)
        if domain is None:
            sizes = [end - start for start, end in itertools.pairwise(offsets)]
            count, domain = torch.tensor(sizes, device=x.device), _domains(sizes, x.device)
            mean, var = self._own(x, domain, count) if self.training else (mean, var)
        out = (x - mean[domain]) * (var + self.eps).rsqrt()[domain]
        if self.weight is None or self.bias is None:
            return out
        return out * self.weight[domain] + self.bias[domain]

    def _own(self, x: Tensor, domain: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Each domain's mean and variance: of its rows when it has two or more, else the running ones."""
        n = count.clamp_min(1)[:, None]
        mean = torch.zeros_like(self.running_mean).index_add(0, domain, x) / n
        var = torch.zeros_like(self.running_var).index_add(0, domain, (x - mean[domain]).square()) / n
        own = count[:, None] > 1
        with torch.no_grad():
            step = (self.momentum * own).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(var * n / (n - 1).clamp_min(1), step)  # unbiased, as in torch
        return torch.where(own, mean, self.running_mean), torch.where(own, var, self.running_var)

    def specialise(self, domain: int) -> nn.BatchNorm1d:
        """Domain ``domain``'s norm alone, on copies, in evaluation mode."""
        plain = nn.BatchNorm1d(self.running_mean.shape[1], eps=self.eps, momentum=self.momentum, affine=self.weight is not None)
        with torch.no_grad():
            if self.weight is not None and self.bias is not None:
                plain.weight.copy_(self.weight[domain])
                plain.bias.copy_(self.bias[domain])
        plain.running_mean = self.running_mean[domain].clone()
        plain.running_var = self.running_var[domain].clone()
        return plain.eval()


class DomainMLP(nn.Module):
    """An MLP per domain, as stacked layers.

    Args:
        n: number of domains.
        width: of the input.
        hidden: widths of the hidden layers.
        out: width of the output; None: the last hidden layer's activation is the output.
        dropout: share of activations dropped in training.
        norm: batch norm per domain after each hidden layer.  A choice with a cost in quality where a domain is
            small: its statistics come from its own few rows.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    def __init__(self, n: int, width: int, hidden: Sequence[int], *, out: int | None = 1, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.widths = widths = [width, *hidden]
        self.layers = nn.ModuleList(DomainLinear(n, i, o) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(DomainBatchNorm(n, o) for o in hidden) if norm else None
        self.dropout = Dropout(dropout)
        self.last = None if out is None else DomainLinear(n, widths[-1], out)
        self.width = widths[-1] if out is None else out

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """(N, width) -> (N, out or last hidden width)."""
        for i, layer in enumerate(self.layers):
            x = layer(x, offsets)
            if self.norms is not None:
                x = self.norms[i](x, offsets)
            x = self.dropout(x.relu())
        return x if self.last is None else self.last(x, offsets)

    def specialise(self, domain: int) -> MLP:
        """Domain ``domain``'s MLP alone, on copies of its weights."""
        out = None if self.last is None else self.width
        plain = MLP(self.widths[0], self.widths[1:], dropout=self.dropout.share, norm=None if self.norms is None else "batch", out=out)
        linear = [cast("DomainLinear", m).specialise(domain) for m in [*self.layers, *([self.last] if self.last is not None else [])]]
        norms = [] if self.norms is None else [cast("DomainBatchNorm", m).specialise(domain) for m in self.norms]
        for kind, found in ((nn.Linear, linear), (nn.BatchNorm1d, norms)):
            places = [m for m in plain.layers if isinstance(m, kind)]
            for place, one in zip(places, found, strict=True):
                place.load_state_dict(one.state_dict())
        return plain.train(self.training)


class PerDomain(Growing):
    """A copy of any module per domain, each run on its own contiguous slice.

    Args:
        n: number of domains.
        make: makes one copy; must map (N, in) to (N, out).
    """

    def __init__(self, n: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(make() for _ in range(n))

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """(N, in) -> (N, out)."""
        parts = [self.copies[d](x[a:b]) for d, a, b in slices(offsets)]
        return torch.cat(parts) if parts else self.copies[0](x)

    def specialise(self, domain: int) -> nn.Module:
        """Domain ``domain``'s copy alone."""
        return self.copies[domain]

    def grow_from(self, old: PerDomain) -> set[str]:
        """New domains' copies start at the mean of the old ones; whole numbers, such as counts of batches, at the first's."""
        states = [copy.state_dict() for copy in old.copies]
        mean = {k: torch.stack([s[k] for s in states]).mean(0) if v.is_floating_point() else v for k, v in states[0].items()}
        fresh = range(len(old.copies), len(self.copies))
        for n in fresh:
            self.copies[n].load_state_dict(mean)
        return {f"copies.{n}.{name}" for n in fresh for name in mean}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' copies."""
        return {f"copies.{d}.{name}": None for d in domains for name in self.copies[d].state_dict()}


class Experts(Stacked):
    """E MLPs of one shape on the same rows, as batched matrix products.

    Args:
        n: number of experts.
        width: of the input.
        hidden: widths of their layers; the last one is the output.
        dropout: share of activations dropped in training.
        per_domain: there is one for each domain.

    Raises:
        ConfigError: a dropout outside [0, 1).
    """

    stacked: ClassVar[tuple[str, ...]] = ("weights", "biases")

    def __init__(self, n: int, width: int, hidden: Sequence[int], *, dropout: float = 0.0, per_domain: bool = False) -> None:
        super().__init__()
        widths = [width, *hidden]
        self.n, self.dropout, self.width, self.per_domain = n, Dropout(dropout), widths[-1], per_domain
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for i, o in itertools.pairwise(widths):
            bound = 1 / math.sqrt(i)
            self.weights.append(nn.Parameter(torch.empty(n, o, i).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(n, o).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, E, last hidden width)."""
        first, *rest = zip(self.weights, self.biases, strict=True)
        # every expert reads the same rows: the first layer is one wide product
        h = F.linear(x, first[0].flatten(0, 1), first[1].flatten()).view(x.shape[0], self.n, first[0].shape[1])
        h = self.dropout(h.relu())
        for weight, bias in rest:
            h = torch.baddbmm(bias[:, None], h.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            h = self.dropout(h.relu())
        return h

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' MLPs, where each has one."""
        return super().rows_of(domains, items) if self.per_domain else {}
