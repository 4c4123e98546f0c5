"""Figures as SVG text, to be put into the page: nothing is loaded from anywhere."""

from __future__ import annotations

import io

from isthmus.report.tables import Grid

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
        axes.set_yticks(range(len(rows)), [model + (" ★" if cell.best else "") for model, cell, _ in rows], fontsize=8)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="#e3e7ec", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel(f"{table.metric} in {domain}", fontsize=9)
        figures[domain] = _svg(figure)
    return figures


def _svg(figure: object) -> str:
    """The figure as an inline <svg> element, the same bytes for the same numbers."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "isthmus", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)  # type: ignore[attr-defined]
    text = buffer.getvalue()
    return text[text.index("<svg") :]
