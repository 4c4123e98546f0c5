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

A scope is ``joint`` (one training for all domains), ``per-target`` (one joint training for each domain as the target) or
``single-domain`` (one training for each domain alone: the control).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isthmus import storage
from isthmus.data import sources
from isthmus.data import split as splits
from isthmus.data.events import Events
from isthmus.data.split import Split
from isthmus.errors import ConfigError, StorageError, nearest
from isthmus.insight import Insight
from isthmus.judged import Asked, Judged, judged_file
from isthmus.ledger import Entry, Ledger, ledger
from isthmus.models import get_model
from isthmus.parts import Data, Part, Say, part_folder, parts
from isthmus.published import against_paper
from isthmus.recipe import SINGLE, ModelSpec, Paper, Recipe, check, default_models
from isthmus.schema import Schema
from isthmus.task import Task, default_task, get_task

__all__ = [
    "Comparison",
    "ModelSpec",
    "Paper",
    "Recipe",
    "check_writable",
    "compare",
    "default_models",
    "make_split",
    "recall",
]


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
        parts: (label, scope) -> seed -> folder.
        paper: our numbers beside the paper's, see ``isthmus.published``; None where the recipe reproduces none.
    """

    recipe: Recipe
    folder: Path
    task: Task
    schema: Schema
    measures: pl.DataFrame
    ledger: Ledger
    facts: dict[str, Any]
    parts: dict[tuple[str, str], dict[int, Path]]
    paper: pl.DataFrame | None = None

    def insights(self) -> dict[str, list[Insight]]:
        """Looks inside the fitted models, by line; lines that have nothing to show are not in it."""
        found = {label: _insights(folders) for (label, scope), folders in self.parts.items() if scope != SINGLE}
        return {label: seen for label, seen in found.items() if seen}


def compare(recipe: Recipe, out: str | Path, *, events: Events | None = None, split: Split | None = None, say: Say = print) -> Comparison:
    """Runs what is not yet done, measures, and draws the ledger.

    Several processes may work on one folder: each takes the parts that no other one is at.

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
    check(recipe, task, events.schema)
    data = Data.prepare(events, split, out / "data", recipe.refit, say)
    jobs = list(parts(recipe, task, data))
    _run(jobs, out, data, say, lambda folder: _judged(folder, recipe, task))
    facts = {"source": recipe.source, "split": split.rule, "split_hash": split.hash, "refit": recipe.refit, "seeds": list(recipe.seeds)}
    made = [{"label": job.spec.label, "scope": job.scope, "seed": job.seed} for job in jobs]
    kept = {"recipe": dataclasses.asdict(recipe), "task": task.name, "schema": data.select.schema.to_dict(), "facts": facts, "parts": made}
    storage.write_json(out / "comparison.json", kept)
    say("measuring")
    return recall(out)


def _run(jobs: list[Part], out: Path, data: Data, say: Say, judge: Callable[[Path], Any]) -> None:
    """All parts, each by the process that claims it first; those that others are at are looked at again later."""
    left, said = list(enumerate(jobs, 1)), False
    while left:
        busy = []
        for number, job in left:
            with storage.claim(job.folder(out)) as mine:
                if mine:
                    say(f"[{number}/{len(jobs)}] {job.describe()}" + ("  (done before)" if job.finished(out) else ""))
                    judge(job.run(out, data))
                else:
                    busy.append((number, job))
        if len(busy) == len(left):
            if not said:
                say(f"waiting for {len(busy)} parts that other processes are at")
            said = True
            time.sleep(1)
        left = busy


def recall(out: str | Path) -> Comparison:
    """Measures a finished comparison's kept scores and draws its ledger; nothing is trained.

    Raises:
        SourceError: no finished comparison there, or one of its files is damaged.
    """
    out = Path(out)
    kept = storage.read_json(out / "comparison.json")
    recipe, task, schema = Recipe.from_dict(kept["recipe"]), get_task(kept["task"]), Schema.from_dict(kept["schema"])
    specs = {spec.label: spec for spec in recipe.models}
    folders: dict[tuple[str, str], dict[int, Path]] = {}
    for part in kept["parts"]:
        folder = part_folder(out, part["label"], part["scope"], part["seed"])
        folders.setdefault((part["label"], part["scope"]), {})[part["seed"]] = folder
    metrics = recipe.metrics or task.metrics
    entries: list[Entry] = []
    frames: list[pl.DataFrame] = []
    for (label, scope), by_seed in folders.items():
        judged = {number: _judged(folder, recipe, task) for number, folder in by_seed.items()}
        entries.append(_entry(specs[label], scope, judged))
        frames += _measures(entries[-1], scope, judged)
    book = ledger(entries, metrics[0], resamples=recipe.resamples)
    paper = against_paper(recipe.paper, entries, schema, resamples=recipe.resamples) if recipe.paper else None
    measures = pl.concat(frames)
    for name, frame in (("measures", measures), ("ledger", book.frame), ("paper", paper)):
        if frame is not None:
            with storage.whole_file(out / f"{name}.parquet") as path:
                frame.write_parquet(path)
    return Comparison(recipe, out, task, schema, measures, book, kept["facts"], folders, paper)


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


def _judged(folder: Path, recipe: Recipe, task: Task) -> tuple[Judged, Judged]:
    """A finished part's test and validation scores, judged for the tables, the ledger and the paper; the latter without intervals."""
    metrics = tuple(recipe.metrics or task.metrics)
    compared = tuple(dict.fromkeys((metrics[0], recipe.paper.metric))) if recipe.paper else metrics[:1]
    return (
        judged_file(folder / "test.parquet", Asked(metrics, 1000, compared, recipe.resamples)),
        judged_file(folder / "valid.parquet", Asked(metrics, 0, metrics[:1], 0)),
    )


def _entry(spec: ModelSpec, scope: str, judged: dict[int, tuple[Judged, Judged]]) -> Entry:
    """One line of the tables with what became of its scores: the model with all domains, or its single-domain control."""
    test, valid = ({seed: both[n] for seed, both in judged.items()} for n in (0, 1))
    if scope == SINGLE:
        return Entry(spec.entry(scope), None, False, test, valid)
    control = spec.entry(SINGLE) if spec.control == SINGLE else spec.control
    return Entry(spec.label, control, get_model(spec.name).shallow, test, valid)


def _measures(entry: Entry, scope: str, judged: dict[int, tuple[Judged, Judged]]) -> Iterator[pl.DataFrame]:
    """Every metric of one line by part and seed; intervals for the test part only."""
    for number, part in enumerate(("test", "valid")):
        for seed, both in judged.items():
            front = {"model": entry.model, "scope": scope, "part": part, "seed": seed}
            yield both[number].measures.select(*(pl.lit(value).alias(name) for name, value in front.items()), pl.all())


def _insights(folders: dict[int, Path]) -> list[Insight]:
    """Those of the first seed that kept any."""
    for folder in folders.values():
        if (path := folder / "insights.json").exists():
            return [Insight.from_dict(raw) for raw in storage.read_json(path)]
    return []


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
