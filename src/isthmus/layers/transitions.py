"""``Transitions``: how often an item comes soon after another in users' sequences; as large as what was seen, never items x items."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.layers.drawing import drawing, known
from isthmus.layers.solved import GATHER, WORKING_SET, Solved, find

Integers = NDArray[np.int64]


class Transitions(Solved):
    """score(i) = sum over events j of weight_j * n(j -> i) / (n(j) + shrink), in one of several groups of sequences.

    n(j) counts the events of j; n(j -> i) those of i up to ``window`` events later in the sequence, each 1 / distance.

    Buffers, of N pairs that were seen: ``keys`` (N,) ``(group * size + j) * size + i``, ascending; ``rate`` (N + 1,), the
    last one 0 for all other pairs.

    Args:
        size: item codes are below it.
    """

    keys: Tensor
    rate: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("rate", torch.zeros(1))

    def solve(self, group: Integers, user: Integers, item: Integers, *, window: int, shrink: float) -> None:
        """Counts.

        Args:
            group, user, item: (n,) events; those of one group and user are a sequence, and stand together in its order.
            window: how far apart two events may be, at least 1.
            shrink: events that n(j) is moved up by.
        """
        source, groups = group * self.size + item, int(group.max(initial=0)) + 1
        sequence = np.cumsum((np.diff(group, prepend=group[:1]) != 0) | (np.diff(user, prepend=user[:1]) != 0))
        near = sp.csr_matrix((groups * self.size, self.size))
        for apart in range(1, window + 1):
            same = sequence[apart:] == sequence[:-apart]
            pair = source[:-apart][same], item[apart:][same]
            near = sp.csr_matrix(near + sp.csr_matrix((np.full(len(pair[0]), 1 / apart), pair), shape=near.shape))
        near.sort_indices()
        events, found = np.bincount(source, minlength=groups * self.size), near.tocoo()
        keys = found.row.astype(np.int64) * self.size + found.col
        rate = np.append(found.data / (events[found.row] + shrink), 0.0)
        self.fill(keys=torch.from_numpy(keys), rate=torch.from_numpy(rate))

    def forward(self, group: Tensor, event: Tensor, weight: Tensor, item: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            group: (B,) whose sequences speak.
            event: (B, W) item codes; those that nothing followed, such as padding, say nothing.
            weight: (W,) float32 of the columns.
            item: (B, C) candidates.

        Returns:
            (B, C) float32.
        """
        first = (group[:, None] * self.size + event) * self.size  # key of the pair of an event and item 0
        few = known(item.shape[1] * event.shape[1] * GATHER <= self.size)
        return self._search(first, weight, item) if few else self._whole(first, weight, item)

    def _search(self, first: Tensor, weight: Tensor, item: Tensor) -> Tensor:
        """Few candidates: only their pairs are looked up."""
        rows = max(1, WORKING_SET // max(first.shape[1] * item.shape[1], 1))
        parts = zip(first.split(rows), item.split(rows), strict=True)
        return torch.cat([(self.rate[find(self.keys, f[:, :, None] + i[:, None])] * weight[:, None]).sum(1) for f, i in parts])

    def _whole(self, first: Tensor, weight: Tensor, item: Tensor) -> Tensor:
        """Many candidates: all that follows the events, item by item, then the candidates' part of it."""
        begin, end = torch.searchsorted(self.keys, torch.stack([first, first + self.size]))
        score = self.rate.new_empty(item.shape)
        for a, b in self._blocks(end - begin):
            length, columns = (end - begin)[a:b].flatten(), first.shape[1]
            slot = torch.arange(length.shape[0], device=length.device).repeat_interleave(length)
            pair = torch.arange(slot.shape[0], device=slot.device) + (begin[a:b].flatten() - length.cumsum(0) + length)[slot]
            row, column = slot // max(columns, 1), slot % max(columns, 1)
            place = self.keys[pair] - first[a:b].flatten()[slot] + row * self.size
            every = score.new_zeros((b - a) * self.size).index_add_(0, place, self.rate[pair] * weight[column])
            score[a:b] = every.view(b - a, self.size).gather(1, item[a:b])
        return score

    def _blocks(self, length: Tensor) -> list[tuple[int, int]]:
        """Ranges of rows, each of about the working set or one row, by how many pairs (B, W) their events have."""
        if drawing():
            return [(0, length.shape[0])]
        cost = length.sum(1) + self.size
        block = (cost.cumsum(0) - cost) // WORKING_SET
        ends = torch.unique_consecutive(block, return_counts=True)[1].cumsum(0).tolist()
        return list(itertools.pairwise([0, *ends]))
