"""``Ranks``: the processes that train one model together, as ``torchrun`` starts them.

Every rank holds the whole model, but for tables that are split (``isthmus.shards``), and computes a part of each batch
(``Plan.rank``).  After the backward pass gradients are summed over the ranks: dense ones as one vector, those of tables by touched rows
alone.  All ranks then take the same step, so that their weights stay the same, bit for bit; rank 0 validates, keeps and writes.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isthmus.errors import FitError, FollowerError

T = TypeVar("T")

WAIT = datetime.timedelta(hours=2)  # for the slowest rank: rank 0 validates and writes while the others wait
NONE, DENSE, SPARSE = range(3)  # what gradient a weight has


@dataclass
class Ranks:
    """This process's place among those that train together; one process alone is rank 0 of 1.

    Attributes:
        rank: of this process.
        size: how many there are.
        device: of the tensors that are exchanged.
        sent: bytes that this rank gave to the exchange of gradients and of rows so far.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sent: int = 0

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """The place that ``torchrun`` gave to this process, or a process alone.  Whoever joined leaves when the process ends.

        Raises:
            FitError: the other ranks cannot be reached.
        """
        if not dist.is_available() or (not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
            return cls(device=device)
        if not dist.is_initialized():
            # Its functions' default arguments keep the group that there is when it is imported, as torch's optimisers do later on.  A
            # group that is kept has threads when Python ends, and one of them that then lets go of a tensor aborts the process.
            importlib.import_module("torch.distributed.nn.functional")
            try:
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
            except (ValueError, RuntimeError) as error:
                came = f"WORLD_SIZE = {os.environ['WORLD_SIZE']}, but the other ranks cannot be reached ({error})"
                raise FitError(came, "the environment that torchrun makes", "start with torchrun, or unset WORLD_SIZE") from error
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Is this the rank that validates, writes and speaks?"""
        return self.rank == 0

    def told(self, work: Callable[[], T], within: AbstractContextManager[None] | None = None) -> T:
        """What rank 0 finds; plain values that JSON has.

        Args:
            work: done on rank 0 alone.
            within: a block that all ranks enter, rank 0 to work and the others to answer it.

        Raises:
            FollowerError: rank 0 failed at it; there, what went wrong.
        """
        if self.size == 1:
            return work()
        within = within or nullcontext()
        if self.first:
            try:
                with within:
                    found = work()
            except BaseException as error:
                self._say({"failed": str(error) or type(error).__name__})
                raise
            self._say({"found": found})
            return found
        with within:
            pass
        said = self._say(None)
        if "failed" in said:
            raise FollowerError(f"rank 0 failed: {said['failed']}", "a training that runs on all ranks", "see what rank 0 says")
        return said["found"]

    def seed(self, *place: int) -> None:
        """Torch's generators depend on the place in the training and on the rank alone: whoever goes on there draws the same."""
        if self.size > 1:
            digest = hashlib.blake2b(repr((*place, self.rank)).encode(), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(digest, "big") >> 1)

    def align(self, model: nn.Module, apart: Container[Tensor] = ()) -> None:
        """Every rank's model becomes that of rank 0, but for weights that each has a part of."""
        if self.size > 1:
            for tensor in (held.detach() for held in model.state_dict(keep_vars=True).values() if held not in apart):
                if tensor.numel():
                    dist.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def exchange(self, model: nn.Module, asked: bool = False, apart: Container[Tensor] = ()) -> bool:
        """Sums gradients over the ranks, and takes the mean of running statistics.

        A weight that no rank has a gradient for keeps none, so that its optimiser lets it be.

        Args:
            model: the same one on every rank.
            asked: anything that all ranks must know at once.
            apart: weights whose gradient is the sum already.

        Returns:
            Whether any rank asked.
        """
        if self.size == 1:
            return asked
        held = [p for p in model.parameters() if p.requires_grad and p not in apart]
        kind = torch.tensor([NONE if p.grad is None else SPARSE if p.grad.is_sparse else DENSE for p in held] + [int(asked)])
        kind = kind.to(self.device)
        dist.all_reduce(kind, dist.ReduceOp.MAX)
        *kinds, any_asked = kind.tolist()
        self._dense([p for p, k in zip(held, kinds, strict=True) if k == DENSE], _moving(model))
        self._sparse([p for p, k in zip(held, kinds, strict=True) if k == SPARSE])
        return bool(any_asked)

    def _dense(self, weights: Sequence[nn.Parameter], moving: Sequence[Tensor]) -> None:
        """One vector for all."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights] + [value / self.size for value in moving]
        if not parts:
            return
        flat = torch.cat([part.flatten() for part in parts])
        self.sent += flat.nbytes
        dist.all_reduce(flat)
        found = flat.split([part.numel() for part in parts])
        for p, values in zip(weights, found, strict=False):
            p.grad = values.view_as(p)
        for old, values in zip(moving, found[len(weights) :], strict=True):
            old.copy_(values.view_as(old))

    def _sparse(self, weights: Sequence[nn.Parameter]) -> None:
        """Rows and values of all ranks, one after the other in order of rank: summed in the same order everywhere."""
        if not weights:
            return
        own = [_coalesced(p) for p in weights]
        counts = torch.tensor([g.indices().shape[1] for g in own], device=self.device)
        sizes = [torch.empty_like(counts) for _ in range(self.size)]
        dist.all_gather(sizes, counts)
        number = [size.tolist() for size in sizes]  # of rows, by rank and weight
        width = [p.shape[1] for p in weights]
        rows = self._gathered(torch.cat([g.indices()[0] for g in own]), [sum(size) for size in number])
        values = self._gathered(
            torch.cat([g.values().flatten() for g in own]), [sum(n * w for n, w in zip(size, width, strict=True)) for size in number]
        )
        cut_rows = [part.split(size) for part, size in zip(rows, number, strict=True)]
        cut_values = [part.split([n * w for n, w in zip(size, width, strict=True)]) for part, size in zip(values, number, strict=True)]
        for n, p in enumerate(weights):
            index = torch.cat([part[n] for part in cut_rows])[None]
            value = torch.cat([part[n] for part in cut_values]).view(-1, width[n])
            p.grad = torch.sparse_coo_tensor(index, value, p.shape, check_invariants=False).coalesce()

    def _gathered(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's vector; shorter ones travel as long as the longest."""
        longest = max(sizes)
        sent = own.new_zeros(longest)
        sent[: len(own)] = own
        found = [torch.empty_like(sent) for _ in sizes]
        if longest:
            self.sent += sent.nbytes
            dist.all_gather(found, sent)
        return [part[:size] for part, size in zip(found, sizes, strict=True)]

    def _say(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0 speaks, the others listen."""
        text = b"" if value is None else json.dumps(value).encode()
        size = torch.tensor(len(text), device=self.device)
        dist.broadcast(size, 0)
        body = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(int(size), dtype=torch.uint8)
        body = body.to(self.device)
        dist.broadcast(body, 0)
        return json.loads(bytes(body.tolist()))


def _coalesced(p: nn.Parameter) -> Tensor:
    """A table's gradient with each row once; of none, one without rows."""
    if p.grad is None:
        empty = torch.zeros(1, 0, dtype=torch.int64, device=p.device)
        return torch.sparse_coo_tensor(empty, p.new_zeros(0, p.shape[1]), p.shape, check_invariants=False).coalesce()
    return p.grad.coalesce()


def _moving(model: nn.Module) -> list[Tensor]:
    """The running statistics of a model's norms, which training moves without a gradient."""
    return [
        value
        for module in model.modules()
        if module.training
        for name in ("running_mean", "running_var")
        if isinstance(value := getattr(module, name, None), Tensor)
    ]
