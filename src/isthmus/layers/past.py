"""What users did in other domains, as one list of events without padding, and sums over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.layers.attention import softmax_by_row
from isthmus.layers.bridges import Chosen
from isthmus.layers.drawing import all_of
from isthmus.schema import PADDING


@dataclass(frozen=True, slots=True)
class Past:
    """The events in the cross histories (n, L) of n rows: E of them, row after row.

    Attributes:
        shape: n and L.
        row, column: (E,) int64 places in (n, L).
        item, domain: (E,) int64 codes and domain indices.
        label: (E,) float32 ratings, or None where they were not asked for or there are none.
        bounds: D + 1 bounds of the rows' own domains, over the rows.
    """

    shape: tuple[int, int]
    row: Tensor
    column: Tensor
    item: Tensor
    domain: Tensor
    label: Tensor | None
    bounds: tuple[int, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """D + 1 bounds of the rows' own domains, over the events."""
        drawn = all_of(self.bounds, self.row.shape[0])
        return drawn or tuple(torch.searchsorted(self.row, torch.tensor(self.bounds, device=self.row.device)).tolist())

    def where(self, keep: Tensor) -> Past:
        """The events (E,) bool to keep."""
        kept = {name: getattr(self, name)[keep] for name in ("row", "column", "item", "domain")}
        return replace(self, **kept, label=None if self.label is None else self.label[keep])

    def total(self, x: Tensor) -> Tensor:
        """Values (E, ...) -> their sums by row, (n, ...)."""
        return x.new_zeros(self.shape[0], *x.shape[1:]).index_add(0, self.row, x)

    def softmax(self, score: Tensor) -> Tensor:
        """Scores (E,) -> (E,) weights that sum to 1 over each row's events."""
        return softmax_by_row(score, self.row, self.shape[0])


def past_of(batch: Batch, rows: Chosen, labels: bool = False) -> Past:
    """The chosen rows' events in other domains.

    Args:
        batch: with cross histories, and their ratings when asked for.
        rows: of the batch.
        labels: along with the ratings.
    """
    assert batch.cross_history is not None
    assert batch.cross_domain is not None
    history = batch.cross_history[rows.place]
    row, column = (history != PADDING).nonzero(as_tuple=True)
    at = rows.place[row], column
    label = batch.cross_label if labels else None
    shape = history.shape[0], history.shape[1]
    return Past(shape, row, column, history[row, column], batch.cross_domain[at], None if label is None else label[at], rows.offsets)
