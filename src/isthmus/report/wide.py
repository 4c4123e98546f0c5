"""Tables of numbers that fit the console: turned, or cut into blocks of columns, never into values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

GAP = 2  # between columns
NAMES = 3  # of blocks: names of rows get this part of the width at most


@dataclass(frozen=True)
class Sheet:
    """Names of rows and columns as plain text, and values with markup.

    Attributes:
        corner: what the rows are.
        across: what the columns are, for when the table is turned.
        columns: (C,) names.
        rows: name and (C,) values of each.
    """

    corner: str
    across: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    def turned(self) -> Sheet:
        """Columns as rows."""
        rows = tuple((name, tuple(values[c] for _, values in self.rows)) for c, name in enumerate(self.columns))
        return Sheet(self.across, self.corner, tuple(name for name, _ in self.rows), rows)

    def block(self, first: int, last: int) -> Sheet:
        """Some of the columns."""
        return Sheet(self.corner, self.across, self.columns[first:last], tuple((name, v[first:last]) for name, v in self.rows))

    def widths(self, *, folded: bool) -> tuple[int, list[int]]:
        """Of the names and of each column; ``folded``: headings may break between words."""
        values = [max((cell_len(Text.from_markup(v[c]).plain) for _, v in self.rows), default=0) for c in range(len(self.columns))]
        heads = [max(map(cell_len, name.split() or [""])) if folded else cell_len(name) for name in self.columns]
        names = max((cell_len(name) for name in (self.corner, *(name for name, _ in self.rows))), default=0)
        return names, [max(pair) for pair in zip(values, heads, strict=True)]


def print_sheet(sheet: Sheet, console: Console, title: str = "") -> None:
    """Prints it in as many tables as the console's width asks for."""
    if title:
        console.print(f"[italic]{escape(title)}[/]", highlight=False)
    for number, table in enumerate(fitted(sheet, console.width)):
        if number:
            console.print()
        console.print(table)


def fitted(sheet: Sheet, width: int) -> Iterator[Table]:
    """One table where it fits as it is, with headings folded, or turned; else several, each with some of the columns (or, where
    that makes fewer of them, of the rows, turned)."""
    turned = sheet.turned()
    for candidate, folded in ((sheet, False), (sheet, True), (turned, False), (turned, True)):
        names, columns = candidate.widths(folded=folded)
        if _whole(names, columns) <= width:
            yield _table(candidate, names, columns)
            return
    yield from min((list(_blocks(candidate, width)) for candidate in (sheet, turned)), key=len)


def _blocks(sheet: Sheet, width: int) -> Iterator[Table]:
    """Each with as many columns as fit; long names are folded."""
    names, columns = sheet.widths(folded=True)
    names = min(names, max(width // NAMES, max(map(cell_len, sheet.corner.split()), default=1)))
    first = 0
    while first < len(columns):
        last = first + 1
        while last < len(columns) and _whole(names, columns[first : last + 1]) <= width:
            last += 1
        yield _table(sheet.block(first, last), names, columns[first:last])
        first = last


def _whole(names: int, columns: Sequence[int]) -> int:
    return names + sum(columns) + GAP * len(columns)


def _table(sheet: Sheet, names: int, columns: Sequence[int]) -> Table:
    """Widths are fixed: values stand on one line, names and headings may take several."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column(escape(sheet.corner), width=names, overflow="fold")
    for name, size in zip(sheet.columns, columns, strict=True):
        table.add_column(escape(name), width=size, overflow="fold")
    for name, values in sheet.rows:
        table.add_row(escape(name), *values)
    return table
