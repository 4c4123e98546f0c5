"""EASE: a linear item-to-item model in closed form (Steck, WWW 2019).

B = I - P diag(P)^-1 with P = (X'X + l2 I)^-1 minimises |X - XB|^2 + l2 |B|^2 over B with a zero diagonal; X is
the binary user x item matrix of the training positives and a user's scores are her row of X times B.

Deviation: items beyond the ``max_items`` most popular ones have no weights (n items take about 3 n^2 floats to solve).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.solved import ItemToItem
from isthmus.model import Model, Stage
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class Ease(Model):
    """EASE, per domain or over all domains at once.

    Args:
        l2: ridge penalty, above 0; larger for denser data.
        across: learn one matrix from the pooled users and items of all domains, and let a user's events in other
            domains speak too; False: each domain its own.
        max_items: items with weights, the most popular ones, per matrix.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, whole_history=True)
    paper: ClassVar[str] = "Embarrassingly Shallow Autoencoders for Sparse Data (Steck, WWW 2019)"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")
    shallow: ClassVar[bool] = True

    def __init__(self, schema: Schema, *, l2: float = 500.0, across: bool = False, max_items: int = 20_000) -> None:
        super().__init__(schema)
        if l2 <= 0:
            raise ConfigError(f"l2 = {l2}", "a number above 0", "try 100 to 1000")
        self.l2 = l2
        self.items = ItemToItem(len(schema.domains), across, max_items)

    def forward(self, batch: Batch) -> Output:
        """Profile times weights, (B, C)."""
        return Output(self.items(batch))

    def stages(self) -> list[Stage]:
        """One closed form."""
        return [Stage("closed form", solve=self._solve)]

    def _solve(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        self.items.learn(dataset.positives, domains, self._closed_form)

    def _closed_form(self, counts: Tensor) -> Tensor:
        """X'X (n, n) -> B (n, n); overwrites its argument."""
        counts.diagonal().add_(self.l2)
        factor, failed = torch.linalg.cholesky_ex(counts)
        if failed:
            raise ConfigError(f"EASE with l2 = {self.l2} cannot be solved in single precision", "a larger l2", "raise l2")
        inverse = torch.cholesky_inverse(factor)
        inverse /= -inverse.diagonal().clone()
        return inverse.fill_diagonal_(0.0)
