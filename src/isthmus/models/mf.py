"""Matrix factorisation by alternating least squares.

Positives (Hu, Koren, Volinsky, ICDM 2008): p = 1 where the user has the item and 0 elsewhere, confidence
c = 1 + alpha * count, and x, y minimise sum of c (p - x'y)^2 + l2 (sum_u c_u |x_u|^2 + sum_i c_i |y_i|^2), where c_u and c_i
are a user's and an item's summed confidences.  Ratings (Koren, Bell, Volinsky, Computer 2009; penalty of Zhou et al., AAIM
2008): r = domain mean + b_u + b_i + x'y over the known ones, each penalty times the number of ratings.

Deviation: the penalty on positives grows with confidence too, so that one l2 serves small and large domains.  A user without
training events in the domain gets the items' popularity (positives) or biases (ratings).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.solved import WORKING_SET, PairTable
from isthmus.model import Retriever, Stage
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class MF(Retriever):
    """Factors of users and items, per domain or pooled.

    The vectors have ``dim + 2`` numbers: user [x, 1 where the item's bias counts, her bias], item [y, bias, 1].

    Args:
        dim: number of factors.
        l2: penalty, above 0; None: 0.03 for positives, 0.2 for ratings.
        confidence: alpha, above 0; one number, or one per domain.
        epochs: passes over users and items.
        across: one factorisation of all domains; False: each domain its own.
        explicit: factor the ratings rather than the positives; None: when labels are ratings.
        seed: of the first item factors.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str] = "Collaborative Filtering for Implicit Feedback Datasets (Hu, Koren, Volinsky, ICDM 2008)"
    tasks: ClassVar[tuple[str, ...]] = ("rating", "retrieval", "next_item")
    shallow: ClassVar[bool] = True
    mean: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        l2: float | None = None,
        confidence: float | Sequence[float] = 40.0,
        epochs: int = 10,
        across: bool = False,
        explicit: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(schema)
        n = len(schema.domains)
        self.explicit = schema.label == "rating" if explicit is None else explicit
        self.l2 = l2 if l2 is not None else 0.2 if self.explicit else 0.03
        self.confidence = [float(c) for c in confidence] if isinstance(confidence, Sequence) else [float(confidence)] * n
        if self.explicit and schema.label == "implicit":
            raise ConfigError("explicit factors of implicit data", "data with labels", "leave explicit out")
        if self.l2 <= 0 or len(self.confidence) != n or min(self.confidence, default=1.0) <= 0:
            raise ConfigError(f"l2 = {l2}, confidence = {confidence}", f"l2 above 0; one confidence, or {n}, above 0", "correct them")
        self.dim, self.epochs, self.across, self.seed = dim, epochs, across, seed
        self.users = PairTable(schema.user.size, dim + 2)
        self.items = PairTable(schema.item.size, dim + 2)
        self.register_buffer("mean", torch.zeros(n))

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2)."""
        vector = self.users(self._group(batch.domain), batch.user)
        return torch.cat([vector[:, :-1], vector[:, -1:] + self.mean[batch.domain][:, None]], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        return self.items(self._group(domain), item)

    def stages(self) -> list[Stage]:
        """All alternations."""
        return [Stage("alternating least squares", solve=self._solve)]

    def _group(self, domain: Tensor) -> Tensor:
        return domain * int(not self.across)

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        read = self._ratings if self.explicit else self._confidences
        mean = torch.zeros(len(self.schema.domains))
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for group in [domains] if self.across else [(d,) for d in domains]:
            matrix = read(dataset, group, mean)
            users, items = np.flatnonzero(np.diff(matrix.indptr)), np.unique(matrix.indices).astype(np.int64)
            x, y = self._factors(sp.csr_matrix(matrix[users][:, items]))
            base = 0 if self.across else group[0]
            user_key, item_key = users + base * self.schema.user.size, items + base * self.schema.item.size
            found.append((torch.from_numpy(user_key), x, torch.from_numpy(item_key), y))
        other = torch.zeros(self.dim + 2)
        user_keys, x, item_keys, y = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.users.solve(user_keys, x, other.index_fill(0, torch.tensor(self.dim), 1.0))
        self.items.solve(item_keys, y, other.index_fill(0, torch.tensor(self.dim + 1), 1.0))
        self.mean = mean.to(self.mean)

    def _confidences(self, dataset: Dataset, group: tuple[int, ...], mean: Tensor) -> sp.csr_matrix:
        """alpha * count of the positives, users x items."""
        first, *rest = (dataset.positives(d) * self.confidence[d] for d in group)
        return sp.csr_matrix(sum(rest, start=first))

    def _ratings(self, dataset: Dataset, group: tuple[int, ...], mean: Tensor) -> sp.csr_matrix:
        """Ratings less their domain's mean (averaged where one is repeated), users x items; fills in the means."""
        rows, parts = dataset.part("train"), []
        assert rows.label is not None
        for d in group:
            own = rows.of(d)
            label = np.asarray(rows.label[own], np.float64)
            mean[d] = float(label.mean()) if len(label) else 0.0
            parts.append(np.stack([rows.user[own], rows.item[own], label - float(mean[d])]))
        user, item, value = np.concatenate(parts, 1)
        key, where = np.unique(user.astype(np.int64) * self.schema.item.size + item.astype(np.int64), return_inverse=True)
        average = np.bincount(where, value) / np.bincount(where)
        shape = (self.schema.user.size, self.schema.item.size)
        return sp.csr_matrix((average.astype(np.float32), (key // shape[1], key % shape[1])), shape=shape)

    def _factors(self, matrix: sp.csr_matrix) -> tuple[Tensor, Tensor]:
        """Alternates: users x items, no row or column empty -> user rows (U, dim + 2), item rows (I, dim + 2)."""
        flipped, users, items = sp.csr_matrix(matrix.T), len(matrix.indptr) - 1, int(matrix.indices.max(initial=-1)) + 1
        solve = least_squares_ratings if self.explicit else least_squares_positives
        width = self.dim + int(self.explicit)
        y = torch.randn(items, width, generator=torch.Generator().manual_seed(self.seed)) * 0.1
        if self.explicit:
            y[:, -1] = 0.0
        x = y.new_zeros(users, width)
        for _ in range(self.epochs):
            x = solve(matrix, y, self.l2)
            y = solve(flipped, x, self.l2)
        if self.explicit:
            one = torch.ones(max(users, items), 1)
            return torch.cat([x[:, :-1], one[:users], x[:, -1:]], 1), torch.cat([y, one[:items]], 1)
        count = torch.from_numpy(np.diff(flipped.indptr)).float()[:, None]
        return torch.cat([x, x.new_zeros(users, 2)], 1), torch.cat([y, (1 + count).log(), torch.ones(items, 1)], 1)


def least_squares_positives(matrix: sp.csr_matrix, y: Tensor, l2: float) -> Tensor:
    """Best factors of every row given the columns' factors ``y`` (m, k): c = 1 + entry, p = 1 at entries, (n, k)."""
    gram = y.T @ y + l2 * len(y) * torch.eye(y.shape[1])
    return _solve_rows(matrix, y, gram, matrix.data, 1 + matrix.data, l2 * np.asarray(matrix.sum(1)).ravel())


def least_squares_ratings(matrix: sp.csr_matrix, y: Tensor, l2: float) -> Tensor:
    """Best factors and bias of every row given those of the columns, ``y`` (m, k + 1) with the bias last, (n, k + 1)."""
    target = matrix.data - y[:, -1].numpy()[matrix.indices]
    feature = torch.cat([y[:, :-1], torch.ones(len(y), 1)], 1)
    empty = torch.zeros(y.shape[1], y.shape[1])
    return _solve_rows(matrix, feature, empty, np.ones_like(matrix.data), target, l2 * np.diff(matrix.indptr))


def _solve_rows(matrix: sp.csr_matrix, y: Tensor, gram: Tensor, weight: np.ndarray, target: np.ndarray, ridge: np.ndarray) -> Tensor:
    """Solves (gram + ridge_r I + sum of weight y y') x_r = sum of target y, sums over the entries of row r, for all rows.

    Rows of like length are padded into one batch of normal equations; no intermediate exceeds the working set but
    for a single row longer than it.
    """
    width, length, start = y.shape[1], np.diff(matrix.indptr), matrix.indptr[:-1]
    order, out, done = np.argsort(-length, kind="stable"), y.new_zeros(len(length), width), 0
    padded = torch.cat([y, y.new_zeros(1, width)])
    while done < len(order):
        longest = int(length[order[done]])
        rows = order[done : done + max(1, WORKING_SET // (width * max(width, longest)))]
        slot = np.arange(longest)
        filled = slot < length[rows, None]
        place = np.where(filled, start[rows, None] + slot, 0)
        near = padded[torch.from_numpy(np.where(filled, matrix.indices[place], len(y)).astype(np.int64))]
        times = torch.from_numpy(np.stack([weight[place], target[place]]).astype(np.float32)).unsqueeze(-1)
        left = gram + (near * times[0]).mT @ near
        left.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(ridge[rows].astype(np.float32))[:, None])
        right = (near * times[1]).sum(1, keepdim=True).mT
        out[torch.from_numpy(rows)] = torch.cholesky_solve(right, torch.linalg.cholesky(left)).squeeze(-1)
        done += len(rows)
    return out
