"""What a stage trains: some weights, or some rows of them; all else, running statistics included, stands still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.model import Model, Stage


@dataclass(frozen=True)
class Adaptation:
    """New domains for a grown model: what else is new is known by its codes.

    Attributes:
        domains: their indices.
        items: the first code of the newly trained items, and the one after the last.
    """

    domains: tuple[int, ...]
    items: tuple[int, int]

    def mask(self, model: Model) -> Tensor:
        """(item.size,) bool, the new items."""
        code = torch.arange(model.schema.item.size)
        return (code >= self.items[0]) & (code < self.items[1])

    def stages(self, model: Model) -> list[Stage]:
        """How the model is trained."""
        return model.adaptation(self.domains, self.mask(model))


@contextmanager
def only(model: nn.Module, stage: Stage) -> Iterator[None]:
    """Only the stage's weights get gradients in the block.

    Raises:
        ConfigError: a mask of rows that does not fit its weight.
    """
    before = {p: p.requires_grad for p in model.parameters()}
    for weight, mask in (stage.rows or {}).items():
        if mask.dtype != torch.bool or mask.shape != weight.shape[:1]:
            came = f"a mask {mask.dtype} of shape {tuple(mask.shape)} in stage {stage.name!r}"
            raise ConfigError(came, f"bool of shape {tuple(weight.shape[:1])}", "give one value for each row of the weight")
    if stage.weights is not None:
        wanted = {*stage.weights, *(stage.rows or {})}
        for p in before:
            p.requires_grad_(p in wanted)
    try:
        yield
    finally:
        for p, required in before.items():
            p.requires_grad_(required)


def training(model: nn.Module) -> None:
    """Training mode, but norms whose weights are all frozen keep their running statistics (dropout goes on)."""
    model.train()
    for module in _still(model):
        module.eval()


def _still(model: nn.Module) -> list[nn.Module]:
    """Modules with running statistics whose weights are all frozen; one without weights goes by the smallest module around it
    that has some."""
    found = []
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is None:
            continue
        path = name.split(".")
        around = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1))
        weights = next((held for one in around if (held := list(one.parameters()))), [])
        if weights and not any(p.requires_grad for p in weights):
            found.append(module)
    return found


def drop_other_rows(rows: Mapping[nn.Parameter, Tensor]) -> None:
    """Takes the gradient away from all rows but those in the masks (rows,)."""
    for weight, mask in rows.items():
        if weight.grad is None:
            continue
        if weight.grad.is_sparse:
            grad = weight.grad.coalesce()
            kept = mask[grad.indices()[0]]
            weight.grad = torch.sparse_coo_tensor(
                grad.indices()[:, kept], grad.values()[kept], grad.shape, is_coalesced=True, check_invariants=False
            )
        else:
            weight.grad.masked_fill_(~mask.view(-1, *[1] * (weight.dim() - 1)), 0)
