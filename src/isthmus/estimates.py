"""``estimate``: metrics of slices as values and as resampled values, and their mean over domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.metrics import Metric, PerGroup, Statistic
from isthmus.metrics._base import resampled
from isthmus.metrics._bootstrap import user_counts
from isthmus.metrics._inference import effective_dof
from isthmus.metrics._table import Floats
from isthmus.slices import ALL, Slice

Key = tuple[str, str, str]  # metric, domain, state


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


def estimate(slices: Sequence[Slice], judges: Sequence[Metric], users: int, resamples: int, seed: int) -> dict[Key, Estimate]:
    """Every metric of every slice and, as domain "all", the mean over domains; the same resampled users for all of them."""
    return resample(slices, judges, statistics(slices, judges), users, resamples, seed)


def statistics(slices: Sequence[Slice], judges: Sequence[Metric]) -> list[list[Statistic]]:
    """Every metric of every slice, ready to be resampled; what is a mean over groups is computed once per domain."""
    found: list[list[Statistic]] = [[] for _ in slices]
    for metric in judges:
        whole, value, weight = None, np.zeros(0), np.zeros(0)
        for s, own in zip(slices, found, strict=True):
            if not isinstance(metric, PerGroup) or not len(s.whole):
                own.append(metric.statistic(s.table))
                continue
            if s.whole is not whole:
                whole, value, weight = s.whole, metric.per_group(s.whole), metric.group_weight(s.whole)
            kept = slice(None) if s.kept is None else s.kept
            own.append(metric.of_groups(value[kept], weight[kept], s.group_user, len(s.users)))
    return found


def resample(
    slices: Sequence[Slice], judges: Sequence[Metric], found: Sequence[Sequence[Statistic]], users: int, resamples: int, seed: int
) -> dict[Key, Estimate]:
    """What ``statistics`` found, as estimates."""
    replicates = np.full((len(slices), len(judges), resamples), np.nan)
    for columns, count in user_counts(users, resamples, seed):
        for number, s in enumerate(slices):
            if len(s.users):
                replicates[number, :, columns] = resampled(found[number], count[s.users].astype(np.float64))
    estimates: dict[Key, Estimate] = {}
    for j, metric in enumerate(judges):
        single = {(s.domain, s.state): _single(found[i][j], replicates[i, j]) for i, s in enumerate(slices)}
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
