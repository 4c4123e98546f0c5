"""The report for the terminal."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isthmus.experiment import Comparison
from isthmus.measure import ALL
from isthmus.published import sentences
from isthmus.recipe import SINGLE
from isthmus.report.tables import Cell, Grid, facts, grid

MARK = {"helps": "[green]▲[/]", "hurts": "[red]▼[/]", "no evidence": "[dim]·[/]", "": " "}


def print_report(comparison: Comparison, console: Console, page: Path | None = None) -> None:
    """Prints the facts, one table per metric (the first with verdicts) and the ledger's sentences."""
    for label, text in facts(comparison):
        console.print(f"[dim]{label:>10}[/]  {escape(text)}", highlight=False)
    metrics = list(dict.fromkeys(comparison.measures["metric"]))
    main = comparison.ledger.metric
    _print_main(grid(comparison, main), console)
    for metric in metrics:
        if metric != main:
            _print_plain(grid(comparison, metric), console)
    _print_ledger(comparison, console)
    if comparison.paper is not None:
        _print_paper(comparison, comparison.paper, console)
    if page is not None:
        console.print(f"\nreport: {page}", highlight=False, soft_wrap=True)


def _print_main(table: Grid, console: Console) -> None:
    out = Table(
        title=f"{table.metric}, test part: mean over seeds and 95 % interval over users", title_justify="left", box=None, pad_edge=False
    )
    out.add_column("model", no_wrap=True)
    for domain in table.domains:
        out.add_column(escape(domain), justify="left", no_wrap=True)
    for model, cells in table.rows:
        out.add_row(escape(model), *(_interval(c) for c in cells))
    console.print()
    console.print(out)
    console.print(
        "[dim]marks: against its single-domain control, then the best shallow model; ▲ helps ▼ hurts · no evidence; ★ best on validation[/]"
    )


def _interval(cell: Cell) -> str:
    if cell.value is None:
        return "[dim]-[/]"
    marks = MARK[cell.against_control] + MARK[cell.against_shallow]
    half = "" if cell.low is None or cell.high is None else f" [dim]±{(cell.high - cell.low) / 2:.3f}[/]"
    value = f"{cell.value:.4f}"
    return f"{marks} {'[bold]' + value + '[/]' if cell.best else value}{half}{' ★' if cell.best else ''}"


def _print_plain(table: Grid, console: Console) -> None:
    out = Table(title=table.metric, title_justify="left", box=None, pad_edge=False)
    out.add_column("model", no_wrap=True)
    for domain in table.domains:
        out.add_column(escape(domain), justify="right")
    for model, cells in table.rows:
        out.add_row(escape(model), *("-" if c.value is None else f"{c.value:.4f}" for c in cells))
    console.print()
    console.print(out)


def _print_ledger(comparison: Comparison, console: Console) -> None:
    console.print(f"\n[bold]The transfer ledger[/] ({comparison.ledger.metric}; Holm-corrected at {1 - comparison.ledger.level:.0%})")
    console.print(ledger_table(comparison))
    for domain, model in comparison.ledger.best().items():
        console.print(f"best in {escape(domain)}: [bold]{escape(model)}[/] (chosen on validation)", highlight=False)


def _print_paper(comparison: Comparison, frame: pl.DataFrame, console: Console) -> None:
    """Every number of the paper beside ours, and in words where ours is above, below or undecided."""
    paper = comparison.recipe.paper
    assert paper is not None  # there is a frame only where the recipe has one
    console.print(f"\n[bold]Beside the paper[/]: {escape(paper.title)} ({paper.metric})", highlight=False)
    if paper.note:
        console.print(f"[dim]{escape(paper.note)}[/]", highlight=False)
    if frame.is_empty():  # values of private data stand in the note alone
        return
    out = Table(box=None, pad_edge=False)
    out.add_column("model", no_wrap=True)
    out.add_column("domain", no_wrap=True)
    for name in ("paper", "ours", "95 % over users", "over seeds", "difference"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("ours is", no_wrap=True)
    before = None
    for r in frame.iter_rows(named=True):
        bounds = "-" if r["low"] is None else f"\\[{r['low']:.4f}, {r['high']:.4f}]"
        numbers = (_number(r["paper"], ".4f"), _number(r["ours"], ".4f"), bounds, _number(r["spread"], ".4f", "±"))
        domain = "average" if r["domain"] == ALL else escape(r["domain"])
        name = "" if r["model"] == before else escape(r["model"])
        out.add_row(name, domain, *numbers, _number(r["difference"], "+.4f"), r["verdict"])
        before = r["model"]
    console.print(out)
    for sentence in sentences(frame):
        console.print(escape(sentence), highlight=False, soft_wrap=True)
    console.print("[dim]the paper's numbers are taken as exact; above and below hold at 5 % for all of them together (Holm)[/]")


def _number(value: float | None, form: str, before: str = "") -> str:
    return "-" if value is None else before + format(value, form)


def ledger_table(comparison: Comparison) -> Table:
    """The comparisons of the joint models; the controls' own against shallow models stand in the page and the file."""
    out = Table(box=None, pad_edge=False)
    for name, justify in (
        ("model", "left"),
        ("domain", "left"),
        ("against", "left"),
        ("difference", "right"),
        ("95 % interval", "right"),
        ("p (Holm)", "right"),
        ("verdict", "left"),
    ):
        out.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    frame = comparison.ledger.frame.filter((pl.col("domain") != "all") & ~pl.col("model").str.ends_with(f"({SINGLE})"))
    for r in frame.sort("against", "domain", "model").iter_rows(named=True):
        color = {"helps": "green", "hurts": "red"}.get(r["verdict"], "dim")
        out.add_row(
            escape(r["model"]),
            escape(r["domain"]),
            escape(r["reference"]),
            f"{r['difference']:+.4f}",
            f"[{r['low']:+.4f}, {r['high']:+.4f}]".replace("[", "\\["),
            f"{r['p_holm']:.3f}",
            f"[{color}]{r['verdict']}[/]",
        )
    return out
