"""The report for the terminal."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isthmus.comparison import Comparison, Whole
from isthmus.line import SINGLE
from isthmus.measure import ALL
from isthmus.published import sentences
from isthmus.report.sheets import COLOR, LEGEND, ROLE, bounds, compared_sheet, draws_sheets, listing, main_sheet, number, plain_sheet
from isthmus.report.tables import compared, facts, grid
from isthmus.report.wide import Sheet, print_sheet
from isthmus.verdicts import CELL


def print_report(comparison: Comparison | Whole, console: Console, page: Path | None = None) -> None:
    """Prints the facts, one table per metric (those of the ledger with verdicts) and the ledger, each as wide as the console."""
    for label, text in facts(comparison):
        console.print(f"[dim]{label:>10}[/]  {escape(text)}", highlight=False)
    across, judged = "cell" if isinstance(comparison, Whole) else "domain", comparison.ledger.metrics
    metrics = list(dict.fromkeys(comparison.measures["metric"]))
    for metric in judged:
        console.print()
        title = f"{metric}, test part: mean over seeds and 95 % interval over users"
        print_sheet(main_sheet(grid(comparison, metric), across), console, title)
    console.print(LEGEND)
    for metric in metrics:
        if metric not in judged:
            console.print()
            print_sheet(plain_sheet(grid(comparison, metric), across), console, metric)
    _print_ledger(comparison, console)
    if isinstance(comparison, Whole) and comparison.draws is not None:
        for title, sheet in draws_sheets(comparison.draws):
            console.print()
            print_sheet(sheet, console, title)
    if comparison.paper is not None:
        _print_paper(comparison, comparison.paper, console)
    if page is not None:
        console.print(f"\nreport: {page}", highlight=False, soft_wrap=True)


def _print_ledger(comparison: Comparison | Whole, console: Console) -> None:
    book = comparison.ledger
    over = " over all cells and metrics" if isinstance(comparison, Whole) else ""
    console.print(f"\n[bold]The transfer ledger[/] ({', '.join(book.metrics)}; Holm-corrected at {1 - book.level:.0%}{over})")
    if isinstance(comparison, Whole):
        for table in compared(comparison):
            console.print()
            print_sheet(compared_sheet(table, "cell"), console, f"{table.metric} {ROLE[table.against]}; above 0 the model is better")
    else:
        console.print(ledger_table(comparison))
    for place, model in book.best().items():
        console.print(f"best in {escape(place)}: [bold]{escape(model)}[/] (chosen on validation)", highlight=False)


def _print_paper(comparison: Comparison | Whole, frame: pl.DataFrame, console: Console) -> None:
    """Every number of the paper beside ours, and in words where ours is above, below or undecided."""
    paper = comparison.recipe.paper
    assert paper is not None  # there is a frame only where the recipe has one
    metrics = ", ".join(dict.fromkeys(frame["metric"])) or paper.metric
    console.print(f"\n[bold]Beside the paper[/]: {escape(paper.title)} ({metrics})", highlight=False)
    if paper.note:
        console.print(f"[dim]{escape(paper.note)}[/]", highlight=False)
    if frame.is_empty():  # values of private data stand in the note alone
        return
    if isinstance(comparison, Whole):
        for (metric,), rows in frame.group_by("metric", maintain_order=True):
            console.print()
            print_sheet(_paper_sheet(rows), console, f"{metric}: ours (the paper's)")
    else:
        console.print(_paper_table(frame))
    for sentence in sentences(frame):
        console.print(escape(sentence), highlight=False, soft_wrap=True)
    console.print("[dim]the paper's numbers are taken as exact; above and below hold at 5 % for all of them together (Holm)[/]")


def _paper_sheet(frame: pl.DataFrame) -> Sheet:
    """Lines x cells: ours, and the paper's in brackets."""
    cells, models = (tuple(dict.fromkeys(frame[name])) for name in (CELL, "model"))
    found = {(r["model"], r[CELL]): f"{number(r['ours'], '.4f')} ({r['paper']:.4f})" for r in frame.iter_rows(named=True)}
    return Sheet("model", "cell", cells, tuple((m, tuple(found.get((m, c), "-") for c in cells)) for m in models))


def _paper_table(frame: pl.DataFrame) -> Table:
    metric = ("metric",) if frame["metric"].n_unique() > 1 else ()
    out = listing(("model", "domain", *metric), ("paper", "ours", "95 % over users", "over seeds", "difference"), "ours is")
    before = None
    for r in frame.iter_rows(named=True):
        numbers = (number(r["paper"], ".4f"), number(r["ours"], ".4f"), bounds(r["low"], r["high"], ".4f"), number(r["spread"], ".4f", "±"))
        domain = "average" if r["domain"] == ALL else escape(r["domain"])
        name = "" if r["model"] == before else escape(r["model"])
        out.add_row(name, domain, *(r[m] for m in metric), *numbers, number(r["difference"], "+.4f"), r["verdict"])
        before = r["model"]
    return out


def ledger_table(comparison: Comparison) -> Table:
    """The comparisons of the joint models; the controls' own against shallow models stand in the page and the file."""
    metric = ("metric",) if len(comparison.ledger.metrics) > 1 else ()
    out = listing(("model", "domain", *metric, "against"), ("difference", "95 % interval", "p (Holm)"), "verdict")
    frame = comparison.ledger.frame.filter((pl.col("domain") != ALL) & ~pl.col("model").str.ends_with(f"({SINGLE})"))
    for r in frame.sort("against", "domain", "model", maintain_order=True).iter_rows(named=True):
        color = COLOR.get(r["verdict"], "dim")
        out.add_row(
            escape(r["model"]),
            escape(r["domain"]),
            *(r[m] for m in metric),
            escape(r["reference"]),
            f"{r['difference']:+.4f}",
            bounds(r["low"], r["high"], "+.4f"),
            f"{r['p_holm']:.3f}",
            f"[{color}]{r['verdict']}[/]",
        )
    return out
