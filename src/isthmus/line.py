"""``ModelSpec``: one line of a comparison, and the grid that it chooses from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from isthmus.errors import ConfigError
from isthmus.how import How

SINGLE = "single-domain"
JOINT = "joint"
PER_TARGET = "per-target"
FIT = "fit."  # before the name of a training setting in a grid


@dataclass(frozen=True)
class ModelSpec:
    """One line of a comparison.

    Attributes:
        name: the model's name.
        label: how it is called in the tables; unique.
        args: its hyper-parameters.
        grid: what to choose on validation, name -> values: hyper-parameters, and settings of ``fit`` as "fit.<name>".
        fit: settings of ``fit`` that differ from the recipe's.
        control: ``single-domain`` (the same model, one training per domain), the label of another line or
            "<label> (single-domain)", or None (nothing is shared, so there is nothing to prove).
        per_target: one joint training for each domain as the target, all others being its sources: epoch and grid
            point are chosen on the target's validation rows alone, and the target alone is scored from it.
        alone: settings of ``fit`` that differ again where it is its own control: a domain alone has fewer rows, and at the same size of
            batch fewer steps.
        against: further entries of the tables that it is compared with, besides its control and the best shallow line.
    """

    name: str
    label: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    control: str | None = SINGLE
    per_target: bool = False
    against: tuple[str, ...] = ()
    alone: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "against", tuple(self.against))

    def training(self, scope: str) -> dict[str, Any]:
        """Its settings of ``fit`` in one scope."""
        return {**self.fit, **(self.alone if scope == SINGLE else {})}

    @property
    def scopes(self) -> tuple[str, ...]:
        """How it is trained: jointly (or once for each target), and, as its own control, for each domain alone."""
        return (PER_TARGET if self.per_target else JOINT, *((SINGLE,) if self.control == SINGLE else ()))

    def entry(self, scope: str) -> str:
        """The name of one scope in the tables."""
        return f"{self.label} ({SINGLE})" if scope == SINGLE else self.label


def grid_points(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations of the grid's values; of an empty grid the empty one."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def args_of(point: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a grid point."""
    return {key: value for key, value in point.items() if not key.startswith(FIT)}


def fit_of(point: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``fit`` of a grid point."""
    return {key.removeprefix(FIT): value for key, value in point.items() if key.startswith(FIT)}


def check_training(settings: dict[str, Any]) -> None:
    """Refuses settings of ``fit`` that do not exist, or that are not a recipe's to set.

    Raises:
        ConfigError: such a setting; names the nearest one.
    """
    for key in ("seed", "domains", "targets", "stop"):
        if key in settings:
            expected = "seeds = [...]; per_target and the controls set the domains, validation where to stop"
            raise ConfigError(f"fit setting {key!r} in a recipe", expected, "remove it")
    How.of(settings)
