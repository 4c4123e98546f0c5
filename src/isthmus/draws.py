"""Draws: cells that differ in the seed of their split alone, taken together.

A draw of the users moves numbers by more than a training does, so a table over draws says more than one split with many
seeds.  Draws share users and rows: their plain standard error is too small.  Intervals here are Nadeau and Bengio's
(Inference for the generalization error, 2003): with n draws and variance s^2 of a difference over them::

    mean +- t_{n-1} sqrt((1 / n + test rows / training rows) s^2)
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
from scipy import special

from isthmus.cell import Cell
from isthmus.measure import ALL
from isthmus.verdicts import CELL

SHALLOW = "the best shallow line"


@dataclass(frozen=True)
class Draws:
    """What several draws say together.

    Attributes:
        values: a row for each draws (name of the group), domain, metric and model: value (mean over draws, each one's mean over
            seeds, test part), sd (over draws; null for one), n.
        differences: a row for each draws, domain, metric, against, model and reference of the ledger: difference (mean over
            draws, above 0 the model is better), low and high (95 %, see above; null for one draw), ahead (draws in which
            it is above 0), n.
    """

    values: pl.DataFrame
    differences: pl.DataFrame


def groups(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Names of the cells that are draws of one split, by what their names begin with alike; none that stand alone."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        args = {**cell.split_args, "seed": None}
        key = json.dumps({**asdict(cell), "name": "", "paper": {}, "split_args": args}, sort_keys=True, default=str)
        found.setdefault(key, []).append(cell.name)
    named: dict[str, list[str]] = {}
    for names in found.values():
        if len(names) > 1:
            alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
            title = "".join(letters[0] for letters in alike).rstrip(" ,:-_#") or names[0]
            named[title if title not in named else names[0]] = names
    return named


def over_draws(
    named: Mapping[str, Sequence[str]], measures: pl.DataFrame, ledger: pl.DataFrame, rows: Mapping[str, Mapping[str, int] | None]
) -> Draws | None:
    """Means and intervals over each group of draws.

    Args:
        named: see ``groups``.
        measures, ledger: of all cells, see ``isthmus.comparison.Whole``.
        rows: by cell, numbers of ``train`` and ``test`` rows of the domains tested; None where an older run did not keep them.

    Returns:
        None where there are no draws.
    """
    if not named:
        return None
    of = {cell: title for title, cells in named.items() for cell in cells}
    place = pl.col(CELL).replace_strict(of, default=None, return_dtype=pl.String).alias("draws")
    kept = measures.filter((pl.col("part") == "test") & (pl.col("state") == ALL) & (pl.col("domain") != ALL)).with_columns(place)
    keys = ["draws", "domain", "metric", "model"]
    by_cell = kept.drop_nulls("draws").group_by(*keys, CELL, maintain_order=True).agg(pl.col("value").mean())
    n = pl.len().cast(pl.Int64).alias("n")
    values = by_cell.group_by(keys, maintain_order=True).agg(pl.col("value").mean(), pl.col("value").std().alias("sd"), n)
    keys = ["draws", "domain", "metric", "against", "model", "reference"]
    named_alike = pl.when(pl.col("against") == "shallow").then(pl.lit(SHALLOW)).otherwise(pl.col("reference")).alias("reference")
    pairs = ledger.filter(pl.col("domain") != ALL).with_columns(place, named_alike).drop_nulls("draws")
    ahead = (pl.col("difference") > 0).sum().cast(pl.Int64).alias("ahead")
    means = pairs.group_by(keys, maintain_order=True).agg(pl.col("difference").mean(), pl.col("difference").std().alias("sd"), ahead, n)
    halves = [_half(r["sd"], r["n"], _share([rows.get(cell) for cell in named[r["draws"]]])) for r in means.iter_rows(named=True)]
    half = pl.Series("half", halves, dtype=pl.Float64)
    bounds = {"low": pl.col("difference") - half, "high": pl.col("difference") + half}
    return Draws(values, means.with_columns(**bounds).select(*keys, "difference", "low", "high", "ahead", "n"))


def _share(rows: Sequence[Mapping[str, int] | None]) -> float:
    """Test rows over training rows, the mean over draws; 0 where it was not kept."""
    known: list[Any] = [r["test"] / r["train"] for r in rows if r and r["train"]]
    return sum(known) / len(known) if known else 0.0


def _half(sd: float | None, n: int, share: float) -> float | None:
    if sd is None or n < 2:
        return None
    return float(special.stdtrit(n - 1, 0.975)) * sd * math.sqrt(1 / n + share)
