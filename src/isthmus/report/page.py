"""The report as HTML files that need nothing else; of a recipe with cells, one for the whole and one for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, select_autoescape

from isthmus import storage
from isthmus.comparison import Comparison, Whole, cell_folder
from isthmus.insight import Insight
from isthmus.measure import ALL
from isthmus.published import sentences
from isthmus.report import curves, figures
from isthmus.report.looks import look
from isthmus.report.sheets import ROLE, draws_sheets, plain_rows
from isthmus.report.tables import compared, facts, grid


def write_page(comparison: Comparison | Whole, path: str | Path) -> Path:
    """Writes ``report.html``: facts, interval plots per domain, ledger, the paper's numbers where there are some, all metrics,
    learning curves, looks inside the models, user states.  Of a recipe with cells: tables and ledger over all cells, and a
    section for each with a link to its own page, which is written into its folder.

    Raises:
        StorageError: a file cannot be written.
        SourceError: one of the comparison's own files is damaged.
    """
    path = Path(path)
    if isinstance(comparison, Whole):
        for cell in comparison.cells.values():
            write_page(cell, cell.folder / path.name)
        name, own = "whole.html", _cells(comparison, path)
    else:
        name, own = "page.html", _one(comparison)
    return write(name, path, **_common(comparison), **own)


def write_looks(found: Mapping[str, Sequence[Insight]], path: str | Path, facts: Sequence[tuple[str, str]]) -> Path:
    """Writes what ``isthmus.inside.look_inside`` found as a page of its own, below ``facts``.

    Raises:
        StorageError: the file cannot be written.
    """
    return write("looks.html", Path(path), title="Inside the model", facts=facts, looks=_drawn(found))


def write(template: str, path: Path, **values: Any) -> Path:
    """Fills in a template of this folder."""
    loader = PackageLoader("isthmus.report", ".")
    environment = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template(template).render(**values, version=version("isthmus"))
    with storage.whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _drawn(found: Mapping[str, Sequence[Insight]]) -> dict[str, list[tuple[str, str, str]]]:
    return {label: [(i.title, i.note, look(i)) for i in insights] for label, insights in found.items()}


def _common(comparison: Comparison | Whole) -> dict[str, Any]:
    recipe, book, paper = comparison.recipe, comparison.ledger, comparison.paper
    frame = book.frame.filter(pl.col("domain") != ALL)
    order = ["against", "domain", "model"] if isinstance(comparison, Comparison) else ["against", "model", "reference", "metric"]
    return {
        "title": recipe.title or recipe.name,
        "facts": facts(comparison),
        "ledger": frame.sort(order, maintain_order=True).to_dicts(),
        "judged": book.metrics,
        "level": book.level,
        "paper": recipe.paper,
        "beside": [] if paper is None else paper.to_dicts(),
        "said": [] if paper is None else sentences(paper),
    }


def _one(comparison: Comparison) -> dict[str, Any]:
    metrics = list(dict.fromkeys(comparison.measures["metric"]))
    main = grid(comparison, comparison.ledger.metric)
    states = [s for s in dict.fromkeys(comparison.measures["state"]) if s != ALL]
    beside = comparison.paper if comparison.paper is None else comparison.paper.filter(pl.col("metric") == pl.col("metric").first())
    return {
        "main": main,
        "figures": figures.intervals(main),
        "best": comparison.ledger.best(),
        "others": [grid(comparison, m) for m in metrics if m != main.metric],
        "states": [(s, grid(comparison, main.metric, state=s)) for s in states],
        "paper_figures": {} if beside is None else figures.beside_paper(beside),
        "curves": curves.figures(comparison),
        "looks": _drawn(comparison.insights()),
    }


def _cells(whole: Whole, path: Path) -> dict[str, Any]:
    metrics = dict.fromkeys((*whole.ledger.metrics, *whole.measures["metric"]))
    cells: list[dict[str, Any]] = []
    for name, own in whole.cells.items():
        folder = cell_folder(Path(), name)
        best, drawn = own.ledger.best(), figures.intervals(grid(own, own.ledger.metric))
        shown = {"name": name, "anchor": folder.name, "link": (folder / path.name).as_posix()}
        cells.append({**shown, "facts": facts(own), "best": best, "figures": drawn})
    drawn = [] if whole.draws is None else [(title, plain_rows(sheet)) for title, sheet in draws_sheets(whole.draws)]
    tables = [grid(whole, m) for m in metrics]
    return {"tables": tables, "compared": compared(whole), "drawn": drawn, "roles": ROLE, "cells": cells}
