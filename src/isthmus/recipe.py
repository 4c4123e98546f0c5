"""``Recipe``: everything that a comparison depends on, as plain values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isthmus.cell import Cell
from isthmus.errors import ConfigError, nearest
from isthmus.line import SINGLE, ModelSpec, args_of, check_training, fit_of, grid_points
from isthmus.models import available, check_settings, get_model, settings
from isthmus.paper import Paper
from isthmus.schema import Schema
from isthmus.task import Task, default_task, get_task
from isthmus.verdicts import RESAMPLES


@dataclass(frozen=True)
class Recipe:
    """Everything that a comparison depends on.

    Attributes:
        name: short, a file name.
        title: one line for people.
        source: name of a source, see ``isthmus.data.sources``.
        source_args: what its ``load`` takes.
        split: name of a split rule, ``given`` (the source brings it) or None (the default for the data).
        split_args: what the rule takes.
        task: name of a task, or None (the default for the labels).
        models: the lines to compare.
        seeds: one training of every network for each.
        fit: settings of ``fit`` for all models.
        metrics: what is printed, the first one decides; None: the task's.
        ledger_metrics: those that get verdicts, all in one family; None: the first of ``metrics``.
        refit: after choosing on validation, train once more on train + validation.
        sampled: rank what was chosen among so many items drawn uniformly from the domain, none that the user has seen, as published tables
            often have it; None: among the whole catalogue, or the lists that come with the data.
        resamples: bootstrap resamples of users.
        paper: the published table that it reproduces, or None.
        cells: the same lines on several data sets or splits; none: on one.
    """

    name: str
    source: str
    models: tuple[ModelSpec, ...]
    title: str = ""
    source_args: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    split_args: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    fit: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    ledger_metrics: tuple[str, ...] | None = None
    refit: bool = False
    sampled: int | None = None
    resamples: int = 2000
    paper: Paper | None = None
    cells: tuple[Cell, ...] = ()

    def __post_init__(self) -> None:
        if self.resamples < RESAMPLES:
            raise ConfigError(f"resamples = {self.resamples}", f"{RESAMPLES} or more: an interval is made of them", "leave it out for 2000")
        labels = [m.label for m in self.models]
        double = sorted({x for x in labels if labels.count(x) > 1})
        if double:
            raise ConfigError(f"models called {double} more than once", "unique labels", 'give one of them a label = "..." of its own')
        for spec in self.models:
            if spec.control not in (None, SINGLE, *self.entries) or spec.control == spec.label:
                others = [SINGLE, *(e for e in self.entries if e != spec.label)]
                raise ConfigError(
                    f"{spec.label!r} has control {spec.control!r}",
                    f"'{SINGLE}', none, or another label",
                    nearest(str(spec.control), others),
                )
            if spec.alone and spec.control != SINGLE:
                came = f"{spec.label!r} with control {spec.control!r} and settings alone = {spec.alone}"
                raise ConfigError(came, f"control {SINGLE!r}: no other line trains on each domain alone", "leave one of them out")
            _check_against(spec, self.entries)
        if self.sampled is not None and self.sampled < 1:
            raise ConfigError(f"sampled = {self.sampled}", "1 or more items", "leave it out to rank the whole catalogue")
        if not self.models:
            raise ConfigError("a recipe without models", "at least one [[models]]", "add one; `isthmus models` lists them")
        if not self.seeds:
            raise ConfigError("a recipe without seeds", "at least one", "seeds = [0]")
        if self.ledger_metrics is not None and not self.ledger_metrics:
            raise ConfigError("ledger_metrics = []", "at least one metric", "name one, or leave ledger_metrics out")
        metrics = self.metrics or (get_task(self.task).metrics if self.task else None)
        if metrics is not None:
            self.check_metrics(metrics)
        self._check_paper()

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of all lines of the tables, single-domain controls included."""
        return tuple(spec.entry(scope) for spec in self.models for scope in spec.scopes)

    def judges(self, task: Task) -> tuple[str, ...]:
        """The metrics that get verdicts, the one that decides in front."""
        return self.ledger_metrics or (self.metrics or task.metrics)[:1]

    def check_metrics(self, metrics: tuple[str, ...]) -> None:
        """Refuses verdicts and printed values in metrics that are not measured.

        Raises:
            ConfigError: names the nearest metric.
        """
        for name in self.ledger_metrics or ():
            if name not in metrics:
                raise ConfigError(f"ledger_metrics: {name!r}", f"of the recipe's {metrics}", nearest(name, metrics))
        for paper in (self.paper, *(cell.printed(self.paper) for cell in self.cells)):
            if paper is not None:
                paper.check_metrics(metrics)

    def _check_paper(self) -> None:
        names = [cell.name for cell in self.cells]
        for cell in self.cells:
            if names.count(cell.name) > 1:
                raise ConfigError(f"cells called {cell.name!r} more than once", "unique names", "rename one")
            if cell.paper and self.paper is None:
                raise ConfigError(f"the paper's values in cell {cell.name!r}, and no [paper]", "[paper] with its title", "add it")
        if self.cells and self.paper is not None and self.paper.labels:
            raise ConfigError("[paper.values] in a recipe with cells", "the paper's values in each cell", "[cells.paper.<metric>]")
        for paper in (self.paper, *(cell.printed(self.paper) for cell in self.cells)):
            for label in paper.labels if paper else ():
                if label not in self.entries:
                    raise ConfigError(f"paper: values for {label!r}", "a label of the recipe", nearest(label, self.entries))

    def of(self, cell: Cell) -> Recipe:
        """The recipe of one cell, an ordinary one."""
        source, source_args = cell.data(self.source, self.source_args)
        split, split_args = cell.splits(self.split, self.split_args)
        own = {"source": source, "source_args": source_args, "split": split, "split_args": split_args}
        title = f"{self.title or self.name}: {cell.name}"
        return replace(self, title=title, paper=cell.printed(self.paper), cells=(), **own)

    def in_cells(self, names: Sequence[str]) -> Recipe:
        """The recipe with these cells alone.

        Raises:
            ConfigError: no such cell; names the nearest one.
        """
        known = [cell.name for cell in self.cells]
        for name in names:
            if not known:
                raise ConfigError(f"--cell {name!r}, and a recipe without cells", "a recipe with [[cells]]", "leave --cell out")
            if name not in known:
                raise ConfigError(f"--cell {name!r}", f"one of {known}", nearest(name, known))
        return replace(self, cells=tuple(cell for cell in self.cells if cell.name in names))

    def only(self, labels: list[str]) -> Recipe:
        """The recipe with these lines alone, the controls and other lines that they name, and the paper's values of what is left.

        Raises:
            ConfigError: no such line; names the nearest one.
        """
        known = {m.label: m for m in self.models}
        for label in labels:
            if label not in known:
                raise ConfigError(f"--model {label!r}", f"one of {list(known)}", nearest(label, known))
        home = {m.entry(scope): m.label for m in self.models for scope in m.scopes}
        needed, more = set[str](), set(labels)
        while more:  # a control may have a control of its own
            needed |= more
            more = {home[name] for label in more for name in (known[label].control, *known[label].against) if name in home} - needed
        models = tuple(m for m in self.models if m.label in needed)
        left = {spec.entry(scope) for spec in models for scope in spec.scopes}
        cells = tuple(
            replace(cell, paper={m: {label: v for label, v in values.items() if label in left} for m, values in cell.paper.items()})
            for cell in self.cells
        )
        return replace(self, models=models, paper=self.paper and self.paper.only(left), cells=cells)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Recipe:
        """The inverse of ``dataclasses.asdict``, after a trip through JSON."""
        raw = {**raw, "models": tuple(ModelSpec(**m) for m in raw["models"]), "seeds": tuple(raw["seeds"])}
        raw |= {key: tuple(raw[key]) if raw.get(key) else None for key in ("metrics", "ledger_metrics")}
        raw |= {"paper": Paper(**raw["paper"]) if raw.get("paper") else None, "cells": tuple(Cell(**c) for c in raw.get("cells", ()))}
        return cls(**raw)


def default_models(task: Task) -> tuple[ModelSpec, ...]:
    """A sensible line-up for a task: every model that can do it, the shallow ones also across domains."""
    specs: list[ModelSpec] = []
    for name in available():
        model = get_model(name)
        if task.name not in model.tasks:
            continue
        if not model.shallow:
            specs.append(ModelSpec(name))
            continue
        specs.append(ModelSpec(name, control=None))
        if "across" in settings(name):
            specs.append(ModelSpec(name, f"{name} across", {"across": True}, control=name))
    return tuple(sorted(specs, key=lambda s: not get_model(s.name).shallow))


def check(recipe: Recipe, task: Task, schema: Schema) -> None:
    """Everything that can be refused before hours of training.

    Raises:
        ConfigError: recipe, task and data do not go together, or a name or setting does not exist.
    """
    if schema.label not in task.labels:
        raise ConfigError(
            f"task {task.name!r} on {schema.label!r} labels", f"labels of kind {task.labels}", f"task = {default_task(schema).name!r}"
        )
    if recipe.sampled is not None and not task.ranked:
        raise ConfigError(f"sampled = {recipe.sampled} for task {task.name!r}", "a task that ranks candidates", "leave it out")
    for spec in recipe.models:
        model = get_model(spec.name)
        if task.name not in model.tasks:
            raise ConfigError(
                f"model {spec.name!r} in a recipe for {task.name!r}", f"a task of {model.tasks}", "remove the model, or change the task"
            )
        for point, scope in itertools.product(grid_points(spec.grid), spec.scopes):
            check_settings(spec.name, {**spec.args, **args_of(point)}, f"model {spec.label!r}")
            check_training({**recipe.fit, **spec.training(scope), **fit_of(point)})
    if recipe.paper is not None:
        recipe.paper.check(schema)
    recipe.check_metrics(recipe.metrics or task.metrics)


def _check_against(spec: ModelSpec, entries: tuple[str, ...]) -> None:
    """Refuses other lines to compare with that do not exist, or that are this one."""
    others = [e for e in entries if e != spec.label]
    for name in spec.against:
        if name not in others or spec.against.count(name) > 1:
            raise ConfigError(f"{spec.label!r} is compared against {name!r}", "other labels, each once", nearest(name, others))
