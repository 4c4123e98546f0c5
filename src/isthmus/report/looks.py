"""Insights as SVG: what a fitted model shows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isthmus.insight import Insight
from isthmus.report.figures import INK, bare, plain, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WRITTEN = 240  # cells of a heat map that get their number written in
POINTS = 2000  # more become an image: each one is an element of the page


def look(insight: Insight) -> str:
    """One insight as an inline <svg> element."""
    from matplotlib.figure import Figure  # heavy: only when a page is drawn

    columns, lines = len(_distinct(insight, insight.x)), len(_distinct(insight, insight.y)) if insight.y else 1
    cell = 0.9 if insight.beside else 0.55
    size = {"heatmap": (2.0 + cell * columns, 1.2 + 0.3 * lines), "bars": (2.0 + 0.2 * columns * max(lines, 2), 2.8)}
    width, height = size.get(insight.kind, (5.6, 3.6))
    figure = Figure(figsize=(min(max(width, 4.0), 14.0), min(max(height, 1.6), 12.0)), layout="constrained")
    axes = figure.subplots()
    {"heatmap": _heatmap, "bars": _bars, "lines": _lines, "scatter": _scatter}[insight.kind](figure, axes, insight)
    return svg(figure)


def number(insight: Insight, row: Mapping[str, Any], form: str) -> str:
    """A row's value, what stands beside it in brackets."""
    return format(row[insight.value], form) + (f" ({row[insight.beside]:{form}})" if insight.beside else "")


def _distinct(insight: Insight, column: str) -> list[Any]:
    """Values in order of appearance."""
    return list(dict.fromkeys(row[column] for row in insight.rows))


def _heatmap(figure: Figure, axes: Axes, insight: Insight) -> None:
    import numpy as np

    xs, ys = _distinct(insight, insight.x), _distinct(insight, insight.y)
    cells, written = np.full((len(ys), len(xs)), np.nan), {}
    for row in insight.rows:
        place = ys.index(row[insight.y]), xs.index(row[insight.x])
        cells[place], written[place] = row[insight.value], number(insight, row, ".2f")
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    reach = max(abs(low), abs(high))
    colors = {"cmap": "RdBu", "vmin": -reach, "vmax": reach} if low < 0 < high else {"cmap": "Blues", "vmin": low, "vmax": high}
    drawn = axes.pcolormesh(np.ma.masked_invalid(cells), edgecolors="white", linewidth=1, **colors)
    if cells.size <= WRITTEN:
        for (y, x), value in np.ndenumerate(cells):
            if not np.isnan(value):
                shade = float(drawn.norm(float(value)))  # type: ignore[arg-type]
                dark = shade > 0.5 if low >= 0 or high <= 0 else abs(shade - 0.5) > 0.3
                axes.text(x + 0.5, y + 0.5, written[y, x], ha="center", va="center", fontsize=7, color="white" if dark else INK)
    axes.set_xticks(np.arange(len(xs)) + 0.5, [plain(str(x)) for x in xs], fontsize=8, **_slanted(xs))
    axes.set_yticks(np.arange(len(ys)) + 0.5, [plain(str(y)) for y in ys], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(plain(insight.x), fontsize=9)
    axes.set_ylabel(plain(insight.y), fontsize=9)
    figure.colorbar(drawn, ax=axes, label=plain(insight.value)).ax.tick_params(labelsize=8)


def _slanted(names: list[Any]) -> dict[str, Any]:
    """Many names, or long ones, are written aslant."""
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(names) > 6 or max(len(str(n)) for n in names) > 9 else {}


def _series(insight: Insight) -> dict[str, list[dict[str, Any]]]:
    """Rows by series; one without a name when there is no column for it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in insight.rows:
        found.setdefault(str(row[insight.y]) if insight.y else "", []).append(row)
    return found


def _bars(figure: Figure, axes: Axes, insight: Insight) -> None:
    xs, series = _distinct(insight, insight.x), _series(insight)
    width = 0.8 / len(series)
    for number, (name, rows) in enumerate(series.items()):
        at = [xs.index(row[insight.x]) + (number - (len(series) - 1) / 2) * width for row in rows]
        axes.bar(at, [row[insight.value] for row in rows], width * 0.92, color=f"C{number % 10}", label=plain(name))
    axes.set_xticks(range(len(xs)), [plain(str(x)) for x in xs], **_slanted(xs))
    _dress(figure, axes, insight.x, insight.value, named=len(series) > 1)


def _lines(figure: Figure, axes: Axes, insight: Insight) -> None:
    series = _series(insight)
    for number, (name, rows) in enumerate(series.items()):
        rows = sorted(rows, key=lambda row: row[insight.x])
        xs, values = [r[insight.x] for r in rows], [r[insight.value] for r in rows]
        axes.plot(xs, values, marker=".", linewidth=1.4, color=f"C{number % 10}", label=plain(name))
    _dress(figure, axes, insight.x, insight.value, named=len(series) > 1)


def _scatter(figure: Figure, axes: Axes, insight: Insight) -> None:
    image = len(insight.rows) > POINTS
    values = [row[insight.value] for row in insight.rows] if insight.value else []
    xs, ys = ([row[column] for row in insight.rows] for column in (insight.x, insight.y))
    if values and all(not isinstance(v, str) for v in values):
        drawn = axes.scatter(xs, ys, c=values, s=9, cmap="viridis", linewidths=0, rasterized=image)
        figure.colorbar(drawn, ax=axes, label=plain(insight.value)).ax.tick_params(labelsize=8)
        _dress(figure, axes, insight.x, insight.y, named=False)
        return
    names = list(dict.fromkeys(map(str, values))) or [""]
    for number, name in enumerate(names):
        mine = [i for i in range(len(xs)) if not values or str(values[i]) == name]
        at = [xs[i] for i in mine], [ys[i] for i in mine]
        axes.scatter(*at, s=9, color=f"C{number % 10}", linewidths=0, alpha=0.7, label=plain(name), rasterized=image)
    _dress(figure, axes, insight.x, insight.y, named=len(names) > 1)


def _dress(figure: Figure, axes: Axes, x: str, y: str, *, named: bool) -> None:
    axes.set_xlabel(plain(x), fontsize=9)
    axes.set_ylabel(plain(y), fontsize=9)
    bare(axes, "y")
    if named:
        figure.legend(loc="outside lower left", ncols=4, fontsize=8, frameon=False)
