"""``Recipe``: everything that a comparison depends on, as plain values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from isthmus import metrics as metric_files
from isthmus.errors import ConfigError, nearest
from isthmus.how import How
from isthmus.measure import ALL
from isthmus.models import available, get_model, settings
from isthmus.schema import Schema
from isthmus.task import Task, default_task, get_task

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
    """

    name: str
    label: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    control: str | None = SINGLE
    per_target: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def scopes(self) -> tuple[str, ...]:
        """How it is trained: jointly (or once for each target), and, as its own control, for each domain alone."""
        return (PER_TARGET if self.per_target else JOINT, *((SINGLE,) if self.control == SINGLE else ()))

    def entry(self, scope: str) -> str:
        """The name of one scope in the tables."""
        return f"{self.label} ({SINGLE})" if scope == SINGLE else self.label


@dataclass(frozen=True)
class Paper:
    """A published table, to be held beside ours.

    Attributes:
        title: which table of which paper.
        metric: ours that means the same, such as ``recall@10``.
        values: entry of our tables -> domain -> the paper's value.  The domain ``all`` is the printed average; without
            it, the mean of the others.
        note: what differs from the paper, in words.
    """

    title: str
    metric: str
    values: Mapping[str, Mapping[str, float]]
    note: str = ""

    def __post_init__(self) -> None:
        metric_files.get(self.metric)
        for label, values in self.values.items():
            for domain, value in values.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ConfigError(f"paper: {label!r} in {domain!r} = {value!r}", "a number", "correct it, or leave the domain out")

    def average(self, label: str, domains: tuple[str, ...]) -> float | None:
        """The printed average, else the mean over all domains; None where neither is known."""
        values = self.values[label]
        if ALL in values:
            return float(values[ALL])
        return sum(values[d] for d in domains) / len(domains) if all(d in values for d in domains) else None

    def check(self, schema: Schema) -> None:
        """Refuses domains that the data do not have.

        Raises:
            ConfigError: names the nearest domain.
        """
        known = (*schema.domain_names, ALL)
        for label, values in self.values.items():
            for domain in values:
                if domain not in known:
                    raise ConfigError(f"paper: {label!r} has a value in {domain!r}", f"one of {known}", nearest(domain, known))


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
        refit: after choosing on validation, train once more on train + validation.
        resamples: bootstrap resamples of users.
        paper: the published table that it reproduces, or None.
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
    refit: bool = False
    resamples: int = 2000
    paper: Paper | None = None

    def __post_init__(self) -> None:
        labels = [m.label for m in self.models]
        double = sorted({x for x in labels if labels.count(x) > 1})
        if double:
            raise ConfigError(f"models called {double} more than once", "unique labels", 'give one of them a label = "..." of its own')
        for spec in self.models:
            if spec.control not in (None, SINGLE, *self.entries) or spec.control == spec.label:
                others = [e for e in self.entries if e != spec.label]
                raise ConfigError(
                    f"{spec.label!r} has control {spec.control!r}", f"'{SINGLE}' or another label", nearest(str(spec.control), others)
                )
        if not self.models:
            raise ConfigError("a recipe without models", "at least one [[models]]", "add one; `isthmus models` lists them")
        if not self.seeds:
            raise ConfigError("a recipe without seeds", "at least one", "seeds = [0]")
        self._check_paper()

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of all lines of the tables, single-domain controls included."""
        return tuple(spec.entry(scope) for spec in self.models for scope in spec.scopes)

    def _check_paper(self) -> None:
        if self.paper is None:
            return
        for label in self.paper.values:
            if label not in self.entries:
                raise ConfigError(f"paper: values for {label!r}", "a label of the recipe", nearest(label, self.entries))
        metrics = self.metrics or (get_task(self.task).metrics if self.task else None)
        if metrics is not None and self.paper.metric not in metrics:
            raise ConfigError(f"paper: metric {self.paper.metric!r}", f"one of the recipe's {metrics}", nearest(self.paper.metric, metrics))

    def only(self, labels: list[str]) -> Recipe:
        """The recipe with these lines alone, the controls that they name, and the paper's values of what is left.

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
            more = {home[control] for label in more if (control := str(known[label].control)) in home} - needed
        models = tuple(m for m in self.models if m.label in needed)
        paper = self.paper
        if paper is not None:
            left = {spec.entry(scope) for spec in models for scope in spec.scopes}
            paper = replace(paper, values={label: v for label, v in paper.values.items() if label in left})
        return replace(self, models=models, paper=paper)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Recipe:
        """The inverse of ``dataclasses.asdict``, after a trip through JSON."""
        raw = {**raw, "models": tuple(ModelSpec(**m) for m in raw["models"]), "seeds": tuple(raw["seeds"])}
        paper = Paper(**raw["paper"]) if raw.get("paper") else None
        return cls(**{**raw, "metrics": tuple(raw["metrics"]) if raw["metrics"] else None, "paper": paper})


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
    for spec in recipe.models:
        model, known = get_model(spec.name), settings(spec.name)
        if task.name not in model.tasks:
            raise ConfigError(
                f"model {spec.name!r} in a recipe for {task.name!r}", f"a task of {model.tasks}", "remove the model, or change the task"
            )
        for key in (*spec.args, *(key for key in spec.grid if not key.startswith(FIT))):
            if key not in known:
                raise ConfigError(f"model {spec.label!r}: unknown setting {key!r}", f"one of {known}", nearest(key, known))
        for point in grid_points(spec.grid):
            _trains({**recipe.fit, **spec.fit, **fit_of(point)})
    if recipe.paper is not None:
        recipe.paper.check(schema)
        if recipe.paper.metric not in (metrics := recipe.metrics or task.metrics):
            raise ConfigError(f"paper: metric {recipe.paper.metric!r}", f"one of {metrics}", nearest(recipe.paper.metric, metrics))


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


def _trains(settings: dict[str, Any]) -> None:
    """Refuses settings of ``fit`` that do not exist, or that are not a recipe's to set."""
    for key in ("seed", "domains", "targets", "stop"):
        if key in settings:
            expected = "seeds = [...]; per_target and the controls set the domains, validation where to stop"
            raise ConfigError(f"fit setting {key!r} in a recipe", expected, "remove it")
    How.of(settings)
