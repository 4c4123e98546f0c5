"""A paper's numbers beside ours: above, below or undecided, entry by entry and domain by domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isthmus import metrics as metric_files
from isthmus.errors import ConfigError, nearest
from isthmus.estimates import ALL, Estimate
from isthmus.judged import judged
from isthmus.ledger import Entry, over_seeds
from isthmus.metrics._bootstrap import interval
from isthmus.metrics._inference import holm, student
from isthmus.paper import Paper
from isthmus.schema import Schema
from isthmus.verdicts import CELL, ONE_SEED, in_cells

COLUMNS = {
    "model": pl.String,
    "domain": pl.String,
    "metric": pl.String,
    "paper": pl.Float64,
    "ours": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "spread": pl.Float64,
    "seeds": pl.Int64,
    "difference": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "verdict": pl.String,
    "note": pl.String,
}
ABOVE, BELOW, UNDECIDED = "above", "below", "undecided"


def against_paper(
    paper: Paper, entries: Sequence[Entry], schema: Schema, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """Holds our test results beside the paper's values.

    The paper's values are taken as exact: papers seldom give intervals.  Ours is the mean over seeds; the squared standard error
    of its difference from the paper's value is the bootstrap variance over users plus the variance over seeds divided by their
    number, and p is Student's with each part's quantile weighted by its variance, as in ``isthmus.ledger``.  P-values are
    corrected by Holm over all values of the domains, in all metrics; the averages are a family of their own.

    Args:
        paper: the values, by entry and domain.
        entries: ours; those that the paper does not name are left out.
        schema: of the data; the order of the domains.
        resamples: of users.
        seed: of the resamples.
        level: 1 - level is the chance of a wrong "above" or "below" anywhere in a family.

    Returns:
        One row per value of the paper, metric by metric, in the order of the entries: model, domain ("all": the average), metric,
        paper, ours, low and high (95 % interval over users), spread (standard deviation over seeds, null with one), seeds,
        difference (ours - paper), p, p_holm, verdict ("above": our number is higher and chance does not explain it; "below";
        "undecided"), note.

    Raises:
        ConfigError: a domain or entry that there is not; names the nearest one.
    """
    paper.check(schema)
    known = [e.model for e in entries]
    for label in paper.labels:
        if label not in known:
            raise ConfigError(f"paper: values for {label!r}", f"one of {known}", nearest(label, known))
    rows = [row for one in paper.by_metric() for row in _rows(one, entries, schema, resamples, seed, level)]
    frame = pl.DataFrame(rows, schema={k: v for k, v in COLUMNS.items() if k not in ("p_holm", "verdict")})
    return _verdicts(frame, 1 - level)


def together(frames: Mapping[str, pl.DataFrame], level: float = 0.95) -> pl.DataFrame:
    """What ``against_paper`` returned for several cells as one frame, a column cell in front; corrected over all of them."""
    columns = [name for name in COLUMNS if name not in ("p_holm", "verdict")]
    return _verdicts(in_cells({cell: frame.select(columns) for cell, frame in frames.items()}), 1 - level)


def sentences(frame: pl.DataFrame) -> list[str]:
    """One sentence per model, and metric where there are several: where ours is above, below or undecided."""
    found: list[str] = []
    several = frame["metric"].n_unique() > 1
    for (model, metric), rows in frame.group_by("model", "metric", maintain_order=True):
        places: dict[str, list[str]] = {ABOVE: [], BELOW: [], UNDECIDED: []}
        for row in rows.iter_rows(named=True):
            where = "on average" if row["domain"] == ALL else f"in {row['domain']}"
            places[row["verdict"]].append(f"in {row[CELL]!r}" if CELL in row else where)
        words = {ABOVE: "above the paper", BELOW: "below the paper", UNDECIDED: "undecided"}
        name = f"{model} ({metric})" if several else str(model)
        found.append(f"{name}: " + "; ".join(f"{words[verdict]} {_and(where)}" for verdict, where in places.items() if where))
    return found


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _values(paper: Paper, label: str, domains: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """The paper's values in the order of the domains, the average last; where one domain is all there is, its value stands once."""
    for domain in domains:
        if domain in paper.values[label]:
            yield domain, float(paper.values[label][domain])
    average = paper.average(label, domains)
    if average is not None and (len(domains) > 1 or not any(d in paper.values[label] for d in domains)):
        yield ALL, average


def _rows(paper: Paper, entries: Sequence[Entry], schema: Schema, resamples: int, seed: int, level: float) -> Iterator[dict[str, Any]]:
    """One metric's values beside ours."""
    judge = metric_files.get(paper.metric)
    for entry in entries:
        if entry.model not in paper.values:
            continue
        ours = _judged(entry, judge.name, resamples, seed)
        for domain, value in _values(paper, entry.model, schema.domain_names):
            middle, by_seed = ours[domain]
            front = {"model": entry.model, "domain": domain, "metric": judge.name, "paper": value}
            yield front | _row(value, middle, by_seed, entry.shallow, level)


def _judged(entry: Entry, metric: str, resamples: int, seed: int) -> dict[str, tuple[Estimate, dict[int, float]]]:
    """By domain, "all" included: the mean over seeds with its resamples, and the value of each seed."""
    by_seed = {number: judged(scores, metric, resamples, seed).estimates[metric] for number, scores in entry.test.items()}
    first = next(iter(by_seed.values()))
    return {d: (over_seeds([e[d] for e in by_seed.values()]), {number: e[d].value for number, e in by_seed.items()}) for d in first}


def _row(value: float, ours: Estimate, by_seed: Mapping[int, float], shallow: bool, level: float) -> dict[str, Any]:
    """One value of the paper beside ours."""
    seeds = np.array(list(by_seed.values()))
    row: dict[str, Any] = dict.fromkeys(("ours", "low", "high", "spread", "difference", "p")) | {"seeds": len(seeds), "note": ours.note}
    if np.isnan(ours.value):
        return row
    bounds = interval(ours.replicates, ours.dof)
    if isinstance(bounds, str):
        return row | {"ours": ours.value, "difference": ours.value - value, "note": bounds}
    spread = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
    over_seeds = 0.0 if spread is None else spread**2 / len(seeds)
    variances, dofs = np.array([ours.variance, over_seeds]), np.array([ours.dof, max(len(seeds) - 1.0, 1.0)])
    _, _, p = student(ours.value - value, variances, dofs, level)
    note = ONE_SEED if spread is None and not shallow else None
    found = {"ours": ours.value, "low": bounds[0], "high": bounds[1], "spread": spread, "difference": ours.value - value, "p": p}
    return row | found | {"note": "; ".join(filter(None, (ours.note, note))) or None}


def _verdicts(frame: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Corrects the p-values and says what follows."""
    p, corrected = frame["p"].to_numpy(), np.full(frame.height, np.nan)
    averages = (frame["domain"] == ALL).to_numpy()
    for family in (averages, ~averages):
        members = np.flatnonzero(family & ~np.isnan(p))
        corrected[members] = holm(p[members])
    sure = (pl.col("p_holm") < alpha) & ~pl.col("note").fill_null("").str.contains(ONE_SEED, literal=True)
    verdict = pl.when(sure & (pl.col("difference") > 0)).then(pl.lit(ABOVE)).when(sure).then(pl.lit(BELOW)).otherwise(pl.lit(UNDECIDED))
    columns = [*([CELL] if CELL in frame.columns else []), *COLUMNS]
    return frame.with_columns(p_holm=pl.Series(corrected).fill_nan(None)).with_columns(verdict=verdict).select(columns)
