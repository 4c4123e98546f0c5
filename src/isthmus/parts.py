"""The parts of a comparison: one line, one scope, one seed; each fitted, scored, kept, and never run twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import storage
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.split import Split
from isthmus.fit import How, Run, build, fit
from isthmus.inside import examples
from isthmus.insight import Insight
from isthmus.line import JOINT, SINGLE, ModelSpec, args_of, fit_of, grid_points
from isthmus.models import get_model
from isthmus.recipe import Recipe
from isthmus.score import score
from isthmus.scores import Scores
from isthmus.task import Task

FORMAT = 3  # raise when the meaning of a finished part changes
HARMLESS = ("progress", "threads", "tensorboard", "checkpoint_minutes", "targets")  # settings that are no part of a question

Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """The data set to select on, and the one for the final training (the same unless ``refit``)."""

    select: Dataset
    final: Dataset

    @classmethod
    def prepare(cls, events: Events, split: Split, folder: Path, refit: bool, say: Say) -> Data:
        """Encodes the events, unless the folder holds them already."""
        root = folder / digest({"split": split.hash, "events": fingerprint(events)})
        select = cls._one(events, split, root / "train", say)
        final = cls._one(events, split.merged(), root / "final", say) if refit else select
        return cls(select, final)

    @staticmethod
    def _one(events: Events, split: Split, path: Path, say: Say) -> Dataset:
        with storage.claim(path, wait=True):
            if path.exists():
                return Dataset.load(path)
            say(f"encoding {len(events):,} events")
            return encode(events, split, path)


@dataclass(frozen=True)
class Group:
    """One training of a part.

    Attributes:
        domain: name of the only domain that is scored from it, or None (all).
        domains: trained on these domain indices; None: all.
        targets: epoch and grid point are chosen on these domain indices; None: all that are trained.
    """

    domain: str | None = None
    domains: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None

    @property
    def scored(self) -> tuple[int, ...] | None:
        """Domain indices that are scored from it; None: all."""
        return self.targets if self.domains is None else self.domains

    def folder(self, kind: str, number: int | None = None) -> str:
        """Name of a run's folder: ``run`` to select, ``final`` after refitting; ``number`` is the grid point."""
        return slug(kind + ("" if self.domain is None else f"-{self.domain}") + ("" if number is None else f"-{number}"))


def groups(scope: str, dataset: Dataset) -> list[Group]:
    """The trainings of a scope: one for all domains, one for each alone, or one for each as the target.

    A domain without rows to test has no training of its own.
    """
    if scope == JOINT:
        return [Group()]
    tested = np.flatnonzero(np.diff(np.asarray(dataset.part("test").offsets))).tolist()
    named = [(d, dataset.schema.domain_names[d]) for d in tested]
    if scope == SINGLE:
        return [Group(name, domains=(d,)) for d, name in named]
    return [Group(name, targets=(d,)) for d, name in named]


@dataclass(frozen=True)
class Part:
    """One line of the recipe in one scope, with one seed.

    Attributes:
        insights: look inside the fitted models too.
        sampled: items that those chosen are ranked among, see ``Recipe.sampled``.
    """

    spec: ModelSpec
    scope: str
    seed: int
    how: How
    task: Task
    refit: bool
    data_key: str
    insights: bool = False
    sampled: int | None = None

    def describe(self) -> str:
        """One line for people."""
        scope = "" if self.scope == JOINT else f" ({self.scope})"
        return f"{self.spec.label}{scope}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return part_folder(out, self.spec.label, self.scope, self.seed)

    @property
    def key(self) -> str:
        """A hash of the question that it answers; settings at their defaults are left out, so a new one changes no old question."""
        usual = dataclasses.asdict(How())
        how = {k: v for k, v in dataclasses.asdict(self.how).items() if k not in HARMLESS and v != usual[k]}
        asked = {"name": self.spec.name, "args": self.spec.args, "grid": self.spec.grid, "how": how}
        place = {"scope": self.scope, "seed": self.seed, "task": self.task.name, "refit": self.refit, "data": self.data_key}
        place |= {} if self.sampled is None else {"sampled": self.sampled}
        return digest({**asked, **place, "format": FORMAT})

    def finished(self, out: Path) -> bool:
        """Is this very question answered already?"""
        mark = self.folder(out) / "part.json"
        return mark.exists() and storage.read_json(mark)["key"] == self.key

    def run(self, out: Path, data: Data) -> Path:
        """Does the part unless it is done; returns its folder."""
        folder = self.folder(out)
        if self.finished(out):
            return folder
        asked = folder / "asked.json"
        if not asked.exists() or storage.read_json(asked) != self.key:  # an older question's leftovers
            shutil.rmtree(folder, ignore_errors=True)
            storage.write_json(asked, self.key)
        valid, test, choices, insights = [], [], [], []
        for group in groups(self.scope, data.select):
            run, choice, on_valid = self._choose(folder, data, group)
            valid.append(on_valid)
            last = data.final if self.refit else data.select
            test.append(self._score(run, last, "test", group))
            choices.append(choice)
            insights += self._look(run, last, group) if self.insights else []
        Scores.concat(valid).save(folder / "valid.parquet")
        Scores.concat(test).save(folder / "test.parquet")
        if insights:
            storage.write_json(folder / "insights.json", [i.to_dict() for i in insights])
        storage.write_json(folder / "part.json", {"key": self.key, "choices": choices})
        return folder

    def _choose(self, folder: Path, data: Data, group: Group) -> tuple[Run, dict[str, Any], Scores]:
        """Chooses grid point and epoch on validation, and trains once more on train + validation when asked."""
        how = dataclasses.replace(self.how, seed=self.seed, domains=group.domains)
        if group.targets is not None:
            how = dataclasses.replace(how, targets=group.targets)
        best: tuple[dict[str, Any], Run, str] | None = None
        for number, point in enumerate(grid_points(self.spec.grid)):
            place = group.folder("run", number if self.spec.grid else None)
            model = build(self.spec.name, data.select.schema, {**self.spec.args, **args_of(point)}, seed=self.seed)
            run = fit(model, data.select, self.task, dataclasses.replace(how, **fit_of(point)), folder / place, resume=True)
            if best is None or run.best.beats(best[1].best):
                best = (point, run, place)
        assert best is not None  # a grid has at least the empty point
        point, run, place = best
        chosen, epochs = run.best, run.best.epoch + 1
        on_valid = self._score(run, data.select, "valid", group)
        if self.refit:
            model = build(self.spec.name, data.final.schema, {**self.spec.args, **args_of(point)}, seed=self.seed)
            last = dataclasses.replace(run.how, stop=epochs, patience=None)
            run = fit(model, data.final, self.task, last, folder / group.folder("final"), resume=True)
        choice = {"domains": group.domains, "targets": group.targets, "point": point, "epochs": epochs, "valid": chosen.value}
        return run, choice | {"run": place}, on_valid

    def _score(self, run: Run, dataset: Dataset, part: str, group: Group) -> Scores:
        among: dict[str, Any] = {} if self.sampled is None else {"candidates": "sampled", "sampled": self.sampled}
        return score(run.model, dataset, part, task=self.task, how=run.how, domains=group.scored, **among)

    @staticmethod
    def _look(run: Run, dataset: Dataset, group: Group) -> list[Insight]:
        """What the model shows of itself; of several trainings each one says whose it is."""
        found = run.model.insights(dataset) + examples(run.model, dataset, run.how)
        if group.domain is None:
            return found
        return [dataclasses.replace(i, name=f"{i.name}-{group.domain}", title=f"{i.title} (target {group.domain})") for i in found]


def parts(recipe: Recipe, task: Task, data: Data) -> Iterator[Part]:
    """All parts in the order of the recipe; closed-form models have one seed, and no network trains alone twice."""
    data_key = data.select.path.parent.name
    for spec in recipe.models:
        shallow = get_model(spec.name).shallow
        for scope in spec.scopes:
            how = How.of({**recipe.fit, **spec.training(scope)})
            for seed in recipe.seeds[:1] if shallow else recipe.seeds:
                look = not shallow and scope != SINGLE and seed == recipe.seeds[0]
                yield Part(spec, scope, seed, how, task, recipe.refit, data_key, look, recipe.sampled)


def part_folder(out: Path, label: str, scope: str, seed: int) -> Path:
    """Where a part is kept."""
    return out / "parts" / slug(label) / scope / str(seed)


def slug(label: str) -> str:
    """A label as a folder name: letters, digits, dot, dash; two different labels stay different."""
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in label)
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def digest(value: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(events: Events) -> str:
    """A hash over all that the encoding reads."""
    found = hashlib.sha256(json.dumps(events.schema.to_dict(), sort_keys=True).encode())
    for column in (events.user, events.item, events.domain, events.time, events.label, events.behaviour):
        if column is not None:
            found.update(column.tobytes())
    columns = [values for c in events.context.values() for values in (c.index, c.offsets, c.values)]
    for column in (*columns, *(events.shows or ())):  # what varies by event, and what each domain may show
        if column is not None:
            found.update(column.hash().to_numpy().tobytes() if isinstance(column, pl.Series) else column.tobytes())
    for table in (events.users, events.items, events.user_ids.to_frame(), events.item_ids.to_frame()):
        if table is not None:
            found.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return found.hexdigest()[:16]
