"""The report for the terminal."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isthmus.experiment import SINGLE, Comparison
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
