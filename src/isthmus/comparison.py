"""``Comparison`` and ``Whole``: what was compared, read again from what its parts kept; nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isthmus import storage
from isthmus.draws import Draws, groups, over_draws
from isthmus.insight import Insight
from isthmus.judged import Asked, Judged, judged_file
from isthmus.ledger import Entry, ledger
from isthmus.line import SINGLE, ModelSpec
from isthmus.models import get_model
from isthmus.parts import part_folder, slug
from isthmus.published import against_paper
from isthmus.published import together as papers_together
from isthmus.recipe import Recipe
from isthmus.schema import Schema
from isthmus.task import Task, get_task
from isthmus.verdicts import Ledger, in_cells, together


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns for a recipe without cells.

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


@dataclass(frozen=True)
class Whole:
    """What ``compare`` returns for a recipe with cells.

    Attributes:
        recipe: what was asked for.
        folder: where everything is kept; each cell's own below it.
        task: the task.
        cells: each cell's own comparison.  Its verdicts are corrected within the cell alone.
        measures, ledger, paper: those of all cells, a column ``cell`` in front; verdicts, and what is above or below the
            paper, are corrected over all cells.
        draws: means over cells that are draws of one split, see ``isthmus.draws``; None without any.
    """

    recipe: Recipe
    folder: Path
    task: Task
    cells: dict[str, Comparison]
    measures: pl.DataFrame
    ledger: Ledger
    paper: pl.DataFrame | None = None
    draws: Draws | None = None


def cell_folder(out: Path, name: str) -> Path:
    """Where one cell's comparison is kept."""
    return out / "cells" / slug(name)


def recall(out: str | Path) -> Comparison | Whole:
    """Measures a finished comparison's kept scores and draws its ledger; nothing is trained.

    Raises:
        SourceError: no finished comparison there, or one of its files is damaged.
    """
    out = Path(out)
    return measured(out, storage.read_json(out / "comparison.json"))


def measured(out: Path, kept: dict[str, Any]) -> Comparison | Whole:
    """The same from what ``comparison.json`` says: of a recipe with cells, ``cells`` has each one's own."""
    if "cells" not in kept:
        return _comparison(out, kept)
    recipe = Recipe.from_dict(kept["recipe"])
    cells = {cell.name: _comparison(cell_folder(out, cell.name), kept["cells"][cell.name]) for cell in recipe.cells}
    measures = in_cells({name: own.measures for name, own in cells.items()})
    book = together({name: own.ledger for name, own in cells.items()})
    papers = {name: own.paper for name, own in cells.items() if own.paper is not None}
    paper = papers_together(papers) if papers else None
    drawn = over_draws(groups(recipe.cells), measures, book.frame, {name: own.facts.get("rows") for name, own in cells.items()})
    _keep(out, measures, book, paper, drawn)
    return Whole(recipe, out, next(iter(cells.values())).task, cells, measures, book, paper, drawn)


def _comparison(out: Path, kept: dict[str, Any]) -> Comparison:
    recipe, task, schema = Recipe.from_dict(kept["recipe"]), get_task(kept["task"]), Schema.from_dict(kept["schema"])
    specs = {spec.label: spec for spec in recipe.models}
    folders: dict[tuple[str, str], dict[int, Path]] = {}
    for part in kept["parts"]:
        folder = part_folder(out, part["label"], part["scope"], part["seed"])
        folders.setdefault((part["label"], part["scope"]), {})[part["seed"]] = folder
    entries: list[Entry] = []
    frames: list[pl.DataFrame] = []
    for (label, scope), by_seed in folders.items():
        judged = {number: judge_part(folder, recipe, task) for number, folder in by_seed.items()}
        entries.append(_entry(specs[label], scope, judged))
        frames += _measures(entries[-1], scope, judged)
    book = ledger(entries, recipe.judges(task), resamples=recipe.resamples)
    paper = against_paper(recipe.paper, entries, schema, resamples=recipe.resamples) if recipe.paper else None
    measures = pl.concat(frames)
    _keep(out, measures, book, paper)
    return Comparison(recipe, out, task, schema, measures, book, kept["facts"], folders, paper)


def _keep(out: Path, measures: pl.DataFrame, book: Ledger, paper: pl.DataFrame | None, drawn: Draws | None = None) -> None:
    frames = {"measures": measures, "ledger": book.frame, "paper": paper}
    if drawn is not None:
        frames |= {"draws": drawn.values, "draws_ledger": drawn.differences}
    for name, frame in frames.items():
        if frame is not None:
            with storage.whole_file(out / f"{name}.parquet") as path:
                frame.write_parquet(path)


def judge_part(folder: Path, recipe: Recipe, task: Task) -> tuple[Judged, Judged]:
    """A finished part's test and validation scores, judged for the tables, the ledger and the paper; the latter without intervals."""
    metrics, judges = tuple(recipe.metrics or task.metrics), recipe.judges(task)
    compared = tuple(dict.fromkeys((*judges, *(recipe.paper.tables if recipe.paper else ()))))
    return (
        judged_file(folder / "test.parquet", Asked(metrics, 1000, compared, recipe.resamples)),
        judged_file(folder / "valid.parquet", Asked(metrics, 0, judges, 0)),
    )


def _entry(spec: ModelSpec, scope: str, judged: dict[int, tuple[Judged, Judged]]) -> Entry:
    """One line of the tables with what became of its scores: the model with all domains, or its single-domain control."""
    test, valid = ({seed: both[n] for seed, both in judged.items()} for n in (0, 1))
    if scope == SINGLE:
        return Entry(spec.entry(scope), None, False, test, valid)
    control = spec.entry(SINGLE) if spec.control == SINGLE else spec.control
    return Entry(spec.label, control, get_model(spec.name).shallow, test, valid, spec.against)


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
