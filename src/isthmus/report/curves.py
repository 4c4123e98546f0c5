"""How the networks learnt: metrics on validation and named losses by epoch, from the logs of a comparison's parts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from isthmus import storage
from isthmus.comparison import Comparison
from isthmus.errors import SourceError
from isthmus.line import JOINT, SINGLE, ModelSpec
from isthmus.measure import ALL
from isthmus.models import get_model
from isthmus.report.figures import bare, plain, svg

COLUMNS = 4  # panels beside each other

SCHEMA = {
    "model": pl.String,
    "alone": pl.Boolean,
    "kind": pl.String,
    "name": pl.String,
    "domain": pl.String,
    "epoch": pl.Int64,
    "value": pl.Float64,
}


def curves(comparison: Comparison) -> pl.DataFrame:
    """Means over seeds, for every network line.

    Returns:
        Columns model (as in the tables), alone (a single-domain control), kind ("metric" on validation or "loss"), name, domain
        ("all" for what belongs to a joint training as a whole), epoch (from 1, counted on over stages), value.  A curve ends
        where the first of its seeds stopped, so that all its points are means over the same seeds.

    Raises:
        SourceError: a log is damaged.
    """
    specs = {spec.label: spec for spec in comparison.recipe.models}
    networks = [(specs[label], scope, by_seed) for (label, scope), by_seed in comparison.parts.items() if not _shallow(specs[label].name)]
    frames = [_line(comparison, spec, scope, by_seed) for spec, scope, by_seed in networks]
    return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)


def figures(comparison: Comparison) -> dict[str, str]:
    """Title -> SVG: for every metric that the recipe prints a panel per domain, and one figure with a panel per named loss."""
    frame = curves(comparison)
    if frame.is_empty():
        return {}
    colors = {model: f"C{number % 10}" for number, model in enumerate(_labels(frame))}
    metric, loss = frame.filter(pl.col("kind") == "metric"), frame.filter((pl.col("kind") == "loss") & ~pl.col("alone"))
    printed = comparison.recipe.metrics or comparison.task.metrics
    watched = list(dict.fromkeys(metric["name"]))
    drawn: dict[str, str] = {}
    for name in [m for m in printed if m in watched] or watched[:1]:
        mine = metric.filter(pl.col("name") == name)
        panels = [(d, mine.filter(pl.col("domain") == d)) for d in comparison.schema.domain_names]
        drawn[f"{name} on validation"] = _draw([(d, found) for d, found in panels if found.height], colors)
    over_targets = loss.group_by("model", "alone", "name", "epoch", maintain_order=True).agg(pl.col("value").mean())
    names = list(dict.fromkeys(over_targets["name"]))
    if set(names) == {"loss", "total"}:  # no terms of their own: the total is the loss
        names = ["loss"]
    drawn["losses in training"] = _draw([(n, over_targets.filter(pl.col("name") == n)) for n in names], colors)
    return drawn


def _labels(frame: pl.DataFrame) -> list[str]:
    """Lines without their controls, in order."""
    return list(dict.fromkeys(_base(model) for model in frame["model"]))


def _base(model: str) -> str:
    return model.removesuffix(f" ({SINGLE})")


def _draw(panels: Sequence[tuple[str, pl.DataFrame]], colors: dict[str, str]) -> str:
    """Small multiples: value by epoch, one colour per line, its single-domain control dashed."""
    from matplotlib.figure import Figure  # heavy: only when a page is drawn
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    across = min(COLUMNS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(2.7 * across, 4.8), 2.1 * down + 0.2 + 0.2 * math.ceil(len(colors) / 3)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    seen: dict[str, Literal["dashed", "solid"]] = {}
    for axes, (title, frame) in zip(grid, panels, strict=False):
        for (model, alone), rows in frame.group_by("model", "alone", maintain_order=True):
            seen[str(model)] = style = "dashed" if alone else "solid"
            rows, label = rows.sort("epoch"), _base(str(model))
            number = list(colors).index(label)
            width = 0.9 if alone else 1.2 + 1.6 * (1 - number / len(colors))  # of equal curves both stay visible
            axes.plot(rows["epoch"], rows["value"], linestyle=style, color=colors[label], linewidth=width, marker=".", markersize=3)
        axes.set_title(plain(title), fontsize=9, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        bare(axes, "y")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    lines = [Line2D([], [], color=colors[_base(m)], linestyle=style, linewidth=1.2) for m, style in seen.items()]
    figure.legend(lines, [plain(m) for m in seen], loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return svg(figure)


def _line(comparison: Comparison, spec: ModelSpec, scope: str, by_seed: dict[int, Path]) -> pl.DataFrame:
    rows = [(*row, seed) for seed, folder in by_seed.items() for row in _part(comparison, scope, folder)]
    keys = ["kind", "name", "domain", "epoch"]
    frame = pl.DataFrame(rows, schema={**{k: SCHEMA[k] for k in (*keys, "value")}, "seed": pl.Int64}, orient="row")
    means = frame.group_by(keys, maintain_order=True).agg(pl.col("value").mean(), pl.len().alias("seeds"))
    means = means.filter(pl.col("seeds") == len(by_seed)).with_columns(model=pl.lit(spec.entry(scope)), alone=pl.lit(scope == SINGLE))
    return means.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _part(comparison: Comparison, scope: str, folder: Path) -> Iterator[tuple[str, str, str, int, float]]:
    """(kind, name, domain, epoch, value) of the runs chosen on validation."""
    for choice in storage.read_json(folder / "part.json")["choices"]:
        if "run" not in choice:  # an older version's part: it did not say which run was chosen
            continue
        own = ALL if scope == JOINT else comparison.schema.domain_names[(choice["targets"] or choice["domains"])[0]]
        for epoch, entry in enumerate(_log(folder / choice["run"]), 1):
            for name, value in entry["losses"].items():
                yield "loss", name, own, epoch, value
            for name, values in entry["metrics"].items():
                for domain, value in values.items():
                    if domain != ALL and (scope == JOINT or domain == own):
                        yield "metric", name, domain, epoch, value


def _log(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder / 'log.jsonl'} cannot be read ({error})", "a log that fit wrote", "run the comparison again") from error


def _shallow(name: str) -> bool:
    return get_model(name).shallow
