"""``Catalogues``: what every domain shows in training, laid out end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isthmus.segments import places

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class Catalogues:
    """The train catalogues of D domains, one after the other: C places in all.

    Args:
        dataset: whose catalogues.

    Attributes:
        item: (C,) int64 item codes, ascending within a domain.
        size: (D,) int64 items of each domain.
        start: (D + 1,) int64; domain d has the places ``start[d]:start[d + 1]``.
    """

    def __init__(self, dataset: Dataset) -> None:
        catalogues = [np.asarray(dataset.catalogue(d), np.int64) for d in range(len(dataset.schema.domains))]
        self.dataset = dataset
        self.size = np.array([len(c) for c in catalogues], np.int64)
        self.start = np.append(0, np.cumsum(self.size))
        self.item = np.concatenate(catalogues)
        self._key = self._keys(np.repeat(np.arange(len(self.size)), self.size), self.item)  # ascending: catalogues are

    @property
    def popularity(self) -> np.ndarray:
        """(C,) float64 positive training events of each item in its domain."""
        return np.concatenate([self.dataset.popularity(d)[item] for d, item in enumerate(self.split(self.item))])

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values (C,) -> those of each domain."""
        return np.split(values, self.start[1:-1])

    def find(self, domain: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where items stand.

        Args:
            domain, item: (N,) indices and codes.

        Returns:
            (N,) int64 places, which mean nothing where the domain does not show the item, and (N,) bool: it does.
        """
        return places(self._key, self._keys(domain, item))

    def _keys(self, domain: np.ndarray, item: np.ndarray) -> np.ndarray:
        """One number for a domain and an item."""
        return domain * self.dataset.schema.item.size + item
