"""``ledger``: did sharing help?  Every model against its control, the best shallow model and others, domain by domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isthmus import metrics as metric_files
from isthmus.errors import ConfigError, DataError, nearest
from isthmus.estimates import ALL, Estimate, mean
from isthmus.judged import Judged, Rows, judged
from isthmus.metrics import Metric
from isthmus.metrics._bootstrap import ENOUGH
from isthmus.metrics._inference import SAME, seed_variance, student
from isthmus.slices import Scored
from isthmus.verdicts import LEFT_OUT, NUMBERS, ONE_SEED, RESAMPLES, VALIDATION, Ledger, decided


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a model with its scores.

    Attributes:
        model: its name, unique.
        control: the name of the entry that it is to be compared with (the same model without sharing), or None.
        shallow: fitted in closed form: one seed is enough, and the best of these is the bar for all others.
        test: scores by seed, of the part that is reported; or, once judged, what is left of them.
        valid: the same of the part that choices are made on.
        against: names of further entries to compare with.
    """

    model: str
    control: str | None
    shallow: bool
    test: Mapping[int, Scored | Judged]
    valid: Mapping[int, Scored | Judged]
    against: tuple[str, ...] = ()


def ledger(entries: Sequence[Entry], metric: str | Sequence[str], resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Ledger:
    """Compares every entry with its control, with the entries it names and, unless it is shallow, with the best shallow entry.

    The difference of the means over seeds is taken on the same users.  Its squared standard error is the bootstrap variance
    over users (both sides resampled alike) plus the variance over seeds of the difference, divided by the number of seeds; when
    the two sides have different seeds, each side's own variance over its seeds.  Interval and p-value are Student's, each
    part's quantile weighted by its variance (Cochran and Cox).

    The best shallow entry is chosen on validation, in each domain and by each metric.  P-values are corrected by Holm within a
    family: all models, metrics and domains of one ``against``; the means over domains ("all") are a family of their own, so a
    verdict about a domain and one about the mean each hold at ``level``.  Where one domain alone is tested there is no such
    mean.  A network with a single seed gets an interval over users but no verdict.

    Known limit: with two seeds, and trainings that differ far more than users do, verdicts are wrong more often than
    1 - ``level``.  Use three seeds or more.

    Args:
        entries: all judged on the same rows.
        metric: such as ``auc``; of several the first one decides which model is best.
        resamples: of users.
        seed: of the resamples.
        level: of the intervals; 1 - level is the family-wise error rate.

    Raises:
        ConfigError: an unknown metric, control or other entry, no metric, two entries of one name, an entry without seeds, ``level`` or
            ``resamples`` out of range.
        DataError: entries that are not judged on the same rows; see also ``measure``.
    """
    names = (metric,) if isinstance(metric, str) else tuple(dict.fromkeys(metric))
    judges = [metric_files.get(name) for name in names]
    _check(entries, judges, resamples, level)
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    validation: list[tuple[str, str, str, float | None]] = []
    for judge in judges:
        test = _judge(entries, "test", judge, resamples, seed)
        valid = {e: {domain: r.value for domain, r in found.items()} for e, found in _judge(entries, "valid", judge, 0, seed).items()}
        tested = _tested(test[entries[0].model])
        for entry, against, domain, reference in _pairs(entries, tested, valid, judge):
            front = {"model": entry.model, "domain": domain, "metric": judge.name, "against": against}
            front |= {"reference": reference.model if reference else None}
            found = _compare(entry, reference, domain, test, judge, level) if reference else "no shallow model has a validation value here"
            if isinstance(found, str):
                left_out.append({**front, "reason": found})
            else:
                rows.append({**front, **found})
        validation += [(e, d, judge.name, None if np.isnan(v) else v) for e, values in valid.items() for d, v in values.items()]
    frame = decided(pl.DataFrame(rows, schema=NUMBERS), 1 - level)
    kept = pl.DataFrame(validation, schema=VALIDATION, orient="row")
    return Ledger(frame, pl.DataFrame(left_out, schema=LEFT_OUT), kept, tuple(judge.name for judge in judges), level)


@dataclass(frozen=True)
class _Result:
    """One model in one domain: its value for each seed, and the mean over seeds as an estimate."""

    by_seed: dict[int, float]
    mean: Estimate
    users: int

    @property
    def value(self) -> float:
        return self.mean.value


def _judge(entries: Sequence[Entry], part: str, judge: Metric, resamples: int, seed: int) -> dict[str, dict[str, _Result]]:
    """Each entry's results by domain, "all" included; one table is held at a time.

    Users are coded alike in all seeds and entries, so resamples are too.
    """
    first: tuple[str, Rows] | None = None
    results: dict[str, dict[str, _Result]] = {}
    for entry in entries:
        found: dict[int, Judged] = {}
        for number, scores in getattr(entry, part).items():
            found[number] = judged(scores, judge.name, resamples, seed)
            mine = (f"{entry.model!r} (seed {number})", found[number].rows)
            first = first or mine
            _same(first, mine, part)
        results[entry.model] = {
            domain: _Result({s: j.estimates[judge.name][domain].value for s, j in found.items()}, middle, users)
            for domain, middle, users in _over_seeds(list(found.values()), judge.name)
        }
    return results


def _over_seeds(by_seed: Sequence[Judged], metric: str) -> Iterator[tuple[str, Estimate, int]]:
    """Domain, mean over seeds, users."""
    for domain in by_seed[0].estimates[metric]:
        yield domain, over_seeds([j.estimates[metric][domain] for j in by_seed]), by_seed[0].users[domain]


def over_seeds(parts: Sequence[Estimate]) -> Estimate:
    """The mean over seeds, resampled user by user; note and degrees of freedom are the first seed's."""
    replicates = np.mean([p.replicates for p in parts], axis=0)
    return Estimate(float(np.mean([p.value for p in parts])), replicates, parts[0].dof, parts[0].note)


def _tested(results: Mapping[str, _Result]) -> list[str]:
    """Domains with rows to test, and "all" where they are several: the mean over one is that one again."""
    domains = [domain for domain in results if domain != ALL]
    return [*domains, ALL] if len(domains) > 1 else domains


def _pairs(
    entries: Sequence[Entry], domains: Sequence[str], valid: Mapping[str, dict[str, float]], judge: Metric
) -> Iterator[tuple[Entry, str, str, Entry | None]]:
    """(entry, against, domain, reference) of every comparison to make; reference None: there is none to choose."""
    by_name = {e.model: e for e in entries}
    shallow = [e for e in entries if e.shallow]
    sign = 1 if judge.higher_is_better else -1

    def value(entry: Entry, domain: str) -> float:
        return sign * valid[entry.model].get(domain, np.nan)

    for entry in entries:
        for domain in domains:
            if entry.control is not None:
                yield entry, "control", domain, by_name[entry.control]
            if shallow and not entry.shallow:
                known = [e for e in shallow if not np.isnan(value(e, domain))]
                yield entry, "shallow", domain, max(known, key=lambda e: value(e, domain), default=None)
            for name in entry.against:
                yield entry, "line", domain, by_name[name]


def _compare(
    entry: Entry, reference: Entry, domain: str, test: Mapping[str, dict[str, _Result]], judge: Metric, level: float
) -> dict[str, Any] | str:
    """One comparison's numbers, or why there are none."""
    mine, other = test[entry.model], test[reference.model]
    difference = _difference(mine, other, domain, 1 if judge.higher_is_better else -1)
    reason = _undecidable(difference)
    if reason:
        return reason
    over_seeds, seed_dof = seed_variance(mine[domain].by_seed, other[domain].by_seed)
    variances, dofs = np.array([difference.variance, over_seeds]), np.array([difference.dof, seed_dof])
    low, high, p = student(difference.value, variances, dofs, level)
    single = any(len(e.test) == 1 and not e.shallow for e in (entry, reference))
    return {
        "value": mine[domain].value,
        "reference_value": other[domain].value,
        "difference": difference.value,
        "low": low,
        "high": high,
        "p": p,
        "seeds": len(entry.test),
        "users": mine[domain].users,
        "note": "; ".join(filter(None, (difference.note, ONE_SEED if single else None))) or None,
    }


def _difference(mine: Mapping[str, _Result], other: Mapping[str, _Result], domain: str, sign: int) -> Estimate:
    """Mine minus the other's, on the same resampled users; above 0 is better."""
    if domain == ALL:
        return mean({name: _difference(mine, other, name, sign) for name in mine if name != ALL})
    a, b = mine[domain].mean, other[domain].mean
    return Estimate(sign * (a.value - b.value), sign * (a.replicates - b.replicates), a.dof, a.note)


def _undecidable(difference: Estimate) -> str | None:
    """Why a difference cannot be given an interval, or None."""
    if np.isnan(difference.value):
        return difference.note or "the metric is not defined"
    if difference.dof <= 0:
        return "one user: no interval"
    defined = np.count_nonzero(~np.isnan(difference.replicates))
    if defined < ENOUGH * len(difference.replicates):
        return f"defined in {defined} of {len(difference.replicates)} resamples of users"
    if abs(difference.value) > SAME and difference.variance <= SAME**2:
        return "no variation between users"
    return None


def _check(entries: Sequence[Entry], judges: Sequence[Metric], resamples: int, level: float) -> None:
    """Refuses entries that cannot be compared."""
    names = [e.model for e in entries]
    for entry in entries:
        if names.count(entry.model) > 1:
            raise ConfigError(f"two entries are called {entry.model!r}", "unique names", "rename one")
        if entry.control is not None and entry.control not in names:
            raise ConfigError(f"{entry.model!r} has control {entry.control!r}", "the name of an entry", nearest(entry.control, names))
        for name in entry.against:
            if name not in names:
                raise ConfigError(f"{entry.model!r} is compared against {name!r}", "the name of an entry", nearest(name, names))
        if not entry.test or not entry.valid:
            raise ConfigError(f"{entry.model!r} without test or validation scores", "at least one seed of both", "score both parts")
    if not entries or not judges or resamples < RESAMPLES or not 0 < level < 1:
        came = f"{len(entries)} entries, {len(judges)} metrics, resamples = {resamples}, level = {level}"
        raise ConfigError(came, f"at least one entry and one metric, at least {RESAMPLES} resamples, a level between 0 and 1", "correct it")


def _same(first: tuple[str, Rows], second: tuple[str, Rows], part: str) -> None:
    if first[1].digest == second[1].digest:
        return
    counts = [
        name + ": " + ", ".join(f"{users} users and {count} rows in {d!r}" for d, users, count in rows.sizes)
        for name, rows in (first, second)
    ]
    raise DataError(
        f"entries judged on different rows of the {part} part ({'; '.join(counts)})",
        "the same users, queries, items and labels in every entry",
        "score all of them on one data set, part and list of candidates",
    )
