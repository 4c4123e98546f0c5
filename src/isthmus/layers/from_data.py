"""``FromData``: a module that takes over something of the data set before training: coded tables, catalogues, counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


class FromData(nn.Module, ABC):
    """Its buffers hold what the training part (or a side table) says; ``fit`` fills them, and they are saved with the weights."""

    @abstractmethod
    def take(self, dataset: Dataset) -> None:
        """Fills the buffers from an encoded data set, of the schema that the module was built for."""


def fill(model: nn.Module, dataset: Dataset) -> None:
    """Hands the data set to every part of a model that takes something over."""
    for module in model.modules():
        if isinstance(module, FromData):
            module.take(dataset)
