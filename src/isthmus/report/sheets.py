"""What the terminal shows of tables: marks, numbers and layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from isthmus.draws import Draws
from isthmus.report.tables import VERDICTS, Cell, Comparisons, Grid
from isthmus.report.wide import Sheet

MARK = {"helps": "[green]▲[/]", "hurts": "[red]▼[/]", "no evidence": "[dim]·[/]", "": " "}
COLOR = {"helps": "green", "hurts": "red"}
ROLE = {"control": "against its control", "shallow": "against the best shallow line", "line": "against other lines"}
LEGEND = (
    "[dim]marks: against its single-domain control, then the best shallow model; ▲ helps ▼ hurts · no evidence; ★ best on validation[/]"
)


def main_sheet(table: Grid, across: str = "domain") -> Sheet:
    """Values with verdicts and intervals."""
    return Sheet("model", across, table.domains, tuple((model, tuple(map(_interval, cells))) for model, cells in table.rows))


def plain_sheet(table: Grid, across: str = "domain") -> Sheet:
    """Values alone."""
    rows = tuple((model, tuple(number(c.value, ".4f") for c in cells)) for model, cells in table.rows)
    return Sheet("model", across, table.domains, rows)


def compared_sheet(table: Comparisons, across: str) -> Sheet:
    """Differences with their verdicts, and how often which verdict was given."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for model, reference, found in table.rows:
        count = Counter(cell[1] for cell in found if cell)
        cells = ["-" if cell is None else f"{MARK[cell[1]]} {cell[0]:+.4f}" for cell in found]
        name = model if table.against == "shallow" else f"{model} : {reference}"
        rows.append((name, (*cells, "  ".join(f"{MARK[v]} {count[v]}" for v in VERDICTS))))
    return Sheet("model : reference" if table.against != "shallow" else "model", across, (*table.domains, "in all"), tuple(rows))


def draws_sheets(draws: Draws) -> list[tuple[str, Sheet]]:
    """Titles and tables over draws: values by metric, then differences by metric and kind of comparison."""
    places = draws.values.select("draws", "domain").unique(maintain_order=True).rows()
    domains = Counter(name for name, _ in places)
    columns = {(name, domain): f"{name}: {domain}" if domains[name] > 1 else name for name, domain in places}
    found: list[tuple[str, Sheet]] = []
    for (metric,), frame in draws.values.group_by("metric", maintain_order=True):
        title = f"{metric}, test part: mean over draws ± standard deviation"
        text = {(r["model"], r["draws"], r["domain"]): number(r["value"], ".4f") + number(r["sd"], ".4f", " ± ") for r in frame.to_dicts()}
        found.append((title, _by_place("model", columns, dict.fromkeys(frame["model"]), text)))
    for (metric, against), frame in draws.differences.group_by("metric", "against", maintain_order=True):
        title = f"{metric} {ROLE[str(against)]}, over draws: mean difference, 95 % interval, draws ahead; above 0 the model is better"
        text = {(f"{r['model']} : {r['reference']}", r["draws"], r["domain"]): _difference(r) for r in frame.to_dicts()}
        found.append((title, _by_place("model : reference", columns, dict.fromkeys(key[0] for key in text), text)))
    return found


def plain_rows(sheet: Sheet) -> list[tuple[str, ...]]:
    """A table's heading and lines without marks of colour."""
    return [(sheet.corner, *sheet.columns), *((name, *(Text.from_markup(value).plain for value in values)) for name, values in sheet.rows)]


def _difference(r: Mapping[str, Any]) -> str:
    sure = "" if r["low"] is None or r["low"] <= 0 <= r["high"] else ("helps" if r["low"] > 0 else "hurts")
    text = f"{r['difference']:+.4f} {bounds(r['low'], r['high'], '+.4f')} {r['ahead']}/{r['n']}"
    return f"[{COLOR[sure]}]{text}[/]" if sure else text


def _by_place(corner: str, columns: Mapping[tuple[str, str], str], rows: Iterable[str], text: Mapping[tuple[str, str, str], str]) -> Sheet:
    return Sheet(corner, "draws", tuple(columns.values()), tuple((row, tuple(text.get((row, *at), "-") for at in columns)) for row in rows))


def _interval(cell: Cell) -> str:
    if cell.value is None:
        return "[dim]-[/]"
    marks = MARK[cell.against_control] + MARK[cell.against_shallow]
    half = "" if cell.low is None or cell.high is None else f" [dim]±{(cell.high - cell.low) / 2:.3f}[/]"
    value = f"{cell.value:.4f}"
    return f"{marks} {'[bold]' + value + '[/]' if cell.best else value}{half}{' ★' if cell.best else ''}"


def number(value: float | None, form: str, before: str = "") -> str:
    """A number, or a dash."""
    return "-" if value is None else before + format(value, form)


def bounds(low: float | None, high: float | None, form: str) -> str:
    """An interval, or a dash."""
    return "-" if low is None or high is None else escape(f"[{low:{form}}, {high:{form}}]")


def listing(names: tuple[str, ...], values: tuple[str, ...], last: str) -> Table:
    """A table of rows: names may be folded where the console is narrow, values are not."""
    out = Table(box=None, pad_edge=False)
    for name in names:
        out.add_column(name, overflow="fold")
    for name in values:
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column(last, no_wrap=True)
    return out
