"""What a metric is, and the forms it takes as a function of how often each user counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, cast

import numpy as np

from isthmus.errors import ConfigError
from isthmus.metrics._table import Floats, Ints, Table, sums

RANKED = ("rows", "lists", "sampled", "full")
LISTED = ("rows", "lists", "sampled")


class Statistic(Protocol):
    """One metric of one table, ready to be computed again for resampled users.

    Attributes:
        users: users that count in it.
        note: what a reader should know (groups left out, why there is no value), or None.
    """

    @property
    def users(self) -> int: ...
    @property
    def note(self) -> str | None: ...
    @property
    def value(self) -> float:
        """The metric; NaN where it is not defined."""
        ...

    def resampled(self, weight: Floats) -> Floats:
        """The metric when user u counts ``weight[u, r]`` times: (U, R) -> (R,), NaN where not defined."""
        ...


@dataclass(frozen=True)
class Ratio:
    """``finish(sum of top / sum of bottom)`` over users: every mean, weighted or not.

    Attributes:
        top, bottom: (U,) sums of each user.
        finish: applied to the ratio, such as the root of RMSE.
    """

    top: Floats
    bottom: Floats
    note: str | None = None
    finish: Callable[[Floats], Floats] | None = None

    @property
    def users(self) -> int:
        return int(np.count_nonzero(self.bottom))

    @property
    def value(self) -> float:
        return float(self.of(self.top.sum(keepdims=True), self.bottom.sum(keepdims=True))[0])

    def resampled(self, weight: Floats) -> Floats:
        return self.of(self.top @ weight, self.bottom @ weight)

    def of(self, top: Floats, bottom: Floats) -> Floats:
        """(R,) the ratio of R sums over users, NaN where not defined."""
        ratio = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return ratio if self.finish is None else self.finish(ratio)


@dataclass(frozen=True)
class Undefined:
    """No value, and why."""

    note: str
    users: int = 0
    value: float = float("nan")

    def resampled(self, weight: Floats) -> Floats:
        return np.full(weight.shape[1], np.nan)


class Metric(ABC):
    """A number that judges scores.  Its file's name is its name; ``@k`` gives the cutoff.

    Attributes:
        name: with the cutoff, such as ``ndcg@10``.
        k: the cutoff, or None.
        higher_is_better: the direction.
        pooled: compares rows across groups; otherwise it is a mean of one value per group.
        cutoff: whether ``@k`` must, may or cannot be given.
        kinds: kinds of scores that it can judge, see ``isthmus.score.Scores``.
        binary: labels must be 0 or 1.
        intervals: resamples of users tell how uncertain it is.
    """

    higher_is_better: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    cutoff: ClassVar[Literal["required", "optional", "none"]] = "none"
    kinds: ClassVar[tuple[str, ...]] = RANKED
    binary: ClassVar[bool] = True
    intervals: ClassVar[bool] = True

    def __init__(self, k: int | None = None) -> None:
        base = type(self).__module__.rpartition(".")[2]
        if k is None and self.cutoff == "required":
            raise ConfigError(f"metric {base!r} without a cutoff", f"{base}@k", f"write {base}@10, for example")
        if k is not None and (self.cutoff == "none" or k < 1):
            expected = f"{base!r} (it takes no cutoff)" if self.cutoff == "none" else "a cutoff of 1 or more"
            raise ConfigError(f"metric '{base}@{k}'", expected, "correct the name")
        self.k = k
        self.name = base if k is None else f"{base}@{k}"

    @abstractmethod
    def statistic(self, table: Table) -> Statistic:
        """The metric of a table, ready to be resampled."""

    def value(self, table: Table) -> float:
        """The metric of a table; NaN where it is not defined."""
        return self.statistic(table).value


class PerGroup(Metric):
    """A mean over groups of one value per group; groups without a value are left out, and noted."""

    left_out: ClassVar[str] = "without a positive"

    @abstractmethod
    def per_group(self, table: Table) -> Floats:
        """(G,) one value per group; NaN where it is not defined."""

    def group_weight(self, table: Table) -> Floats:
        """(G,) how much each group counts in the mean."""
        return np.ones(table.groups)

    def statistic(self, table: Table) -> Statistic:
        if not len(table):
            return Undefined("no rows")
        return self.of_groups(self.per_group(table), self.group_weight(table), table.group_user, table.users)

    def of_groups(self, value: Floats, weight: Floats, user: Ints, users: int) -> Statistic:
        """The mean over some groups of a table.

        Args:
            value, weight: (G,) what ``per_group`` and ``group_weight`` say of them.
            user: (G,) whose they are, 0 .. users - 1.
            users: number of users.
        """
        out = np.isnan(value)
        if not len(value):
            return Undefined("no rows")
        if out.all():
            return Undefined(f"all {len(out)} groups are {self.left_out}")
        weight = np.where(out, 0.0, weight)
        top = sums(user, np.where(out, 0.0, value) * weight, users)
        note = f"{int(out.sum())} of {len(out)} groups are {self.left_out}: left out" if out.any() else None
        return Ratio(top, sums(user, weight, users), note)


def resampled(statistics: Sequence[Statistic], weight: Floats) -> Floats:
    """(S, R) each statistic when user u counts ``weight[u, r]`` times; the weights are read once for all that are ratios."""
    found = np.empty((len(statistics), weight.shape[1]))
    ratios = [n for n, s in enumerate(statistics) if isinstance(s, Ratio)]
    stack = np.array([half for n in ratios for half in (cast("Ratio", statistics[n]).top, cast("Ratio", statistics[n]).bottom)])
    totals = stack @ weight if ratios else stack
    for place, number in enumerate(ratios):
        found[number] = cast("Ratio", statistics[number]).of(totals[2 * place], totals[2 * place + 1])
    for number, statistic in enumerate(statistics):
        if not isinstance(statistic, Ratio):
            found[number] = statistic.resampled(weight)
    return found


def sigmoid(score: Floats) -> Floats:
    """1 / (1 + exp(-score)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * score))
