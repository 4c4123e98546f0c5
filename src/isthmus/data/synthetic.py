"""Worlds whose right answer is known: how much the domains share is a dial.

Every user and item has latent factors in every domain.  For a user with factors ``u_d`` and an item with
factors ``v_d`` the utility in domain ``d`` is::

    x = signal * (u_d . v_d) / sqrt(K) + user_bias_d + item_bias_d

A click world logs impressions and draws ``label ~ Bernoulli(sigmoid(intercept_d + x))``; an implicit world
logs choices drawn from ``softmax(x)`` over the domain's items that the user has not chosen before.

``relatedness`` is the correlation of the utilities of one user-item pair in two domains: factors correlate by
its square root on each side, biases, popularity and activity by ``relatedness`` itself.  The item field
``category`` and the user field ``segment`` are a coarse view of what the domains have in common, so at 0
nothing at all, neither ids nor fields nor popularity, tells one domain about another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
from scipy.special import expit, logsumexp
from scipy.stats import rankdata

from isthmus.data.events import Events
from isthmus.errors import ConfigError
from isthmus.schema import Domain, Entity, Field, Schema

START = 1_600_000_000  # seconds; the first moment of every world
SPAN = 100 * 86_400  # seconds; a hundred days
GROUPS = 10  # categories, and segments
USER_BIAS, ITEM_BIAS = 0.5, 0.7  # standard deviations, in units of the logit
SKEW = 0.8  # standard deviation of the log of users' activity and items' exposure
CHUNK = 4_000_000  # numbers per temporary matrix


@dataclass(frozen=True, slots=True)
class _Side:
    """Users, or items.  D domains, n entities, K factors.

    Attributes:
        members: per domain, the sorted indices of the entities present in it.
        factors: (D, n, K) standard normal.
        later: (D, n, K) where the factors drift to.
        bias: (D, n).
        weight: (D, n) relative activity (users) or exposure (items).
        group: (n,) a coarse view of the common factors.
    """

    members: list[np.ndarray]
    factors: np.ndarray
    later: np.ndarray
    bias: np.ndarray
    weight: np.ndarray
    group: np.ndarray


@dataclass(frozen=True, slots=True)
class _Truth:
    """Both sides, how far the users' tastes move within the world's time span, and the strength of the taste."""

    users: _Side
    items: _Side
    drift: float
    signal: float

    def tastes(self, d: int, user: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """(B, K) factors at moments in [0, 1]: they turn from the first vector towards the second, keeping their length."""
        angle = (0.5 * np.pi * self.drift * moment)[:, None]
        taste = np.cos(angle) * self.users.factors[d, user] + np.sin(angle) * self.users.later[d, user]
        return taste * (self.signal / np.sqrt(taste.shape[1]))

    def utilities(self, d: int, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(B, items of the domain) utilities."""
        shown = self.items.members[d]
        match = self.tastes(d, user, (time - START) / SPAN) @ self.items.factors[d, shown].T
        return match + self.users.bias[d, user][:, None] + self.items.bias[d, shown]


@dataclass(frozen=True, slots=True)
class World:
    """Events together with the truth behind them.

    Attributes:
        events: what a recommender may see, in order of time.
        probability: (N,) float64, true probability of each row's label being 1 before labels are flipped;
            in an implicit world the probability of the choice made.
        noisy_probability: (N,) float64, the same after flipping a share ``noise`` of the labels.
        intercept: (D,) logit offsets that give each domain its click rate; zeros in implicit worlds.
    """

    events: Events
    probability: np.ndarray
    noisy_probability: np.ndarray
    intercept: np.ndarray
    _truth: _Truth

    def best_auc(self, rows: np.ndarray | None = None) -> float:
        """Area under the ROC curve of the true probabilities on the logged labels: what no model beats but by luck.

        Args:
            rows: indices or mask of event rows; None takes all.

        Raises:
            ConfigError: an implicit world, or rows with only one label.
        """
        if self.events.label is None:
            raise ConfigError("best_auc of an implicit world", "a world of clicks", "rank with utility() instead")
        chosen = slice(None) if rows is None else rows
        label, score = self.events.label[chosen] > 0.5, self.probability[chosen]
        positives, negatives = int(label.sum()), int((~label).sum())
        if not positives or not negatives:
            raise ConfigError(f"{positives} positive and {negatives} negative rows", "both labels", "choose more rows")
        ranks = rankdata(score)[label].sum()
        return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))

    def utility(self, user: np.ndarray, domain: int, time: np.ndarray | None = None) -> np.ndarray:
        """True utilities of all items: the logit without intercept (clicks), or the logit of the choice (implicit).

        Args:
            user: (B,) indices into ``events.user_ids``.
            domain: index of the domain.
            time: (B,) seconds; None is the start of the world.

        Returns:
            (B, items) float64; -inf for items that are not in the domain.
        """
        out = np.full((len(user), len(self.events.item_ids)), -np.inf)
        moments = np.full(len(user), START) if time is None else time
        out[:, self._truth.items.members[domain]] = self._truth.utilities(domain, user, moments)
        return out


def make_world(
    domains: int | Sequence[str] = 3,
    *,
    users: int | Sequence[int] = 500,
    items: int | Sequence[int] = 200,
    events: int | Sequence[int] = 10_000,
    size_ratio: float = 1.0,
    label: Literal["click", "implicit"] = "click",
    relatedness: float = 1.0,
    user_overlap: float = 0.5,
    item_overlap: float = 0.5,
    click_rate: float | Sequence[float] = 0.3,
    drift: float = 0.0,
    noise: float = 0.0,
    signal: float = 2.0,
    factors: int = 4,
    features: bool = True,
    seed: int = 0,
) -> World:
    """A world of timed events in which the truth is known.  The same arguments give the same world.

    Args:
        domains: their number, or their names.
        users, items, events: sizes of the first domain (the others follow by ``size_ratio``), or of each domain.
        size_ratio: size of each domain relative to the one before it.
        label: ``click`` (logged impressions with a label) or ``implicit`` (choices).
        relatedness: 0 (domains are independent, even for shared users and items) to 1 (identical).
        user_overlap, item_overlap: share of each domain's users or items drawn from a common pool; smaller
            domains take the first ones of the pool, so they lie within the larger domains' part of it.
        click_rate: mean click probability before noise, one for all or one per domain.
        drift: 0 (tastes stay) to 1 (at the end the users' tastes have nothing to do with those at the start).
        noise: share of labels flipped at random (click worlds).
        signal: standard deviation of the taste part of the utility.
        factors: number of latent factors K.
        features: give items a ``category`` and users a ``segment``.
        seed: of everything drawn.

    Raises:
        ConfigError: a number outside its range, or lists that do not have one value per domain.
    """
    names = [f"domain{d}" for d in range(domains)] if isinstance(domains, int) else list(domains)
    for name, value in {"relatedness": relatedness, "user_overlap": user_overlap, "item_overlap": item_overlap, "drift": drift}.items():
        _check_share(name, value, 1.0)
    _check_share("noise", noise, 0.5)
    n_users, n_items, n_events = (_sizes(k, v, size_ratio, len(names)) for k, v in (("users", users), ("items", items), ("events", events)))
    rates = [float(r) for r in _per_domain("click_rate", click_rate, len(names))]
    if not all(0 < rate < 1 for rate in rates):
        raise ConfigError(f"click_rate={rates}", "numbers between 0 and 1, exclusive", "give a rate inside the range")
    rng = np.random.default_rng(seed)
    truth = _Truth(
        _side(rng, n_users, user_overlap, relatedness, factors, USER_BIAS),
        _side(rng, n_items, item_overlap, relatedness, factors, ITEM_BIAS),
        drift,
        signal,
    )
    if label == "click":
        parts = [_impressions(rng, truth, d, n, rates[d]) for d, n in enumerate(n_events)]
    else:
        parts = [_choices(rng, truth, d, n) for d, n in enumerate(n_events)]
    return _assemble(rng, names, parts, truth, label, noise, features)


def demo_world(seed: int = 0) -> World:
    """Three markets that sell mostly the same items, in part to the same people, of similar taste.

    The large and the medium market have enough clicks to learn from; the small one has few and gains clearly
    from the others.  Sized so that a dozen models train in minutes on a laptop.
    """
    return make_world(
        ("large", "medium", "small"),
        users=(1200, 700, 400),
        items=(400, 350, 300),
        events=(30_000, 16_000, 4_000),
        relatedness=0.95,
        user_overlap=0.6,
        item_overlap=0.9,
        click_rate=(0.30, 0.25, 0.20),
        seed=seed,
    )


def _check_share(name: str, value: float, highest: float) -> None:
    if not 0.0 <= value <= highest:
        raise ConfigError(f"{name}={value}", f"a number from 0 to {highest:g}", "give a share inside the range")


def _per_domain(name: str, value: float | Sequence[float], n: int) -> list[float]:
    values: list[float] = list(value) if isinstance(value, Sequence) else [value] * n
    if len(values) != n:
        raise ConfigError(f"{name} has {len(values)} values for {n} domains", "one value, or one per domain", "make the lengths equal")
    return values


def _sizes(name: str, value: int | Sequence[int], ratio: float, n: int) -> list[int]:
    sizes = _per_domain(name, value if isinstance(value, Sequence) else [value * ratio**d for d in range(n)], n)
    whole = [round(float(size)) for size in sizes]
    if min(whole) < 2:
        raise ConfigError(f"{name}={whole}", "at least 2 in every domain", "raise the size or the size_ratio")
    return whole


def _members(sizes: Sequence[int], overlap: float) -> tuple[list[np.ndarray], int]:
    """Per domain the indices of its entities: a beginning of the common pool, and a block of its own; and how many there are."""
    common = [round(overlap * size) for size in sizes]
    total, members = max(common), []
    for size, shared in zip(sizes, common, strict=True):
        members.append(np.concatenate([np.arange(shared), np.arange(total, total + size - shared)]))
        total += size - shared
    return members, total


def _side(rng: np.random.Generator, sizes: Sequence[int], overlap: float, relatedness: float, k: int, bias: float) -> _Side:
    members, n = _members(sizes, overlap)
    common = rng.standard_normal((n, k))

    def related(shared: np.ndarray, correlation: float) -> np.ndarray:
        own = rng.standard_normal((len(sizes), *shared.shape))
        return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own

    root = np.sqrt(relatedness)
    return _Side(
        members,
        factors=related(common, root),
        later=related(rng.standard_normal((n, k)), root),
        bias=bias * related(rng.standard_normal(n), relatedness),
        weight=np.exp(SKEW * related(rng.standard_normal(n), relatedness)),
        group=np.argmax(common @ rng.standard_normal((k, GROUPS)), axis=1),
    )


def _covering(rng: np.random.Generator, side: _Side, d: int, n: int) -> np.ndarray:
    """(n,) entities drawn by weight; when n allows it, each one at least once."""
    members = side.members[d]
    weight = side.weight[d, members]
    drawn = rng.choice(members, size=n, p=weight / weight.sum())
    if n >= len(members):
        drawn[: len(members)] = members
    return rng.permutation(drawn)


_Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]  # user, item, time, probability, intercept


def _impressions(rng: np.random.Generator, truth: _Truth, d: int, n: int, rate: float) -> _Part:
    user, item = _covering(rng, truth.users, d, n), _covering(rng, truth.items, d, n)
    time = START + rng.integers(0, SPAN, n)
    match = np.einsum("bk,bk->b", truth.tastes(d, user, (time - START) / SPAN), truth.items.factors[d, item])
    utility = match + truth.users.bias[d, user] + truth.items.bias[d, item]
    intercept = _intercept(utility[:200_000], rate)
    return user, item, time, expit(intercept + utility), intercept


def _intercept(utility: np.ndarray, rate: float) -> float:
    """The offset at which the mean of sigmoid(offset + utility) is ``rate``, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + utility).mean() < rate else (low, middle)
    return (low + high) / 2


def _choices(rng: np.random.Generator, truth: _Truth, d: int, n: int) -> _Part:
    """Round j makes the j-th choice of every user who has one, among the items not chosen before."""
    shown = truth.items.members[d]
    user, time = _choosers(rng, truth.users, d, n, len(shown) // 2), START + rng.integers(0, SPAN, n)
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    first = np.searchsorted(user, user)
    turn = np.arange(n) - first
    item, probability = np.empty(n, np.int64), np.empty(n)
    for rows in _rounds(turn, max(1, CHUNK // len(shown))):
        utility = truth.utilities(d, user[rows], time[rows])
        _mask_chosen(utility, item, first[rows], int(turn[rows[0]]), shown)
        pick = np.argmax(utility + rng.gumbel(size=utility.shape), axis=1)
        item[rows] = shown[pick]
        probability[rows] = np.exp(utility[np.arange(len(rows)), pick] - logsumexp(utility, axis=1))
    return user, item, time, probability, 0.0


def _choosers(rng: np.random.Generator, users: _Side, d: int, n: int, most: int) -> np.ndarray:
    """(n,) users by activity, none more than ``most`` times: what is too much for one goes to others at random."""
    if n > most * len(users.members[d]):
        came = f"{n} choices by {len(users.members[d])} users of domain {d}"
        raise ConfigError(came, f"at most {most} by each, half of the items", "give fewer events, or more users or items")
    user = _covering(rng, users, d, n)
    while True:
        count = np.bincount(user, minlength=len(users.group))
        order = np.argsort(user, kind="stable")
        turn = np.arange(n) - np.searchsorted(user[order], user[order])
        excess = order[turn >= most]
        if not len(excess):
            return user
        room = users.members[d][count[users.members[d]] < most]
        user[excess] = rng.choice(room, size=len(excess))


def _rounds(turn: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of one turn, at most ``size`` at a time, turn after turn."""
    order = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[order], np.arange(turn.max() + 2))
    for begin, end in pairwise(bounds):
        for at in range(begin, end, size):
            yield order[at : min(at + size, end)]


def _mask_chosen(utility: np.ndarray, item: np.ndarray, first: np.ndarray, turns: int, shown: np.ndarray) -> None:
    """Sets to -inf what each user has chosen in the ``turns`` earlier choices, stored from row ``first`` on."""
    if turns:
        earlier = item[first[:, None] + np.arange(turns)]
        utility[np.arange(len(first))[:, None], np.searchsorted(shown, earlier)] = -np.inf


def _assemble(
    rng: np.random.Generator,
    names: list[str],
    parts: list[_Part],
    truth: _Truth,
    label: Literal["click", "implicit"],
    noise: float,
    features: bool,
) -> World:
    """The parts of all domains in order of time, as events and their truth."""
    users, items = truth.users, truth.items
    user, item, time, probability = (np.concatenate([part[i] for part in parts]) for i in range(4))
    domain = np.repeat(np.arange(len(names)), [len(part[0]) for part in parts])
    order = np.argsort(time, kind="stable")
    user, item, time, domain, probability = (column[order] for column in (user, item, time, domain, probability))
    clicks = label == "click"
    noisy = probability * (1 - 2 * noise) + noise if clicks else probability
    user_ids, item_ids = _ids("u", len(users.group)), _ids("i", len(items.group))
    schema = Schema(
        user=Entity("user", (Field("segment"),) if features else ()),
        item=Entity("item", (Field("category"),) if features else ()),
        domains=tuple(Domain(name) for name in names),
        label=label,
        timed=True,
        time_unit="s",
    )
    events = Events(
        schema=schema,
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        domain=domain.astype(np.int16),
        time=time.astype(np.int64),
        label=(rng.random(len(user)) < noisy).astype(np.float32) if clicks else None,
        behaviour=None,
        context={},
        user_ids=user_ids,
        item_ids=item_ids,
        users=_groups(user_ids, "segment", users.group) if features else None,
        items=_groups(item_ids, "category", items.group) if features else None,
        shows=None,
        dropped={},
    )
    intercept = np.array([part[4] for part in parts])
    return World(events, probability, noisy, intercept, truth)


def _ids(letter: str, n: int) -> pl.Series:
    """Ids whose order as text is the order of their numbers."""
    width = len(str(n))
    return pl.Series("id", [f"{letter}{i:0{width}d}" for i in range(n)], dtype=pl.String)


def _groups(ids: pl.Series, name: str, group: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, name: pl.Series(group).cast(pl.String)}).with_columns(pl.lit(f"{name}-").add(pl.col(name)).alias(name))
