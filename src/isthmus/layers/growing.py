"""``Growing``: modules that hold something of each domain or id, and how it goes on when new ones come.

What a module has of the old domains and ids is copied, bit for bit.  What it needs for a new domain starts at the mean over the
old ones, for a new id or category at "unknown": so a grown model scores the old domains as before, and the new one
as an average domain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError

Rows = dict[str, Tensor | None]  # tensors by name: (rows,) bool masks over the first dimension; None: the whole tensor


class Growing(nn.Module, ABC):
    """A module whose size depends on the domains or ids of a schema."""

    @abstractmethod
    def grow_from(self, old: Any) -> set[str]:
        """Takes over the weights of the same module of a smaller model.

        Args:
            old: of the same class, for fewer domains or ids.

        Returns:
            Names, relative to this module, of the parameters and buffers that were seen to.
        """

    @abstractmethod
    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """What belongs to some domains or items alone, by name relative to this module.

        Args:
            domains: their indices.
            items: (items,) bool, by code.
        """


class Stacked(Growing):
    """A module with tensors, or lists of them, that hold a row for each domain; of one row for all domains it holds one.

    Class attribute ``stacked``: their names.
    """

    stacked: ClassVar[tuple[str, ...]] = ()

    def _tensors(self) -> dict[str, Tensor]:
        held = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: value for name, value in held.items() if name in self.stacked or name.rpartition(".")[0] in self.stacked}

    def grow_from(self, old: Stacked) -> set[str]:
        """Rows of old domains are copied; those of new ones start at their mean."""
        found = old._tensors()
        for name, tensor in self._tensors().items():
            grow_rows(name, tensor, found[name])
        return set(self._tensors())

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """The domains' rows."""
        return {name: one_row_each(len(tensor), domains) for name, tensor in self._tensors().items() if len(tensor) > 1}


def grow_rows(name: str, tensor: Tensor, old: Tensor) -> None:
    """Fills (n, ...) from (m, ...), m <= n: the first m rows are copied, the others become their mean.

    Raises:
        ConfigError: the shapes differ otherwise.
    """
    if tensor.shape[1:] != old.shape[1:] or len(tensor) < len(old):
        raise ConfigError(f"{name} of shape {tuple(old.shape)} for {tuple(tensor.shape)}", "more rows alone", "train the model anew")
    tensor[: len(old)] = old
    tensor[len(old) :] = old.mean(0)


def one_row_each(n: int, rows: Sequence[int]) -> Tensor:
    """(n,) bool, True at ``rows``."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(rows)] = True
    return mask


def rows_of(model: nn.Module, domains: Sequence[int], items: Tensor) -> Rows:
    """What in a whole model belongs to some domains or items alone, by the tensors' full names; see ``Growing.rows_of``."""
    found: Rows = {}
    for name, module in model.named_modules():
        if isinstance(module, Growing):
            for key, mask in module.rows_of(domains, items).items():
                found[f"{name}.{key}" if name else key] = mask
    return found
