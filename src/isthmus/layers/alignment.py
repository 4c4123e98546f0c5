"""How alike the features of several domains are: what a picture shows, and one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.insight import Insight

RIDGE = 1e-3  # of the mean variance, so that features that never vary do no harm


def principal(x: Tensor) -> Tensor:
    """(N, width) -> (N, 2): the two directions of most variance, each with its largest weight positive (so that signs repeat)."""
    centred = (x - x.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    first = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    first[: min(2, len(directions))] = directions[:2]
    sign = first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    return (centred @ (first * sign).T).to(x.dtype)


def picture(layer: str, h: Tensor, rows: Sequence[str], more: str = "") -> Insight:
    """The first two principal components, coloured by what each row is.

    Args:
        layer: whose features they are.
        h: (N, width).
        rows: (N,) names to colour by.
        more: ends the title.
    """
    points: list[dict[str, float | str]] = [
        {"first": x, "second": y, "rows": name} for (x, y), name in zip(principal(h).tolist(), rows, strict=True)
    ]
    return Insight(layer, f"{layer}: principal components{more}", "scatter", points, "first", "second", "rows")


def a_distance(here: Tensor, there: Tensor) -> float:
    """The proxy A-distance 2 (1 - 2 error) of two sets of features (Ben-David et al., 2010): 0 if alike, 2 if apart.

    ``error`` is a linear classifier's (Fisher's discriminant), the mean of both sides: it learns from every second row and is asked for the
    others, then the other way round.

    Args:
        here, there: (N, width) and (M, width); in no order that says anything of them.

    Returns:
        0 to 2; 0 where a side has fewer than four rows.
    """
    if min(len(here), len(there)) < 4:
        return 0.0
    halves = [(here[k::2].double(), there[k::2].double()) for k in (0, 1)]
    errors = [_error(*halves[k], *halves[1 - k]) for k in (0, 1)]
    return max(0.0, 2 - 4 * sum(errors) / 2)


def _error(here: Tensor, there: Tensor, asked_here: Tensor, asked_there: Tensor) -> float:
    spread = (_covariance(here) + _covariance(there)) / 2
    ridge = RIDGE * spread.diagonal().mean().clamp_min(1e-12)
    direction = torch.linalg.solve(
        spread + ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device), there.mean(0) - here.mean(0)
    )
    middle = (here.mean(0) + there.mean(0)) / 2 @ direction
    wrong = [(asked_here @ direction > middle).double().mean(), (asked_there @ direction <= middle).double().mean()]
    return float(sum(wrong) / 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)
