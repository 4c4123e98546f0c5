"""``measure``: scores -> every metric in every domain and user state, with intervals over users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isthmus import metrics as metric_files
from isthmus.errors import ColumnError, ConfigError, DataError, LabelError
from isthmus.estimates import ALL, Estimate, Key, estimate
from isthmus.metrics import Metric
from isthmus.metrics._bootstrap import interval
from isthmus.slices import Scored, Slice, cut

COLUMNS = {
    "metric": pl.String,
    "domain": pl.String,
    "state": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "groups": pl.Int64,
    "rows": pl.Int64,
    "kind": pl.String,
    "lists": pl.String,
    "note": pl.String,
}


def measure(scores: Scored, metrics: Sequence[str], resamples: int = 1000, seed: int = 0) -> pl.DataFrame:
    """Every metric in every domain and user state, with 95 % intervals.

    Intervals come from a bootstrap over users: all rows of a user, in all domains, are drawn together, so rows of one user
    need not be independent.  The domain "all" is the unweighted mean over the domains that have a value.

    Args:
        scores: what ``score`` returns.
        metrics: names such as ``auc`` or ``ndcg@10``.
        resamples: of users; 0: no intervals.
        seed: of the resamples; equal seeds give equal intervals.

    Returns:
        Columns metric, domain, state ("all", then as in the scores, see ``isthmus.slices``), value, low, high, groups, rows,
        kind, lists, note.
        Where the data are too few (one class, no positive, no rows) value, low and high are null and ``note`` says why.

    Raises:
        ConfigError: an unknown metric, or one that cannot judge scores of this kind.
        DataError: a column is missing, no rows, labels outside 0/1 where they must not be, scores that are not finite.
    """
    judges = [metric_files.get(name) for name in metrics]
    check(scores, judges)
    slices, users = cut(scores, states=True)
    return tabled(scores, slices, estimate(slices, judges, users, resamples, seed), resamples)


def tabled(scores: Scored, slices: Sequence[Slice], estimates: Mapping[Key, Estimate], resamples: int) -> pl.DataFrame:
    """Estimates as the table that ``measure`` returns."""
    rows = [_row(scores, slices, key, value, resamples) for key, value in estimates.items()]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def check(scores: Scored, judges: Sequence[Metric]) -> None:
    """Refuses scores that the metrics cannot judge.

    Raises:
        ConfigError: a metric for another kind of scores.
        DataError: see ``measure``.
    """
    frame = scores.frame
    for column in ("group", "user", "domain", "label", "score", *(("rank", "item") if scores.kind == "full" else ())):
        if column not in frame.columns:
            raise ColumnError(f"scores without the column {column!r}", f"it, for scores of kind {scores.kind!r}", "score again")
    if not frame.height:
        raise DataError("scores without rows", "at least one", "score a part that has events")
    numbers = frame.select(pl.col("label", "score").cast(pl.Float64))
    finite = pl.all_horizontal(pl.col("label", "score").is_finite().fill_null(False))
    if not numbers.select(finite.all()).item():
        bad = frame.filter(numbers.select(~finite).to_series())
        where = f"{bad.height:,} scores or labels that are not finite numbers, first in domain {bad['domain'][0]!r}"
        raise DataError(where, "finite numbers", "look for a training that diverged (nan, inf)")
    for metric in judges:
        if scores.kind not in metric.kinds:
            raise ConfigError(
                f"metric {metric.name!r} on scores of kind {scores.kind!r}", f"scores of kind {metric.kinds}", "choose another metric"
            )
    binary = [metric.name for metric in judges if metric.binary]
    if binary and not numbers["label"].is_in([0.0, 1.0]).all():
        raise LabelError(f"labels other than 0 and 1 for {binary}", "0 or 1", "use rmse and mae for ratings")


def _row(scores: Scored, slices: Sequence[Slice], key: Key, found: Estimate, resamples: int) -> tuple[Any, ...]:
    metric, domain, state = key
    low = high = None
    note, intervals = found.note, metric_files.get(metric).intervals
    if not intervals:
        note = note or "no interval"
    elif resamples and not np.isnan(found.value):
        bounds = interval(found.replicates, found.dof)
        if isinstance(bounds, str):
            note = "; ".join(filter(None, (note, bounds)))
        else:
            low, high = bounds
    mine = [s for s in slices if s.state == state and domain in (ALL, s.domain)]
    value = None if np.isnan(found.value) else found.value
    groups, rows = sum(s.groups for s in mine), sum(s.rows for s in mine)
    return metric, domain, state, value, low, high, groups, rows, scores.kind, _lists(scores, domain, slices), note


def _lists(scores: Scored, domain: str, slices: Sequence[Slice]) -> str | None:
    """The name of the candidate lists; for "all", the names that occur."""
    if not scores.lists:
        return None
    names: Iterator[str | None] = (scores.lists.get(s.domain) for s in slices if domain in (ALL, s.domain))
    return ", ".join(dict.fromkeys(filter(None, names))) or None
