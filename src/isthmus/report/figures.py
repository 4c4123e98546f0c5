"""Figures as SVG text, to be put into the page: nothing is loaded from anywhere."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import polars as pl

from isthmus.measure import ALL
from isthmus.report.tables import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GOOD, BAD, FLAT = "#5a6675", "#1b7f4d", "#b3362b", "#8a94a3"
COLOR = {"helps": GOOD, "hurts": BAD, "no evidence": FLAT, "": INK}


def intervals(table: Grid) -> dict[str, str]:
    """Per domain, one SVG: every model's mean and 95 % interval, coloured by its verdict against its control."""
    from matplotlib.figure import Figure  # heavy: only when a page is drawn

    figures: dict[str, str] = {}
    for column, domain in enumerate(table.domains):
        rows = [(model, cell, cell.value) for model, cells in table.rows if (cell := cells[column]).value is not None]
        figure = Figure(figsize=(6.4, 0.6 + 0.26 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (_, cell, value) in enumerate(rows):
            color = COLOR[cell.against_control]
            if cell.low is not None and cell.high is not None:
                axes.plot([cell.low, cell.high], [y, y], color=color, linewidth=2, solid_capstyle="round")
            axes.plot([value], [y], "o", color=color, markersize=6 if cell.best else 4)
        _models(axes, [model + (" ★" if cell.best else "") for model, cell, _ in rows])
        axes.set_xlabel(plain(f"{table.metric} in {domain}"), fontsize=9)
        figures[domain] = svg(figure)
    return figures


def beside_paper(frame: pl.DataFrame) -> dict[str, str]:
    """Per domain, one SVG: the paper's value of every model (hollow) beside ours with its 95 % interval over users.

    Args:
        frame: see ``isthmus.published``.
    """
    from matplotlib.figure import Figure

    figures: dict[str, str] = {}
    for (domain,), found in frame.group_by("domain", maintain_order=True):
        rows = found.rows(named=True)
        figure = Figure(figsize=(6.4, 0.8 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [y, y], color=INK, linewidth=2, solid_capstyle="round")
            if row["ours"] is not None:
                axes.plot([row["ours"]], [y], "o", color=INK, markersize=5, label="ours" if not y else None)
            axes.plot([row["paper"]], [y], "D", color=BAD, markersize=6, fillstyle="none", label="paper" if not y else None)
        _models(axes, [row["model"] for row in rows])
        axes.set_xlabel(plain(f"{rows[0]['metric']} " + ("on average" if domain == ALL else f"in {domain}")), fontsize=9)
        figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
        figures[str(domain)] = svg(figure)
    return figures


def _models(axes: Axes, names: list[str]) -> None:
    """One line per model, from the top."""
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    bare(axes, "x")


def bare(axes: Axes, grid: str) -> None:
    """Little ink: no frame but the axis that carries numbers, and a light grid along ``grid`` ("x", "y" or "both")."""
    axes.tick_params(labelsize=8)
    axes.grid(axis=grid, color="#e3e7ec", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", *(("left",) if grid == "x" else ())):
        axes.spines[side].set_visible(False)


def plain(text: str) -> str:
    """A label as it stands: no mathematics between dollars, and no leading underscore, which would hide it."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The figure as an inline <svg> element, the same bytes for the same numbers."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "isthmus", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # text stays text: the reader's own fonts draw it
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
