"""Insights as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from isthmus.insight import Insight
from isthmus.report.looks import number
from isthmus.report.wide import Sheet, print_sheet


def print_looks(found: Mapping[str, Sequence[Insight]], console: Console) -> None:
    """Prints what ``isthmus.inside.look_inside`` found; points are for the page."""
    for heading, insights in found.items():
        console.print(f"\n[bold]{escape(heading)}[/]", highlight=False)
        if not insights:
            console.print("no events yet: there is nothing to look at", highlight=False)
        for insight in insights:
            console.print()
            if insight.kind == "scatter":
                console.print(f"{escape(insight.title)}: {len(insight.rows)} points, see the page", highlight=False)
            else:
                print_sheet(sheet(insight), console, insight.title)
            if insight.note:
                console.print(f"[dim]{escape(insight.note)}[/]", highlight=False)


def sheet(insight: Insight) -> Sheet:
    """Rows y, or one without a name where there is no y, and columns x."""
    found: dict[str, dict[str, str]] = {}
    for row in insight.rows:
        found.setdefault(str(row[insight.y]) if insight.y else "", {})[str(row[insight.x])] = escape(number(insight, row, ".3f"))
    columns = tuple(dict.fromkeys(str(row[insight.x]) for row in insight.rows))
    rows = tuple((name, tuple(values.get(column, "-") for column in columns)) for name, values in found.items())
    return Sheet(insight.y, insight.x, columns, rows)
