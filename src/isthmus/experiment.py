"""``compare``: data x models x seeds -> scores -> measures -> ledger, each part kept and never run twice.

A comparison folder::

    comparison.json       what was asked for, and which parts make it up
    data/<hash>/          the encoded data sets (``train`` to select on; ``final`` with train + validation)
    parts/<label>/<scope>/<seed>/
        run/ or run-<d>/  fitted models, with their logs
        valid.parquet, test.parquet     scores
        valid.judged.parquet, test.judged.parquet   what the tables and the ledger need of them, judged again when anything changed
        insights.json     what the fitted model shows of itself (first seed of the joint networks that have something to show)
        part.json         written last: the part is finished, under which fingerprint, and what was chosen on validation
    measures.parquet, ledger.parquet, paper.parquet (of a recipe that reproduces a paper), report.html

The folder of a recipe with cells has all this for each cell in ``cells/<name>/``, and beside it comparison.json, the parquet files
and report.html of the whole.

A scope is ``joint`` (one training for all domains), ``per-target`` (one joint training for each domain as the target) or
``single-domain`` (one training for each domain alone: the control).
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isthmus import cluster, storage
from isthmus.comparison import Comparison, Whole, cell_folder, judge_part, measured, recall
from isthmus.data import sources
from isthmus.data.dataset import Dataset
from isthmus.data.events import Events
from isthmus.data.rules import make_split
from isthmus.data.sources import Loaded
from isthmus.data.split import Split
from isthmus.errors import ConfigError, StorageError
from isthmus.line import ModelSpec
from isthmus.paper import Paper
from isthmus.parts import Data, Part, Say, digest, parts
from isthmus.recipe import Recipe, check, default_models
from isthmus.task import Task, default_task, get_task

__all__ = [
    "Comparison",
    "ModelSpec",
    "Paper",
    "Recipe",
    "Whole",
    "check_writable",
    "compare",
    "default_models",
    "recall",
]


def compare(
    recipe: Recipe,
    out: str | Path,
    *,
    events: Events | None = None,
    split: Split | None = None,
    say: Say = print,
    ray: bool = False,
    gpus: float | None = None,
) -> Comparison | Whole:
    """Runs what is not yet done, measures, and draws the ledger.

    Several processes may work on one folder: each takes the parts that no other one is at.

    Args:
        recipe: what to run; all its cells are checked before the first one is trained.
        out: the comparison's folder; finished parts found there are not run again.
        events, split: data already in memory, in place of the recipe's source and split.
        say: gets one line per step.
        ray: several parts at once, on a Ray cluster (see ``isthmus.cluster``); the outcome is the same.
        gpus: of each part there; None: one where the cluster has any.

    Returns:
        ``Whole`` for a recipe with cells, else ``Comparison``.

    Raises:
        IsthmusError: any of the tree; nothing half-written is left.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with cluster.joined(out) if ray else nullcontext():
        kept = _trained(recipe, out, events, split, say, partial(_on_cluster, gpus=gpus) if ray else _one_by_one)
    say("measuring")
    return measured(out, kept)


def _trained(recipe: Recipe, out: Path, events: Events | None, split: Split | None, say: Say, each: Each) -> dict[str, Any]:
    """All that has to be done before measuring; returns what ``comparison.json`` says."""
    asked = list(_asked(recipe, out, events, split, say))
    if len(tasks := {a.task.name for a in asked}) > 1:
        raise ConfigError(f"cells of the tasks {sorted(tasks)}", "one task", 'task = "..."')
    work = [_Work.prepare(a, say) for a in asked]
    del asked
    _run(work, say, each)
    for one in work:
        storage.write_json(one.folder / "comparison.json", one.kept)
    kept = work[0].kept
    if recipe.cells:
        kept = {"recipe": dataclasses.asdict(recipe), "cells": {cell.name: one.kept for cell, one in zip(recipe.cells, work, strict=True)}}
        storage.write_json(out / "comparison.json", kept)
    return kept


@dataclass(frozen=True)
class _Asked:
    """One comparison to make, checked: the recipe's, or that of one of its cells."""

    name: str
    recipe: Recipe
    folder: Path
    task: Task
    events: Events
    split: Split


def _asked(recipe: Recipe, out: Path, events: Events | None, split: Split | None, say: Say) -> Iterator[_Asked]:
    """Reads and checks what each comparison needs; a source is read once for all cells that read it alike."""
    if split is not None and recipe.cells:
        raise ConfigError("a split in memory, and a recipe with cells", "a rule in the recipe", "leave the split out, or the cells")
    read: dict[str, Loaded] = {}
    for cell in recipe.cells or (None,):
        own, name = (recipe, "") if cell is None else (recipe.of(cell), cell.name)
        given, brought = events, split
        if given is None:
            key = digest([own.source, own.source_args])
            if key not in read:
                say(f"reading {own.source}")
                read[key] = sources.load(own.source, **own.source_args)
            given, brought = read[key].events, split or read[key].split
        elif cell is not None and cell.changes_data:
            raise ConfigError(f"events in memory, and a cell {name!r} with data of its own", "one of both", "leave the events out")
        task = get_task(own.task) if own.task else default_task(given.schema)
        made = make_split(given, own.split, own.split_args, brought)
        check(own, task, given.schema)
        yield _Asked(name, own, cell_folder(out, name) if name else out, task, given, made)


@dataclass(frozen=True)
class _Work:
    """One comparison with its encoded data and its parts."""

    name: str
    recipe: Recipe
    folder: Path
    task: Task
    data: Data
    parts: tuple[Part, ...]
    kept: dict[str, Any]

    @classmethod
    def prepare(cls, a: _Asked, say: Say) -> _Work:
        data = Data.prepare(a.events, a.split, a.folder / "data", a.recipe.refit, say)
        made = tuple(parts(a.recipe, a.task, data))
        facts: dict[str, Any] = {"source": a.recipe.source, "split": a.split.rule, "split_hash": a.split.hash}
        facts |= {"refit": a.recipe.refit, "seeds": list(a.recipe.seeds), "rows": _rows(data.final)}
        named = [{"label": part.spec.label, "scope": part.scope, "seed": part.seed} for part in made]
        kept = {"recipe": dataclasses.asdict(a.recipe), "task": a.task.name, "schema": data.select.schema.to_dict()}
        return cls(a.name, a.recipe, a.folder, a.task, data, made, kept | {"facts": facts, "parts": named})


def _rows(dataset: Dataset) -> dict[str, int]:
    """Training and test rows of the domains that have rows to test."""
    sizes = {part: np.diff(np.asarray(dataset.part(part).offsets)) for part in ("train", "test")}
    return {part: int(size[sizes["test"] > 0].sum()) for part, size in sizes.items()}


@dataclass(frozen=True)
class _Job:
    """A part and all that doing it takes; ``place`` is what is said before its name."""

    place: str
    part: Part
    folder: Path
    data: Data
    recipe: Recipe
    task: Task

    def __str__(self) -> str:
        return self.place + self.part.describe()

    def take(self, say: Say) -> bool:
        """Does the part, unless another process is at it; whether it was free."""
        with storage.claim(self.part.folder(self.folder)) as mine:
            if mine:
                say(f"{self}  (done before)" if self.part.finished(self.folder) else str(self))
                judge_part(self.part.run(self.folder, self.data), self.recipe, self.task)
        return mine


def _jobs(work: list[_Work]) -> list[_Job]:
    total = sum(len(one.parts) for one in work)
    places = (f"[{number}/{total}] " for number in itertools.count(1))
    return [
        _Job(next(places) + (f"{one.name}: " if one.name else ""), part, one.folder, one.data, one.recipe, one.task)
        for one in work
        for part in one.parts
    ]


Each = Callable[[list[_Job], Say], Iterator[tuple[_Job, bool]]]  # takes jobs; which were free


def _one_by_one(jobs: list[_Job], say: Say) -> Iterator[tuple[_Job, bool]]:
    for job in jobs:
        yield job, job.take(say)


def _on_cluster(jobs: list[_Job], say: Say, gpus: float | None) -> Iterator[tuple[_Job, bool]]:
    """Many at once; a line is said when its part is done."""
    there = [dataclasses.replace(job, folder=job.folder.absolute()) for job in jobs]
    for job, lines in cluster.spread(_taken, there, lambda job: cluster.Share.of(job.part.how, gpus), say):
        for line in lines:
            say(line)
        yield job, bool(lines)


def _taken(job: _Job) -> list[str]:
    """What is said of it; nothing where another process is at it."""
    lines: list[str] = []
    job.take(lines.append)
    return lines


def _run(work: list[_Work], say: Say, each: Each) -> None:
    """All parts, each by the process that claims it first; those that others are at are looked at again later."""
    left, said = _jobs(work), False
    while left:
        busy = [job for job, free in each(left, say) if not free]
        if len(busy) == len(left):
            if not said:
                say(f"waiting for {len(busy)} parts that other processes are at")
            said = True
            time.sleep(1)
        left = busy


def check_writable(out: str | Path) -> None:
    """Fails early when the output folder cannot be written.

    Raises:
        StorageError: it cannot.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # a name of its own: several processes may share the folder's parts
            pass
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written ({error.strerror})", "a folder you may write to", "choose another one with --out"
        ) from error
