"""``compare``: data x models x seeds -> scores -> measures -> ledger, each part kept and never run twice.

A comparison folder::

    comparison.json       what was asked for, and which parts make it up
    data/<hash>/          the encoded data sets (``train`` to select on; ``final`` with train + validation)
    parts/<label>/<scope>/<seed>/
        choice.json       hyper-parameters and epochs chosen on validation
        run/ or run-<d>/  fitted models
        valid.parquet, test.parquet     scores
        part.json         written last: the part is finished, and under which fingerprint
    measures.parquet, ledger.parquet, report.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from isthmus import storage
from isthmus.data import sources
from isthmus.data import split as splits
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.split import Split
from isthmus.errors import ConfigError, StorageError, nearest
from isthmus.fit import How, Run, build, fit
from isthmus.ledger import Entry, Ledger, ledger
from isthmus.measure import measure
from isthmus.models import available, get_model, settings
from isthmus.schema import Schema
from isthmus.score import score
from isthmus.scores import Scores
from isthmus.task import Task, default_task, get_task

SINGLE = "single-domain"
JOINT = "joint"
FORMAT = 1  # raise when the meaning of a finished part changes

Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelSpec:
    """One line of a comparison.

    Attributes:
        name: the model's name.
        label: how it is called in the tables; unique.
        args: its hyper-parameters.
        grid: hyper-parameters to choose on validation, name -> values.
        fit: settings of ``fit`` that differ from the recipe's.
        control: ``single-domain`` (the same model, one training per domain), the label of another line, or
            None (nothing is shared, so there is nothing to prove).
    """

    name: str
    label: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    control: str | None = SINGLE

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)


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

    def __post_init__(self) -> None:
        labels = [m.label for m in self.models]
        double = sorted({x for x in labels if labels.count(x) > 1})
        if double:
            raise ConfigError(f"models called {double} more than once", "unique labels", 'give one of them a label = "..." of its own')
        for spec in self.models:
            if spec.control not in (None, SINGLE) and spec.control not in labels:
                raise ConfigError(
                    f"{spec.label!r} has control {spec.control!r}", f"'{SINGLE}' or a label", nearest(str(spec.control), labels)
                )
        if not self.models:
            raise ConfigError("a recipe without models", "at least one [[models]]", "add one; `isthmus models` lists them")
        if not self.seeds:
            raise ConfigError("a recipe without seeds", "at least one", "seeds = [0]")


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns.

    Attributes:
        recipe: what was asked for.
        folder: where everything is kept.
        task: the task.
        measures: metric x domain x user state x model x seed, with intervals (see ``isthmus.measure``);
            columns ``model``, ``scope`` and ``seed`` in front.
        ledger: the verdicts.
        facts: what to print above the tables (split, sizes, lists).
    """

    recipe: Recipe
    folder: Path
    task: Task
    schema: Schema
    measures: pl.DataFrame
    ledger: Ledger
    facts: dict[str, Any]


def compare(recipe: Recipe, out: str | Path, *, events: Events | None = None, split: Split | None = None, say: Say = print) -> Comparison:
    """Runs what is not yet done, measures, and draws the ledger.

    Args:
        recipe: what to run.
        out: the comparison's folder; finished parts found there are not run again.
        events, split: data already in memory, in place of the recipe's source and split.
        say: gets one line per step.

    Raises:
        IsthmusError: any of the tree; nothing half-written is left.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if events is None:
        say(f"reading {recipe.source}")
        loaded = sources.load(recipe.source, **recipe.source_args)
        events, split = loaded.events, split or loaded.split
    split = make_split(events, recipe, split)
    task = get_task(recipe.task) if recipe.task else default_task(events.schema)
    _check(recipe, task, events)
    data = _Data.prepare(events, split, out / "data", recipe.refit, say)
    jobs = list(_jobs(recipe, task, data))
    for number, job in enumerate(jobs, 1):
        say(f"[{number}/{len(jobs)}] {job.describe()}" + ("  (done before)" if job.finished(out) else ""))
        job.run(out, data)
    facts = {"source": recipe.source, "split": split.rule, "split_hash": split.hash, "refit": recipe.refit, "seeds": list(recipe.seeds)}
    parts = [{"label": job.spec.label, "scope": job.scope, "seed": job.seed} for job in jobs]
    kept = {"recipe": dataclasses.asdict(recipe), "task": task.name, "schema": data.select.schema.to_dict(), "facts": facts, "parts": parts}
    storage.write_json(out / "comparison.json", kept)
    say("measuring")
    return recall(out)


def recall(out: str | Path) -> Comparison:
    """Measures a finished comparison's kept scores and draws its ledger; nothing is trained.

    Raises:
        SourceError: no finished comparison there, or one of its files is damaged.
    """
    out = Path(out)
    kept = storage.read_json(out / "comparison.json")
    recipe, task = _recipe(kept["recipe"]), get_task(kept["task"])
    specs = {spec.label: spec for spec in recipe.models}
    parts: dict[tuple[str, str], dict[int, Path]] = {}
    for part in kept["parts"]:
        folder = _part_folder(out, part["label"], part["scope"], part["seed"])
        parts.setdefault((part["label"], part["scope"]), {})[part["seed"]] = folder
    metrics = recipe.metrics or task.metrics
    entries: list[Entry] = []
    frames: list[pl.DataFrame] = []
    for (label, scope), folders in parts.items():
        entry = _entry(specs[label], scope, folders)
        entries.append(entry)
        frames += _measures(entry, scope, metrics)
    measures = pl.concat(frames)
    book = ledger(entries, metrics[0], resamples=recipe.resamples)
    for name, frame in (("measures", measures), ("ledger", book.frame)):
        with storage.whole_file(out / f"{name}.parquet") as path:
            frame.write_parquet(path)
    return Comparison(recipe, out, task, Schema.from_dict(kept["schema"]), measures, book, kept["facts"])


def make_split(events: Events, recipe: Recipe, brought: Split | None = None) -> Split:
    """The recipe's split: by its rule, or the one the source brought, or the default for the data.

    Raises:
        ConfigError: no such rule, or ``given`` without a given split.
    """
    rules: dict[str, Callable[..., Split]] = {
        "global_time": splits.global_time,
        "leave_last": splits.leave_last,
        "cold_users": splits.cold_users,
        "random": splits.random,
    }
    if recipe.split == "given" or (recipe.split is None and brought is not None):
        if brought is None:
            raise ConfigError(f"split 'given', but source {recipe.source!r} brings none", f"one of {tuple(rules)}", "name another rule")
        return brought
    if recipe.split is None:
        return splits.default(events)
    if recipe.split not in rules:
        raise ConfigError(f"unknown split {recipe.split!r}", f"given, {', '.join(rules)}", nearest(recipe.split, [*rules, "given"]))
    try:
        return rules[recipe.split](events, **recipe.split_args)
    except TypeError as error:
        raise ConfigError(f"split {recipe.split!r}: {error}", "the arguments that the rule takes", "see `isthmus.data.split`") from error


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


@dataclass(frozen=True)
class _Data:
    """The data set to select on, and the one for the final training (the same unless ``refit``)."""

    select: Dataset
    final: Dataset

    @classmethod
    def prepare(cls, events: Events, split: Split, folder: Path, refit: bool, say: Say) -> _Data:
        key = _hash({"split": split.hash, "events": _fingerprint(events)})
        root = folder / key
        select = cls._one(events, split, root / "train", say)
        final = cls._one(events, split.merged(), root / "final", say) if refit else select
        return cls(select, final)

    @staticmethod
    def _one(events: Events, split: Split, path: Path, say: Say) -> Dataset:
        if path.exists():
            return Dataset.load(path)
        say(f"encoding {len(events):,} events")
        return encode(events, split, path)


@dataclass(frozen=True)
class _Job:
    """One part: a model, joint or one training per domain, and a seed."""

    spec: ModelSpec
    scope: str
    seed: int
    how: How
    task: Task
    refit: bool
    data_key: str

    def describe(self) -> str:
        return f"{self.spec.label}" + ("" if self.scope == JOINT else f" ({self.scope})") + f", seed {self.seed}"

    def folder(self, out: Path) -> Path:
        return _part_folder(out, self.spec.label, self.scope, self.seed)

    @property
    def key(self) -> str:
        how = {
            k: v for k, v in dataclasses.asdict(self.how).items() if k not in ("progress", "threads", "tensorboard", "checkpoint_minutes")
        }
        asked = {"name": self.spec.name, "args": self.spec.args, "grid": self.spec.grid, "how": how}
        return _hash(
            {
                **asked,
                "scope": self.scope,
                "seed": self.seed,
                "task": self.task.name,
                "refit": self.refit,
                "data": self.data_key,
                "format": FORMAT,
            }
        )

    def finished(self, out: Path) -> bool:
        mark = self.folder(out) / "part.json"
        return mark.exists() and storage.read_json(mark)["key"] == self.key

    def run(self, out: Path, data: _Data) -> Path:
        """Does the part unless it is done; returns its folder."""
        folder = self.folder(out)
        if self.finished(out):
            return folder
        asked = folder / "asked.json"
        if not asked.exists() or storage.read_json(asked) != self.key:  # an older question's leftovers
            shutil.rmtree(folder, ignore_errors=True)
            storage.write_json(asked, self.key)
        groups = [None] if self.scope == JOINT else [(d,) for d in range(len(data.select.schema.domains))]
        valid, test, choices = [], [], []
        for domains in groups:
            choice, on_valid, on_test = self._fit(folder, data, domains)
            valid.append(on_valid)
            test.append(on_test)
            choices.append(choice)
        Scores.concat(valid).save(folder / "valid.parquet")
        Scores.concat(test).save(folder / "test.parquet")
        storage.write_json(folder / "part.json", {"key": self.key, "choices": choices})
        return folder

    def _fit(self, folder: Path, data: _Data, domains: tuple[int, ...] | None) -> tuple[dict[str, Any], Scores, Scores]:
        """Chooses on validation, trains (once more on train + validation when asked), scores."""
        suffix = "" if domains is None else "-" + data.select.schema.domain_names[domains[0]]
        how = dataclasses.replace(self.how, seed=self.seed, domains=domains)
        best: tuple[dict[str, Any], Run] | None = None
        for number, point in enumerate(_grid(self.spec.grid)):
            run_folder = folder / _slug(f"run{suffix}" + (f"-{number}" if self.spec.grid else ""))
            model = build(self.spec.name, data.select.schema, {**self.spec.args, **point}, seed=self.seed)
            run = fit(model, data.select, self.task, how, run_folder, resume=True)
            if best is None or run.best.beats(best[1].best):
                best = (point, run)
        assert best is not None  # a grid has at least the empty point
        point, run = best
        chosen, epochs = run.best, run.best.epoch + 1
        on_valid = score(run.model, data.select, "valid", task=self.task, how=how, domains=domains)
        if self.refit:
            model = build(self.spec.name, data.final.schema, {**self.spec.args, **point}, seed=self.seed)
            last = dataclasses.replace(how, epochs=epochs, patience=None)
            run = fit(model, data.final, self.task, last, folder / _slug(f"final{suffix}"), resume=True)
        on_test = score(run.model, data.final if self.refit else data.select, "test", task=self.task, how=how, domains=domains)
        return {"domains": domains, "point": point, "epochs": epochs, "valid": chosen.value}, on_valid, on_test


def _jobs(recipe: Recipe, task: Task, data: _Data) -> Iterator[_Job]:
    """All parts in the order of the recipe; closed-form models have one seed, and no network trains alone twice."""
    data_key = data.select.path.parent.name
    for spec in recipe.models:
        shallow = get_model(spec.name).shallow
        how = How.of({**recipe.fit, **spec.fit})
        for scope in (JOINT, SINGLE) if spec.control == SINGLE else (JOINT,):
            for seed in recipe.seeds[:1] if shallow else recipe.seeds:
                yield _Job(spec, scope, seed, how, task, recipe.refit, data_key)


def _entry(spec: ModelSpec, scope: str, folders: dict[int, Path]) -> Entry:
    """One line of the tables with its scores: the joint model, or its single-domain control."""
    test = {seed: Scores.load(folder / "test.parquet") for seed, folder in folders.items()}
    valid = {seed: Scores.load(folder / "valid.parquet") for seed, folder in folders.items()}
    alone = f"{spec.label} ({SINGLE})"
    if scope == SINGLE:
        return Entry(alone, None, False, test, valid)
    return Entry(spec.label, alone if spec.control == SINGLE else spec.control, get_model(spec.name).shallow, test, valid)


def _measures(entry: Entry, scope: str, metrics: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Every metric of one line by part and seed; intervals for the test part only."""
    for part, by_seed, resamples in (("test", entry.test, 1000), ("valid", entry.valid, 0)):
        for seed, scores in by_seed.items():
            frame = measure(scores, metrics, resamples=resamples)
            front = {"model": entry.model, "scope": scope, "part": part, "seed": seed}
            yield frame.select(*(pl.lit(value).alias(name) for name, value in front.items()), pl.all())


def _recipe(raw: dict[str, Any]) -> Recipe:
    """The inverse of ``dataclasses.asdict``, after a trip through JSON."""
    raw = {**raw, "models": tuple(ModelSpec(**m) for m in raw["models"]), "seeds": tuple(raw["seeds"])}
    return Recipe(**{**raw, "metrics": tuple(raw["metrics"]) if raw["metrics"] else None})


def _part_folder(out: Path, label: str, scope: str, seed: int) -> Path:
    return out / "parts" / _slug(label) / scope / str(seed)


def _check(recipe: Recipe, task: Task, events: Events) -> None:
    """Everything that can be refused before hours of training."""
    if events.schema.label not in task.labels:
        raise ConfigError(
            f"task {task.name!r} on {events.schema.label!r} labels",
            f"labels of kind {task.labels}",
            f"task = {default_task(events.schema).name!r}",
        )
    for chosen in (recipe.fit, *(spec.fit for spec in recipe.models)):
        for key in ("seed", "domains"):
            if key in chosen:
                raise ConfigError(f"fit setting {key!r} in a recipe", "seeds = [...]; the controls set the domains", "remove it")
        How.of(chosen)
    for spec in recipe.models:
        model = get_model(spec.name)
        if task.name not in model.tasks:
            raise ConfigError(
                f"model {spec.name!r} in a recipe for {task.name!r}", f"a task of {model.tasks}", "remove the model, or change the task"
            )
        for key in (*spec.args, *spec.grid):
            if key not in settings(spec.name):
                raise ConfigError(
                    f"model {spec.label!r}: unknown setting {key!r}",
                    f"one of {settings(spec.name)}",
                    nearest(key, settings(spec.name)),
                )


def _grid(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _slug(label: str) -> str:
    """A label as a folder name: letters, digits, dot, dash; two different labels stay different."""
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in label)
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _fingerprint(events: Events) -> str:
    """A hash over all that the encoding reads."""
    digest = hashlib.sha256(json.dumps(events.schema.to_dict(), sort_keys=True).encode())
    for column in (events.user, events.item, events.domain, events.time, events.label, events.behaviour):
        if column is not None:
            digest.update(column.tobytes())
    columns = [values for c in events.context.values() for values in (c.index, c.offsets, c.values)]
    for column in (*columns, *(events.shows or ())):  # what varies by event, and what each domain may show
        if column is not None:
            digest.update(column.hash().to_numpy().tobytes() if isinstance(column, pl.Series) else column.tobytes())
    for table in (events.users, events.items, events.user_ids.to_frame(), events.item_ids.to_frame()):
        if table is not None:
            digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()[:16]


def check_writable(out: str | Path) -> None:
    """Fails early when the output folder cannot be written.

    Raises:
        StorageError: it cannot.
    """
    probe = Path(out) / ".isthmus-probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written ({error.strerror})", "a folder you may write to", "choose another one with --out"
        ) from error
