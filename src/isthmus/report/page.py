"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import polars as pl
from jinja2 import Environment, PackageLoader, select_autoescape

from isthmus import storage
from isthmus.experiment import Comparison
from isthmus.published import sentences
from isthmus.report import curves, figures
from isthmus.report.looks import look
from isthmus.report.tables import facts, grid


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Writes ``report.html``: facts, interval plots per domain, ledger, the paper's numbers where there are some, all metrics,
    learning curves, looks inside the models, user states.

    Raises:
        StorageError: the file cannot be written.
        SourceError: one of the comparison's own files is damaged.
    """
    environment = Environment(
        loader=PackageLoader("isthmus.report", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    metrics = list(dict.fromkeys(comparison.measures["metric"]))
    main = grid(comparison, comparison.ledger.metric)
    states = [s for s in dict.fromkeys(comparison.measures["state"]) if s != "all"]
    text = environment.get_template("page.html").render(
        title=comparison.recipe.title or comparison.recipe.name,
        facts=facts(comparison),
        main=main,
        figures=figures.intervals(main),
        ledger=comparison.ledger.frame.filter(pl.col("domain") != "all").sort("against", "domain", "model").to_dicts(),
        best=comparison.ledger.best(),
        level=comparison.ledger.level,
        others=[grid(comparison, m) for m in metrics if m != main.metric],
        states=[(s, grid(comparison, main.metric, state=s)) for s in states],
        paper=comparison.recipe.paper,
        beside=[] if comparison.paper is None else comparison.paper.to_dicts(),
        said=[] if comparison.paper is None else sentences(comparison.paper),
        paper_figures={} if comparison.paper is None else figures.beside_paper(comparison.paper),
        curves=curves.figures(comparison),
        looks={label: [(i.title, i.note, look(i)) for i in found] for label, found in comparison.insights().items()},
        version=version("isthmus"),
    )
    path = Path(path)
    with storage.whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
