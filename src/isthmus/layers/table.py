"""``Table``: an embedding table that is read and updated by the rows a batch touches, and its optimisers.

A dense optimiser sweeps the whole table at every step, whatever the batch: its cost grows with the number of
ids.  A large table here has sparse gradients, and its optimiser touches the rows of the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError, nearest
from isthmus.layers.growing import Growing, Rows, grow_rows, one_row_each

DENSE_LIMIT = 65_536  # numbers; a table up to this size is swept as fast as it is looked up
TABLE_LR = 4e-2  # row-wise Adagrad's rate: needs to be far above Adam's to reach the same quality
LAZY_ADAM_FACTOR = 4.0  # lazy Adam's rate over dense Adam's: its moments move only when a row is touched
TABLE_OPTIMISERS = ("auto", "adagrad", "adam", "dense")

_drawn = ContextVar("drawn", default=True)


@contextmanager
def undrawn() -> Iterator[None]:
    """Tables made in the block draw no first values, and so take no memory until they are given some."""
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


class Table(nn.Module):
    """Rows of embeddings; row 0 is padding and stays zero.

    Args:
        rows: number of codes, padding included.
        dim: width of a row.
        std: standard deviation of the start.
        sparse: gradients by touched rows; None: when rows * dim > DENSE_LIMIT.

    Raises:
        ConfigError: rows of less than no number.

    Attributes:
        rows: as given.
        fetch: (n,) different rows, none of them padding -> their vectors (n, dim): where ``weight`` holds some of the rows alone, see
            ``isthmus.shards``.
    """

    fetch: Callable[[Tensor], Tensor] | None = None

    def __init__(self, rows: int, dim: int, *, std: float = 0.01, sparse: bool | None = None) -> None:
        super().__init__()
        if dim < 0:
            raise ConfigError(f"a table whose rows have {dim} numbers", "0 or more", "correct it, or leave it out for the default")
        self.rows, self.sparse = rows, rows * dim > DENSE_LIMIT if sparse is None else sparse
        weight = torch.empty(rows, dim)
        if _drawn.get():
            weight.normal_(0.0, std)[:1] = 0.0
        self.weight = nn.Parameter(weight)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (...) int64 -> (..., dim); code 0 gives zeros and never learns."""
        weight, codes, sparse = self._here(codes)
        return F.embedding(codes, weight, padding_idx=None if sparse and _all_real(codes) else 0, sparse=sparse)

    def bag(self, codes: Tensor, offsets: Tensor | None = None, *, mode: str = "mean") -> Tensor:
        """Codes (n, L), or (N,) in bags that begin at offsets (n,) -> (n, dim), the mean or sum over what is not padding."""
        weight, codes, sparse = self._here(codes)
        return F.embedding_bag(codes, weight, offsets, mode=mode, padding_idx=0, sparse=sparse)

    def _here(self, codes: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Rows that hold what the codes ask for, where each code's row stands among them, and whether their gradient is sparse."""
        if self.fetch is None:
            return self.weight, codes, self.sparse
        rows, place = torch.cat([codes.new_zeros(1), codes.flatten()]).unique(return_inverse=True)
        found = self.fetch(rows[1:])
        return torch.cat([found.new_zeros(1, found.shape[1]), found]), place[1:].view(codes.shape), False

    def extra_repr(self) -> str:
        rows, dim = self.weight.shape
        return f"{rows}, {dim}, sparse={self.sparse}"


def _all_real(codes: Tensor) -> bool:
    """Whether it is known that no code is padding: then the gradient needs no search for it, which takes as long as the look-up."""
    return codes.device.type == "cpu" and torch.is_grad_enabled() and bool(codes.all())


class DomainTable(Table, Growing):
    """A row of numbers for each domain; domain d has row d + 1.

    Args:
        n: number of domains.
        dim: width of a row.
        std: standard deviation of the start.
    """

    def __init__(self, n: int, dim: int, *, std: float = 0.01) -> None:
        super().__init__(n + 1, dim, std=std)

    def grow_from(self, old: DomainTable) -> set[str]:
        """New domains start at the mean of the old ones."""
        grow_rows("weight", self.weight[1:], old.weight[1:])
        return {"weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' rows."""
        return {"weight": one_row_each(self.rows, [d + 1 for d in domains])}


def halved(name: str, tensor: Tensor) -> Tensor:
    """A tensor in half precision (float16).

    Raises:
        ConfigError: a number that is too large for it, or none.
    """
    half = tensor.half()
    if not bool(half.isfinite().all()):
        largest = f"{name} with numbers up to {tensor.abs().max():g}"
        raise ConfigError(largest, "65,504 at most in half precision", "keep single precision (leave out --half)")
    return half


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row: a table's optimiser state is 1/dim of the table.

    For every touched row i with gradient g:  w_i *= 1 - lr * decay;  s_i += mean(g^2);  w_i -= lr * g / (sqrt(s_i) + eps).
    (Duchi et al. 2011, with the accumulator averaged over the row as in DLRM.)

    Args:
        params: two-dimensional parameters; sparse and dense gradients both work.
        lr: learning rate.
        eps: added to the root.
        weight_decay: decoupled, of the rows touched.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = TABLE_LR, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        self._slots: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates the rows that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["eps"], group["weight_decay"])
        return loss

    def _summed(self, weight: nn.Parameter, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n,), each once and in any order, and their summed gradients (n, dim)."""
        if grad.is_coalesced() or grad.device.type != "cpu":
            grad = grad.coalesce()
            return grad.indices()[0], grad.values()
        # coalesce sorts.  Here every occurrence writes its place into its row's slot: the one that is read back stands for all of them.
        rows, values = grad._indices()[0], grad._values()
        if weight not in self._slots:
            self._slots[weight] = torch.empty(weight.shape[0], dtype=torch.int32)
        slot, place = self._slots[weight], torch.arange(len(rows), dtype=torch.int32)
        slot.index_put_((rows,), place)
        first = slot.index_select(0, rows)
        kept = (first == place).nonzero()[:, 0]
        summed = torch.zeros_like(values).index_add_(0, first.long(), values)  # twice as fast as by 32-bit places
        return rows.index_select(0, kept), summed.index_select(0, kept)

    def _update(self, weight: nn.Parameter, grad: Tensor, lr: float, eps: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["sum"] = weight.new_zeros(weight.shape[0])
        total = state["sum"]
        if grad.is_sparse:
            rows, values = self._summed(weight, grad)
            seen = total.index_select(0, rows) + values.square().mean(1)
            total.index_copy_(0, rows, seen)
            if decay:
                weight.index_add_(0, rows, weight.index_select(0, rows), alpha=-lr * decay)
            weight.index_add_(0, rows, values * (-lr / (seen.sqrt() + eps))[:, None])
        else:
            total += grad.square().mean(1)
            weight.mul_(1 - lr * decay)
            weight.addcmul_(grad, (-lr / (total.sqrt() + eps))[:, None])


class AdamW(torch.optim.AdamW):
    """torch's, which also takes gradients by touched rows: every look-up in a batch would else make, clear and add a gradient of its own
    for the whole table."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every weight that has a gradient, all rows of it."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if (grad := weight.grad) is not None and grad.is_sparse:
                    weight.grad = torch.zeros_like(weight).index_add_(0, grad._indices()[0], grad._values())
        super().step()
        return loss


_KIND = {"auto": RowwiseAdagrad, "adagrad": RowwiseAdagrad, "adam": torch.optim.SparseAdam}


def optimisers(
    model: nn.Module,
    lr: float,
    table_lr: float | None = None,
    table_optimiser: str = "auto",
    weight_decay: float = 0.0,
    weights: Iterable[nn.Parameter] | None = None,
    table_decay: float = 0.0,
    spared: Collection[nn.Parameter] = (),
    momentum: float = 0.9,
) -> tuple[list[torch.optim.Optimizer], list[str]]:
    """The optimisers of a model: one for its large tables, one for all the rest.

    Args:
        model: its ``Table`` modules with sparse gradients are the large tables.
        lr: rate of Adam(W) for everything else, small tables included.
        table_lr: rate for large tables, with ``dense`` for all; None: 4e-2 for row-wise Adagrad, 4 x lr for lazy Adam, lr for ``dense``.
        table_optimiser: ``auto`` and ``adagrad``: row-wise Adagrad; ``adam``: lazy Adam (torch's SparseAdam);
            ``dense``: every table dense with Adam.
        weight_decay: decoupled; reaches matrices alone: no table, bias or norm.
        weights: train only these; None: all that want a gradient.
        table_decay: decoupled decay of the tables: of the rows touched, or of all rows where a table is dense.
        spared: weights that never decay.
        momentum: of Adam(W): its first beta.

    Returns:
        The optimisers, and a line of text for each table and for the rest.

    Raises:
        ConfigError: no such table optimiser, or one that cannot decay.
    """
    if table_decay and table_optimiser == "adam":
        raise ConfigError("table_decay with lazy Adam", "an optimiser that can decay a table", 'table_optimiser="adagrad" or "dense"')
    if table_optimiser not in TABLE_OPTIMISERS:
        hint = nearest(table_optimiser, TABLE_OPTIMISERS)
        raise ConfigError(f"table optimiser {table_optimiser!r}", f"one of {TABLE_OPTIMISERS}", hint)
    if table_lr is None:
        table_lr = {"adam": LAZY_ADAM_FACTOR * lr, "dense": lr}.get(table_optimiser, TABLE_LR)
    dense_lr = table_lr if table_optimiser == "dense" else lr
    wanted = {id(p) for p in (model.parameters() if weights is None else weights) if p.requires_grad}
    tables: dict[int, nn.Parameter] = {}
    lines: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Table) and id(module.weight) in wanted:
            touched = module.sparse and table_optimiser != "dense"
            rows, dim = module.weight.shape
            kind = f"{_KIND[table_optimiser].__name__}, lr {table_lr:g}" if touched else f"dense with the rest, lr {dense_lr:g}"
            lines.append(f"table {name}: {rows:,} x {dim}, {kind}")
            if touched:
                tables[id(module.weight)] = module.weight
    rest = [p for p in model.parameters() if id(p) in wanted and id(p) not in tables]
    kept = {id(p) for p in spared}
    found: list[torch.optim.Optimizer] = []
    if tables:
        groups = [
            {"params": [p for p in tables.values() if id(p) not in kept], **({"weight_decay": table_decay} if table_decay else {})},
            {"params": [p for p in tables.values() if id(p) in kept]},
        ]
        betas = {"betas": (momentum, 0.999)} if table_optimiser == "adam" else {}
        found.append(_KIND[table_optimiser]([g for g in groups if g["params"]], lr=table_lr, **betas))
    if rest:
        found.append(_for_rest(model, rest, lr, weight_decay, {"lr": dense_lr, "weight_decay": table_decay}, kept, momentum))
        lines.append(f"rest: {sum(p.numel() for p in rest):,} weights, AdamW, lr {lr:g}, weight decay {weight_decay:g}")
    return found, lines


def _for_rest(
    model: nn.Module,
    weights: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    table: dict[str, float],
    spared: set[int],
    momentum: float,
) -> torch.optim.Optimizer:
    """AdamW, in groups: matrices, dense tables with settings of their own, and all that does not decay."""
    matrices = {id(p) for p in _matrices(model)} - spared
    tables = {id(m.weight) for m in model.modules() if isinstance(m, Table)}
    groups = [
        {"params": [p for p in weights if id(p) in matrices], "weight_decay": weight_decay},
        {"params": [p for p in weights if id(p) in tables - spared], **table},
        {"params": [p for p in weights if id(p) in tables & spared], **table, "weight_decay": 0.0},
        {"params": [p for p in weights if id(p) not in matrices | tables], "weight_decay": 0.0},
    ]
    betas = (momentum, 0.999)
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=weights[0].device.type in ("cpu", "cuda"))


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights that decay may shrink; a bias or a norm's gain per domain has the shape of a matrix and is none."""
    kept = {id(p) for m in model.modules() if isinstance(m, Table) or "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    return (p for name, p in model.named_parameters() if p.dim() > 1 and "bias" not in name and id(p) not in kept)
