"""``Paper``: a published table, to be held beside ours."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from isthmus import metrics as metric_files
from isthmus.errors import ConfigError, nearest
from isthmus.measure import ALL
from isthmus.schema import Schema

Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Paper:
    """A published table, to be held beside ours.

    Attributes:
        title: which table of which paper.
        metric: ours that means the same, such as ``recall@10``.
        values: entry of our tables -> domain -> the paper's value.  The domain ``all`` is the printed average; without
            it, the mean of the others.
        note: what differs from the paper, in words.
        further: the same in other metrics, metric -> entry -> domain -> value.
    """

    title: str
    metric: str
    values: Values
    note: str = ""
    further: Mapping[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric in self.further:
            raise ConfigError(f"paper: {self.metric!r} twice", "each metric once", "its values stand in ``values``")
        for metric, values in self.tables.items():
            metric_files.get(metric)
            for label, by_domain in values.items():
                for domain, value in by_domain.items():
                    number(value, f"{label!r} in {domain!r}", "domain")

    @property
    def tables(self) -> dict[str, Values]:
        """Values by metric, the first one in front, the others by name."""
        return {self.metric: self.values, **dict(sorted(self.further.items()))}

    @property
    def labels(self) -> tuple[str, ...]:
        """Every entry that has a value."""
        return tuple(dict.fromkeys(label for values in self.tables.values() for label in values))

    def by_metric(self) -> Iterator[Paper]:
        """One paper for each metric."""
        for metric, values in self.tables.items():
            yield replace(self, metric=metric, values=values, further={})

    def only(self, labels: Collection[str]) -> Paper:
        """The values of these entries alone."""
        kept = {metric: {label: v for label, v in values.items() if label in labels} for metric, values in self.tables.items()}
        return replace(self, values=kept.pop(self.metric), further=kept)

    def average(self, label: str, domains: tuple[str, ...]) -> float | None:
        """The printed average, else the mean over all domains; None where neither is known."""
        values = self.values[label]
        if ALL in values:
            return float(values[ALL])
        return sum(values[d] for d in domains) / len(domains) if all(d in values for d in domains) else None

    def check(self, schema: Schema) -> None:
        """Refuses domains that the data do not have.

        Raises:
            ConfigError: names the nearest domain.
        """
        known = (*schema.domain_names, ALL)
        for values in self.tables.values():
            for label, by_domain in values.items():
                for domain in by_domain:
                    if domain not in known:
                        raise ConfigError(f"paper: {label!r} has a value in {domain!r}", f"one of {known}", nearest(domain, known))

    def check_metrics(self, metrics: tuple[str, ...]) -> None:
        """Refuses metrics that are not measured.

        Raises:
            ConfigError: names the nearest metric.
        """
        for metric in self.tables:
            if metric not in metrics:
                raise ConfigError(f"paper: metric {metric!r}", f"one of the recipe's {metrics}", nearest(metric, metrics))


def number(value: Any, where: str, what: str) -> None:
    """Refuses a printed value that is none.

    Raises:
        ConfigError: ``where`` says whose it is, ``what`` can be left out.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"paper: {where} = {value!r}", "a number", f"correct it, or leave the {what} out")
