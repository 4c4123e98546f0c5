"""``measure``: scores -> every metric in every domain and user state, with intervals over users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from isthmus import metrics as metric_files
from isthmus.errors import ColumnError, ConfigError, DataError, LabelError
from isthmus.metrics import Metric, Statistic, Table
from isthmus.metrics._bootstrap import interval, user_weights
from isthmus.metrics._inference import effective_dof
from isthmus.metrics._table import Floats, Ints

ALL = "all"
STATES = ("new", "few", "many")
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


class Scored(Protocol):
    """What is read of ``isthmus.score.Scores``.

    Attributes:
        frame: columns group, user, item, domain, label, score; state and relevant where known; rank (and tied
            where known) when kind is "full".
        kind: "rows", "lists", "sampled" or "full".
        lists: the name of the candidate lists in each domain, or None.
        catalogue: the number of items in each domain's catalogue, or None.
        places: how many first places of a full ranking are kept, or None.
    """

    @property
    def frame(self) -> pl.DataFrame: ...
    @property
    def kind(self) -> str: ...
    @property
    def lists(self) -> Mapping[str, str] | None: ...
    @property
    def catalogue(self) -> Mapping[str, int] | None: ...
    @property
    def places(self) -> int | None: ...


@dataclass(frozen=True)
class Slice:
    """The rows of one domain and user state.

    Attributes:
        domain, state: names; the state "all" is every user.
        table: its rows; users and groups are counted from 0 within it.
        users: (table.users,) their codes among all users of the scores.
    """

    domain: str
    state: str
    table: Table
    users: Ints


@dataclass(frozen=True)
class Estimate:
    """One metric, as a value and as resampled values.

    Attributes:
        value: NaN where not defined.
        replicates: (R,) NaN where not defined.
        dof: users that count - 1, or the effective number for a mean over domains.
        note: groups left out, or why there is no value.
    """

    value: float
    replicates: Floats
    dof: float
    note: str | None

    @property
    def variance(self) -> float:
        """Over resamples of users, corrected for their number; NaN where it cannot be told."""
        defined = self.replicates[~np.isnan(self.replicates)]
        if len(defined) < 2 or self.dof <= 0:
            return float("nan")
        return float(np.var(defined, ddof=1)) * (self.dof + 1) / self.dof


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
        Columns metric, domain, state ("all", "new", "few", "many"), value, low, high, groups, rows, kind, lists, note.
        Where the data are too few (one class, no positive, no rows) value, low and high are null and ``note`` says why.

    Raises:
        ConfigError: an unknown metric, or one that cannot judge scores of this kind.
        DataError: a column is missing, no rows, labels outside 0/1 where they must not be, scores that are not finite.
    """
    judges = [metric_files.get(name) for name in metrics]
    check(scores, judges)
    slices, users = cut(scores, states=True)
    estimates = estimate(slices, judges, users, resamples, seed)
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
    numbers = frame.select("domain", pl.col("label", "score").cast(pl.Float64))
    bad = numbers.filter(~pl.all_horizontal(pl.col("label", "score").is_finite().fill_null(False)))
    if bad.height:
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


def cut(scores: Scored, *, states: bool) -> tuple[list[Slice], int]:
    """The scores by domain (in order of appearance) and, where known and wanted, by user state; and the number of users."""
    codes = scores.frame.with_columns((pl.col("user").rank("dense") - 1).cast(pl.Int64).alias("user"))
    slices: list[Slice] = []
    for frame in codes.partition_by("domain", maintain_order=True):
        name = str(frame["domain"][0])
        slices.append(_slice(scores, name, ALL, frame))
        if states and "state" in frame.columns:
            slices += [_slice(scores, name, state, frame.filter(pl.col("state") == state)) for state in STATES]
    return slices, int(codes["user"].max()) + 1  # type: ignore[arg-type]


def _slice(scores: Scored, domain: str, state: str, frame: pl.DataFrame) -> Slice:
    users, user = np.unique(frame["user"].to_numpy(), return_inverse=True)
    group = (frame["group"].rank("dense").to_numpy().astype(np.int64)) - 1
    label, score = (frame[name].cast(pl.Float64).to_numpy() for name in ("label", "score"))
    rank, item = (frame["rank"].cast(pl.Float64).to_numpy(), frame["item"].to_numpy()) if scores.kind == "full" else (None, None)
    tied = frame["tied"].cast(pl.Int64).to_numpy() if scores.kind == "full" and "tied" in frame.columns else None
    relevant = frame["relevant"].cast(pl.Int64).to_numpy() if "relevant" in frame.columns else None
    catalogue = (scores.catalogue or {}).get(domain)
    user = user.astype(np.int64).reshape(-1)
    table = Table(user, group, label, score, len(users), rank, tied, relevant, item, catalogue, scores.places)
    return Slice(domain, state, table, users)


Key = tuple[str, str, str]  # metric, domain, state


def estimate(slices: Sequence[Slice], judges: Sequence[Metric], users: int, resamples: int, seed: int) -> dict[Key, Estimate]:
    """Every metric of every slice and, as domain "all", the mean over domains; the same resampled users for all of them."""
    statistics = [[metric.statistic(s.table) for metric in judges] for s in slices]
    replicates = np.full((len(slices), len(judges), resamples), np.nan)
    for columns, weight in user_weights(users, resamples, seed):
        for number, s in enumerate(slices):
            if s.table.users:
                mine = weight[s.users]
                replicates[number, :, columns] = [statistic.resampled(mine) for statistic in statistics[number]]
    estimates: dict[Key, Estimate] = {}
    for j, metric in enumerate(judges):
        single = {(s.domain, s.state): _single(statistics[i][j], replicates[i, j]) for i, s in enumerate(slices)}
        for state in dict.fromkeys(s.state for s in slices):
            by_domain = {domain: e for (domain, own), e in single.items() if own == state}
            estimates |= {(metric.name, domain, state): e for domain, e in by_domain.items()}
            estimates[metric.name, ALL, state] = mean(by_domain)
    return estimates


def _single(statistic: Statistic, replicates: Floats) -> Estimate:
    return Estimate(statistic.value, replicates, statistic.users - 1, statistic.note)


def mean(by_domain: Mapping[str, Estimate]) -> Estimate:
    """The unweighted mean over the domains that have a value."""
    held = {domain: e for domain, e in by_domain.items() if not np.isnan(e.value)}
    missing = [domain for domain in by_domain if domain not in held]
    if not held:
        return Estimate(float("nan"), next(iter(by_domain.values())).replicates, 0, "no domain has a value")
    parts = list(held.values())
    variances = np.nan_to_num([e.variance for e in parts])
    dof = effective_dof(variances, np.array([e.dof for e in parts], np.float64))
    note = f"mean over {len(held)} domains, without {', '.join(missing)}" if missing else None
    return Estimate(float(np.mean([e.value for e in parts])), np.mean([e.replicates for e in parts], axis=0), dof, note)


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
    mine = [s.table for s in slices if s.state == state and domain in (ALL, s.domain)]
    value = None if np.isnan(found.value) else found.value
    groups, rows = sum(table.groups for table in mine), sum(len(table) for table in mine)
    return metric, domain, state, value, low, high, groups, rows, scores.kind, _lists(scores, domain, slices), note


def _lists(scores: Scored, domain: str, slices: Sequence[Slice]) -> str | None:
    """The name of the candidate lists; for "all", the names that occur."""
    if not scores.lists:
        return None
    names: Iterator[str | None] = (scores.lists.get(s.domain) for s in slices if domain in (ALL, s.domain))
    return ", ".join(dict.fromkeys(filter(None, names))) or None
