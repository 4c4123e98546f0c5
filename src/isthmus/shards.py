"""``Shards``: large tables split by rows over the ranks; row r lies on rank r % n, as row r // n of that rank's part.

Codes are ordered by falling frequency, so every rank gets as many frequent rows as any other.

Rows travel in rounds.  In a round each rank asks for rows of one tensor, whichever it needs next, or says that it is through, and
answers what the others ask; rounds end when all are through.  So ranks need not look up the same tables in the same order, or as
often: a rank may as well only answer, as the others do while rank 0 validates or writes.  Gradients stay with the rows looked up
until the backward pass is over; then they travel to their owners in one exchange, which sums them by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isthmus.errors import FitError
from isthmus.layers.table import Table
from isthmus.ranks import Ranks

BLOCK, LEAST = 1 << 22, 16  # numbers that travel at once where whole tables do, and those that a row counts for at least
THROUGH = -1  # asks for nothing more


@dataclass(frozen=True)
class ByRows:
    """A tensor whose rows lie on several ranks, read block by block.

    Attributes:
        shape, dtype: of the whole.
        read: (first, last) -> rows first to last - 1, on the CPU.
    """

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]

    def blocks(self) -> Iterator[Tensor]:
        """All rows, in order."""
        for first, last in _cuts(self.shape, 1):
            yield self.read(first, last)


class Shards:
    """The tables of a model that are split over the ranks; by default none.

    Args:
        ranks: over which.
        tables: which: whole ones, of one model; see ``split``.
    """

    def __init__(self, ranks: Ranks | None = None, tables: Sequence[Table] = ()) -> None:
        self.ranks, self.tables = ranks or Ranks(), tuple(tables)
        self._rows = {table.weight: table.rows for table in self.tables}
        self._served: list[Tensor] = []  # while open: what the ranks can ask for, in the same order on each
        self._numbers: dict[int, tuple[int, int]] = {}  # id of such a tensor -> its place there, and the rows of the whole
        self._looked_up: list[tuple[int, Tensor, Tensor]] = []  # in this step: table, rows (n,), vectors (n, dim)

    @classmethod
    def split(cls, model: nn.Module, ranks: Ranks) -> Shards:
        """Each rank keeps its rows of a model's large tables; the values are those of rank 0."""
        shards = cls(ranks, [module for module in model.modules() if isinstance(module, Table) and module.sparse])
        for number, table in enumerate(shards.tables):
            table.weight.data = shards._dealt(table.weight.data)
            table.fetch = partial(shards._fetch, number)
        return shards

    def __len__(self) -> int:
        return len(self.tables)

    def __contains__(self, weight: object) -> bool:
        return weight in self._rows

    @contextmanager
    def open(self, optimisers: Iterable[torch.optim.Optimizer] = ()) -> Iterator[None]:
        """All ranks enter the block, where each may look rows up, in an order of its own or not at all; none leaves it before all are
        through.

        Args:
            optimisers: whose states can be read too.
        """
        if not self.tables:
            yield
            return
        held = [*((weight, weight) for weight in self._rows), *self._states(optimisers)]
        self._served = [value.detach() for _, value in held]
        self._numbers = {id(value): (number, self._rows[weight]) for number, (weight, value) in enumerate(held)}
        try:
            yield
        except Exception:
            self._answer()  # the others go on, to hear what went wrong or to see that this rank is gone
            raise
        self._answer()

    def own(self, weight: Tensor, whole: Tensor) -> Tensor:
        """Of a tensor by rows of a weight this rank's rows; all of it where the weight is not split, or where it has no rows."""
        return whole[self.ranks.rank :: self.ranks.size].clone() if whole.dim() and weight in self else whole

    def whole(self, value: Tensor) -> Tensor | ByRows:
        """A weight or a state by rows as it is over all ranks, to be read while open; any other tensor as it is."""
        if id(value) not in self._numbers:
            return value
        number, rows = self._numbers[id(value)]

        def read(first: int, last: int) -> Tensor:
            return self._ask(number, torch.arange(first, last, device=self.ranks.device)).cpu()

        return ByRows(torch.Size([rows, *value.shape[1:]]), value.dtype, read)

    def unite(self, model: nn.Module, written: Mapping[str, Tensor] | None = None) -> None:
        """Every rank's tables are whole again, and all of the model on the CPU.

        Args:
            model: the one that was split.
            written: its whole weights by name, such as the memory maps of a file, which all processes of a machine share; None: they are
                asked of the other ranks, into memory of each one's own.
        """
        model.cpu()
        names = {module: f"{name}.weight" for name, module in model.named_modules()}
        for table in self.tables:
            table.weight.data = self._gathered(table) if written is None else written[names[table]]
            table.fetch = None

    def exchange(self) -> None:
        """The gradient of each rank's rows becomes their sum over the ranks; a table that no rank looked up in has none."""
        if not self.tables:
            return
        own = [self._gradient(number) for number in range(len(self.tables))]
        self._looked_up = []
        counts = torch.stack([count for count, _, _ in own], 1)  # (ranks, tables)
        size = [len(own)] * self.ranks.size
        heads = self._swapped(counts.flatten(), size, size).view(counts.shape)
        got, touched = heads.clamp_min(0).tolist(), (heads >= 0).any(0).tolist()
        rows = self._sent([part for _, part, _ in own], got, [1] * len(own))
        values = self._sent([part for _, _, part in own], got, [table.weight.shape[1] for table in self.tables])
        for table, row, value, some in zip(self.tables, rows, values, touched, strict=True):
            shape = table.weight.shape
            summed = torch.sparse_coo_tensor(row[None], value.view(-1, shape[1]), shape, check_invariants=False).coalesce()
            table.weight.grad = summed if some else None

    def _gathered(self, table: Table) -> Tensor:
        """All rows of a table."""
        with self.open():
            found = self.whole(table.weight)
            assert isinstance(found, ByRows)
            whole, first = torch.empty(found.shape, dtype=found.dtype), 0
            for block in found.blocks():
                whole[first : first + len(block)] = block
                first += len(block)
        return whole

    def _dealt(self, whole: Tensor) -> Tensor:
        """This rank's rows of rank 0's table."""
        rank, size = self.ranks.rank, self.ranks.size
        own = whole.new_empty(len(range(rank, len(whole), size)), *whole.shape[1:])
        for first, last in _cuts(whole.shape, size):
            block = whole[first:last].to(self.ranks.device)
            dist.broadcast(block, 0)
            part = block[rank::size]
            own[first // size : first // size + len(part)] = part
        return own

    def _states(self, optimisers: Iterable[torch.optim.Optimizer]) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights, and what optimisers hold for each of their rows."""
        weights = [(optimiser, p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"] if p in self]
        states = [(p, optimiser.state[p]) for optimiser, p in weights if p in optimiser.state]
        return [(p, state[key]) for p, state in states for key in sorted(state) if isinstance(state[key], Tensor) and state[key].dim()]

    def _gradient(self, number: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A table's gradient on this rank: how many rows of each owner (all -1: no gradient), and by owner rows of its part, and values."""
        found = [(rows, vectors.grad) for n, rows, vectors in self._looked_up if n == number and vectors.grad is not None]
        weight, size = self.tables[number].weight, self.ranks.size
        if not found:
            none = torch.zeros(0, dtype=torch.int64, device=weight.device)
            return none.new_full((size,), -1), (none,) * size, (weight.new_zeros(0),) * size
        index, value = torch.cat([rows for rows, _ in found])[None], torch.cat([grad for _, grad in found])
        width = weight.shape[1]
        summed = torch.sparse_coo_tensor(index, value, (self._rows[weight], width), check_invariants=False).coalesce()
        rows = summed.indices()[0]
        order, count = (rows % size).argsort(stable=True), (rows % size).bincount(minlength=size)
        cuts = count.tolist()
        return count, (rows // size)[order].split(cuts), summed.values()[order].flatten().split([n * width for n in cuts])

    def _sent(self, parts: Sequence[Sequence[Tensor]], got: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Tensor]:
        """What this rank has by table and owner -> what comes by table, in order of rank.

        Args:
            parts: by table and the rank that they go to.
            got: rows that come, by rank and table.
            widths: numbers of a row, by table.
        """
        given = [torch.cat([part[rank] for part in parts]) for rank in range(self.ranks.size)]
        sizes = [[n * width for n, width in zip(some, widths, strict=True)] for some in got]
        totals = [sum(some) for some in sizes]
        found = self._swapped(torch.cat(given), [len(part) for part in given], totals).split(totals)
        cut = [part.split(some) for part, some in zip(found, sizes, strict=True)]
        return [torch.cat([part[number] for part in cut]) for number in range(len(parts))]

    def _fetch(self, number: int, rows: Tensor) -> Tensor:
        """Rows (n,), each once, of a table -> their vectors (n, dim).

        Raises:
            FitError: the other ranks do not answer, because no training is under way.
        """
        weight = self.tables[number].weight
        if not self._served:
            came = f"a look-up in a table of which rank {self.ranks.rank} holds {len(weight)} of {self._rows[weight]} rows"
            raise FitError(came, "all ranks, in training", "use the model that fit returns, or read the run back with load_run")
        found = self._ask(number, rows) if len(rows) else weight.detach()[:0]
        if torch.is_grad_enabled() and weight.requires_grad:
            found.requires_grad_()
            self._looked_up.append((number, rows, found))
        return found

    def _ask(self, number: int, rows: Tensor) -> Tensor:
        """Rows (n,) of the whole of a served tensor, from wherever they lie."""
        size = self.ranks.size
        owner = rows % size
        order = owner.argsort(stable=True)
        found = self._round(number, (rows // size)[order], owner.bincount(minlength=size))
        assert found is not None
        return torch.empty_like(found).index_copy_(0, order, found)

    def _answer(self) -> None:
        """Answers until all ranks are through."""
        none = torch.zeros(self.ranks.size, dtype=torch.int64, device=self.ranks.device)
        while self._round(THROUGH, none[:0], none) is not None:
            pass
        self._served, self._numbers = [], {}

    def _round(self, number: int, rows: Tensor, asked: Tensor) -> Tensor | None:
        """One round.

        Args:
            number: of the served tensor that this rank asks for, or THROUGH.
            rows: (n,) of the owners' parts, ordered by owner.
            asked: (ranks,) how many of each owner.

        Returns:
            The rows asked for; None when all ranks are through.
        """
        size = self.ranks.size
        heads = self._swapped(torch.stack([torch.full_like(asked, number), asked], 1).flatten(), [2] * size, [2] * size).tolist()
        numbers, counts = heads[::2], heads[1::2]
        if all(other == THROUGH for other in numbers):
            return None
        given = asked.tolist()
        wanted = self._swapped(rows, given, counts).split(counts)
        answers = [self._read(other, some) for other, some in zip(numbers, wanted, strict=True)]
        kind = self._served[number] if number != THROUGH else rows
        width = kind.shape[1:].numel() * kind.element_size()
        found = self._swapped(torch.cat(answers), [len(answer) for answer in answers], [n * width for n in given])
        return found.view(kind.dtype).view(len(rows), *kind.shape[1:])

    def _read(self, number: int, rows: Tensor) -> Tensor:
        """Rows of this rank's part of a served tensor, as bytes: tensors of several kinds travel together."""
        if number == THROUGH:
            return rows.view(torch.uint8)
        part = self._served[number]
        return part.index_select(0, rows.to(part.device)).flatten().view(torch.uint8).to(rows.device)

    def _swapped(self, values: Tensor, given: list[int], got: list[int]) -> Tensor:
        """Every rank's part for this one, one after the other; each rank gives a part to each."""
        found = values.new_empty(sum(got))
        self.ranks.sent += values.nbytes
        dist.all_to_all_single(found, values, got, given)
        return found


def _cuts(shape: torch.Size, multiple: int) -> Iterator[tuple[int, int]]:
    """The first rows of blocks of at most BLOCK numbers, and those after their last ones; all but the last have a multiple of rows."""
    step = max(1, BLOCK // max(LEAST, shape[1:].numel()) // multiple) * multiple
    return ((first, min(first + step, shape[0])) for first in range(0, shape[0], step))
