"""Weights that a closed form fills in: tables looked up by sorted codes, of a size known only once solved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.batch import Batch
from isthmus.layers.drawing import alone, drawing, known
from isthmus.layers.growing import Growing, Rows

GATHER = 8  # reading one weight at random costs about as much as this many in sequence
WORKING_SET = 1 << 23  # most float32 values of one intermediate result (32 MiB)


def find(keys: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted key stands.

    Args:
        keys: (n,) int64, ascending, unique.
        wanted: (...) int64.

    Returns:
        (...) int64 positions in ``keys``; n where absent.
    """
    if keys.numel() == 0:
        return torch.zeros_like(wanted)
    place = torch.searchsorted(keys, wanted.contiguous()).clamp_max(keys.numel() - 1)
    return torch.where(keys[place] == wanted, place, keys.numel())


def rekeyed(keys: Tensor, old: int, new: int) -> Tensor:
    """Keys ``group * old + code`` (n,) as ``group * new + code``: codes stay, and there are more of them."""
    return keys // old * new + keys % old


class Solved(nn.Module):
    """A module whose buffers are filled by a closed form; loading a state takes the sizes that the state has."""

    def fill(self, **values: Tensor) -> None:
        """Replaces buffers by name, keeping each one's device and type."""
        for name, value in values.items():
            old = self.get_buffer(name)
            self._buffers[name] = value.to(old.device, old.dtype).contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, old in self._buffers.items():
            new = state_dict.get(prefix + name)
            if old is not None and new is not None and new.shape != old.shape:
                self._buffers[name] = torch.empty(new.shape, dtype=old.dtype, device=old.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PairTable(Solved, Growing):
    """A row of numbers for each known pair of a group and a code, and one row for all other pairs.

    Buffers: ``keys`` (n,) ``group * size + code``, ascending; ``rows`` (n + 1, width), the last one for unknown pairs.

    Args:
        size: codes are below it.
        width: numbers per pair.
    """

    keys: Tensor
    rows: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(1, width))

    def solve(self, keys: Tensor, rows: Tensor, other: Tensor) -> None:
        """Takes keys (n,) in any order, their rows (n, width) and the row (width,) of all other pairs."""
        order = keys.argsort()
        self.fill(keys=keys[order], rows=torch.cat([rows[order], other[None]]))

    def forward(self, group: Tensor, code: Tensor) -> Tensor:
        """Groups and codes (...) -> (..., width)."""
        return self.rows[find(self.keys, group * self.size + code)]

    def grow_from(self, old: PairTable) -> set[str]:
        """The same pairs, under the keys that they have where there are more codes."""
        self.fill(keys=rekeyed(old.keys, old.size, self.size), rows=old.rows)
        return {"keys", "rows"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing: a closed form fills it."""
        return {}


class ItemItem(Solved):
    """score(user, item) = sum of weight[j, item] over the items j of the user's profile, each as heavy as it is said to be.

    Buffers: ``codes`` (n,) the item codes that have weights, ascending; ``weight`` (n + 1, n + 1), whose last
    row and column are zero and stand for every other item.
    """

    codes: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("weight", torch.zeros(1, 1))

    def solve(self, codes: Tensor, weight: Tensor) -> None:
        """Takes the item codes (n,), ascending, and their weights (n, n): row = profile item, column = candidate."""
        self.fill(codes=codes, weight=F.pad(weight, (0, 1, 0, 1)))

    def forward(self, profile: Tensor, item: Tensor, heavy: Tensor | None = None) -> Tensor:
        """Scores candidates.

        Args:
            profile: (B, L) item codes; repeats count once, codes without weights not at all.
            item: (B, C) candidates.
            heavy: (B, L) float32 what each event counts, of repeats the largest; None: 1.

        Returns:
            (B, C) float32.
        """
        n = self.codes.numel()
        if known(profile.shape[1] == 0):
            return self.weight.new_zeros(item.shape)
        if heavy is None:
            place = find(self.codes, profile).sort(1).values
        else:
            heavy, order = heavy.sort(1, descending=True)
            place, again = find(self.codes, profile).gather(1, order).sort(dim=1, stable=True)
            heavy = heavy.gather(1, again)
        repeated = torch.cat([torch.zeros_like(place[:, :1], dtype=torch.bool), place[:, 1:] == place[:, :-1]], 1)
        place, column = place.masked_fill(repeated, n), find(self.codes, item)
        if drawing():  # the graph asks how many candidates there are
            few = item.shape[1] * GATHER <= n
            return torch.cond(few, self._gather, self._whole_rows, (place, column) if heavy is None else (place, column, heavy))
        few = item.shape[1] * GATHER <= n
        rows = max(1, WORKING_SET // (profile.shape[1] * item.shape[1] if few else n + 1))
        part = self._gather if few else self._whole_rows
        if len(place) <= rows:
            return part(place, column, heavy)
        heavies = [None] * len(place) if heavy is None else heavy.split(rows)
        return torch.cat([part(p, c, h) for p, c, h in zip(place.split(rows), column.split(rows), heavies, strict=False)])

    def _gather(self, place: Tensor, column: Tensor, heavy: Tensor | None = None) -> Tensor:
        """Few candidates: only their weights are read."""
        weight = self.weight[place[:, :, None], column[:, None, :]]
        return (weight if heavy is None else weight * heavy[:, :, None]).sum(1)

    def _whole_rows(self, place: Tensor, column: Tensor, heavy: Tensor | None = None) -> Tensor:
        """Many candidates: a sparse profile times the weights, for all items at once."""
        if drawing():
            found = F.embedding(place, self.weight)
            return (found if heavy is None else found * heavy[:, :, None]).sum(1).gather(1, column)
        every = F.embedding_bag(place, self.weight, mode="sum", padding_idx=self.codes.numel(), per_sample_weights=heavy)
        return every.gather(1, column)


class ItemToItem(nn.Module):
    """Item-to-item weights learnt from co-occurrence counts: a matrix per domain, or one over all domains.

    Args:
        domains: number of domains.
        across: one matrix, from the users and items of all domains; a user's events in other domains count too.
        max_items: items with weights per matrix, the most popular ones (float32: 4 n^2 bytes).
        decay: an event that is k events back in its history (own or cross) counts exp(-decay * k).
    """

    def __init__(self, domains: int, across: bool, max_items: int, decay: float = 0.0) -> None:
        super().__init__()
        self.across, self.max_items, self.decay = across, max_items, decay
        self.blocks = nn.ModuleList(ItemItem() for _ in range(1 if across else domains))

    def forward(self, batch: Batch) -> Tensor:
        """Scores (B, C) of a batch with both histories; a domain's own history alone unless ``across``."""
        assert batch.history is not None
        assert batch.cross_history is not None
        histories = [batch.history, batch.cross_history * int(self.across)]
        profile, heavy = torch.cat(histories, 1), None
        if self.decay:
            back = torch.cat([torch.arange(h.shape[1] - 1, -1, -1, device=h.device) for h in histories])
            heavy = torch.exp(-self.decay * back).expand_as(profile)
        only = alone(batch.offsets)
        if only is not None:
            return self.blocks[0 if self.across else only](profile, batch.item, heavy)
        bounds = (0, len(batch)) if self.across else batch.offsets
        rows = [(block, slice(a, b)) for block, a, b in zip(self.blocks, bounds, bounds[1:], strict=False)]
        return torch.cat([block(profile[own], batch.item[own], None if heavy is None else heavy[own]) for block, own in rows])

    def learn(self, positives: Callable[[int], sp.csr_matrix], domains: tuple[int, ...], weights: Callable[[Tensor], Tensor]) -> None:
        """Solves every matrix.

        Args:
            positives: domain index -> users x items; any positive entry is a 1.
            domains: domain indices to learn from.
            weights: (n, n) float32 counts of users who have both items -> (n, n) weights, row = profile item,
                column = candidate; may overwrite its argument.
        """
        groups = [domains] if self.across else [(d,) for d in domains]
        for group in groups:
            matrix = sum((positives(d) for d in group[1:]), start=positives(group[0]))
            codes, counts = co_occurrence(matrix, self.max_items)
            block = self.blocks[0 if self.across else group[0]]
            assert isinstance(block, ItemItem)
            block.solve(torch.from_numpy(codes), weights(torch.from_numpy(counts)))


def co_occurrence(matrix: sp.csr_matrix, max_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts the users who have both items.

    Args:
        matrix: users x items; any positive entry is a 1.
        max_items: keep this many items, those with most users (the lowest codes among equals).

    Returns:
        The item codes (n,) int64, ascending, and the counts (n, n) float32.
    """
    binary = sp.csr_matrix(matrix > 0, dtype=np.float32)
    users = np.asarray(binary.sum(0)).ravel()
    codes = np.argsort(-users, kind="stable")[:max_items]
    codes = np.sort(codes[users[codes] > 0]).astype(np.int64)
    kept = binary[:, codes]
    return codes, (kept.T @ kept).toarray()
