"""``Cell``: one cell of a recipe, a data set and split of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isthmus import metrics as metric_files
from isthmus.errors import ConfigError
from isthmus.measure import ALL
from isthmus.paper import Paper, number


@dataclass(frozen=True)
class Cell:
    """One cell of a recipe: what differs from the recipe's data and split.

    Attributes:
        name: what the tables call it; unique.
        source: of this cell; None: the recipe's.
        source_args: change the recipe's; with a source of its own they are all there are.
        split: rule of this cell; None: the recipe's.
        split_args: change the recipe's; with a rule of its own they are all there are.
        paper: metric -> entry of our tables -> the paper's value in this cell.
    """

    name: str
    source: str | None = None
    source_args: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    split_args: dict[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a cell without a name", "a name for the tables", 'name = "..."')
        for metric, values in self.paper.items():
            metric_files.get(metric)
            for label, value in values.items():
                number(value, f"{label!r} in cell {self.name!r}", "line")

    @property
    def changes_data(self) -> bool:
        """Are its data others than the recipe's?"""
        return self.source is not None or bool(self.source_args)

    def data(self, source: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Source and arguments of the cell, from the recipe's."""
        return (source, {**args, **self.source_args}) if self.source in (None, source) else (self.source, dict(self.source_args))

    def splits(self, split: str | None, args: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Split rule and arguments of the cell, from the recipe's."""
        return (split, {**args, **self.split_args}) if self.split in (None, split) else (self.split, dict(self.split_args))

    def printed(self, paper: Paper | None) -> Paper | None:
        """The recipe's paper with what it prints in this cell: one value per line, our mean over the domains tested."""
        if paper is None:
            return None
        values = {metric: {label: {ALL: float(v)} for label, v in found.items()} for metric, found in self.paper.items()}
        first = values.pop(paper.metric, {})
        return Paper(paper.title, paper.metric, first, paper.note, values)
