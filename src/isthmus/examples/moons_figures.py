"""The figures of the moons: where labels change (4), where domains change (5), and features before and after alignment (6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isthmus.examples.moons import POINTS, SOURCE, TARGET, Moons, Shared, train, train_to_tell_domains
from isthmus.layers.alignment import a_distance, picture
from isthmus.report.figures import bare, svg
from isthmus.report.looks import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 160  # points of the plane along each axis
RED, BLUE, GOLD = "#c0392b", "#2e86c1", "#d4a017"


def draw(moons: Moons, seed: int = 0) -> dict[str, str]:
    """Name -> SVG of the paper's Figures 4, 5 and 6 (two, for h_spec and h_DA)."""
    every = train("adversarial", moons, seed, every=True)
    assert isinstance(every, Shared)
    with torch.no_grad():
        before, after = every.features(moons.x, (0, POINTS, 2 * POINTS))
    return {
        "figure_4_labels": _labels(moons, seed),
        "figure_5_domains": _domains(moons, every, seed),
        "figure_6_h_spec": _features("h_spec", before, moons),
        "figure_6_h_DA": _features("h_DA", after, moons),
    }


def _labels(moons: Moons, seed: int) -> str:
    """Figure 4: the target's boundary of the adversarial network (black, areas shaded) and of the plain one (green)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    plane = _plane(moons)
    target = (0, 0, GRID * GRID)
    _areas(axes, plane, lambda x: train("adversarial", moons, seed)(x, target), "black", shaded=True)
    _areas(axes, plane, lambda x: train("plain", moons, seed)(x, target), "green", shaded=False)
    x, truth = moons.x.numpy(), moons.truth.numpy() > 0.5
    source = np.arange(len(x)) < POINTS
    axes.plot(*x[source & truth].T, "+", color=RED, markersize=5, label="source, positive")
    axes.plot(*x[source & ~truth].T, "_", color=BLUE, markersize=5, label="source, negative")
    axes.plot(*x[~source].T, ".", color=GOLD, markersize=4, label="target")
    bare(axes, "both")
    return _finished(figure, axes)


def _domains(moons: Moons, every: Shared, seed: int) -> str:
    """Figure 5: what the adversarial network's global classifier and a network of the same size take for the target (shaded)."""
    from matplotlib.figure import Figure

    plane, offsets = _plane(moons), (0, 0, GRID * GRID)
    plain = train_to_tell_domains(moons, seed)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("global classifier of domains, on h_DA", lambda x: every.domains(x, offsets)),
        ("network that learns domains", lambda x: plain(x).squeeze(1)),
    ]
    left, right = figure.subplots(1, 2)
    for axes, (title, way) in zip((left, right), ways, strict=True):
        _areas(axes, plane, way, "black", shaded=True)
        for domain, color, name in ((SOURCE, BLUE, "source"), (TARGET, GOLD, "target")):
            axes.plot(*moons.x[moons.domain == domain].numpy().T, ".", color=color, markersize=4, label=name)
        axes.set_title(title, fontsize=9, loc="left")
        bare(axes, "both")
    return _finished(figure, left)


def _features(name: str, h: Tensor, moons: Moons) -> str:
    """Figure 6: principal components, and in the title how far the domains lie apart."""
    apart = a_distance(h[:POINTS], h[POINTS:])
    names = [f"{('source', 'target')[d]}, {('negative', 'positive')[int(y)]}" for d, y in zip(moons.domain, moons.truth, strict=True)]
    return look(picture(name, h, names, f" (A-distance {apart:.2f})"))


def _plane(moons: Moons) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Coordinates along both axes, and all GRID * GRID points."""
    low, high = moons.x.amin(0) - 0.3, moons.x.amax(0) + 0.3
    across, down = (np.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
    return across, down, torch.tensor(points, dtype=torch.float32)


def _areas(axes: Axes, plane: tuple[np.ndarray, np.ndarray, Tensor], way: Callable[[Tensor], Tensor], color: str, *, shaded: bool) -> None:
    """Where ``way`` is above 0."""
    across, down, points = plane
    height = way(points).detach().reshape(GRID, GRID).numpy()
    if shaded:
        axes.contourf(across, down, height, levels=[-np.inf, 0, np.inf], colors=["#dbe9f6", "#f9dcd9"])
    axes.contour(across, down, height, levels=[0], colors=[color], linewidths=1.4)


def _finished(figure: Figure, axes: Axes) -> str:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return svg(figure)
