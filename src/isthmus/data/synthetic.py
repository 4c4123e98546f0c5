"""Worlds whose right answer is known: how much the domains share is a dial.

Every user and item has latent factors in every domain.  For a user with factors ``u_d`` and an item with
factors ``v_d`` the utility in domain ``d`` is::

    x = signal * (u_d . v_d) / sqrt(K) + user_bias_d + item_bias_d

A click world logs impressions and draws ``label ~ Bernoulli(sigmoid(intercept_d + x))``; an implicit world
logs choices drawn from ``softmax(x)`` over the domain's items that the user has not chosen before; a rating world
logs ``intercept_d + x + noise``, in whole stars from 1 to 5 unless told otherwise.

``relatedness`` is the correlation of the utilities of one user-item pair in two domains: factors correlate by
its square root on each side, biases, popularity and activity by ``relatedness`` itself.  The item field
``category`` and the user field ``segment`` are a coarse view of what the domains have in common, so at 0
nothing at all, neither ids nor fields nor popularity, tells one domain about another.

Two more dials say how the domains are related.  ``rotated``: tastes are carried over by a fixed rotation, so that a
mapping of users from one domain to another has a known answer (``World.rotation``).  ``facets``: an item of the
first domain shows one facet of itself, drawn at random, and each other domain asks for one facet only: which of a
user's events in the first domain matter depends on the domain asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from scipy.special import expit, ndtr
from scipy.stats import rankdata

from isthmus.data.draws import Drawn, choices, impressions, intercept
from isthmus.data.events import Events
from isthmus.data.tastes import ITEM_BIAS, START, USER_BIAS, Side, Truth, rotations
from isthmus.errors import ConfigError
from isthmus.schema import Domain, Entity, Field, Schema

STARS = 5  # whole stars from 1

Label = Literal["click", "implicit", "rating"]


@dataclass(frozen=True, slots=True)
class World:
    """Events together with the truth behind them.

    Attributes:
        events: what a recommender may see, in order of time.
        probability: (N,) float64, true probability of each row's label being 1 before labels are flipped;
            in an implicit world the probability of the choice made; NaN in a rating world.
        noisy_probability: (N,) float64, the same after flipping a share ``noise`` of the labels.
        expected: (N,) float64, the mean of each row's label given everything: the true rating, or ``noisy_probability``;
            ones in an implicit world.
        intercept: (D,) logit offsets that give each domain its click rate, or levels of ratings; zeros in implicit worlds.
        rotation: (D, K, K) that turns the tastes of the first domain into those of each (up to ``relatedness``); None
            without ``rotated``.
    """

    events: Events
    probability: np.ndarray
    noisy_probability: np.ndarray
    expected: np.ndarray
    intercept: np.ndarray
    rotation: np.ndarray | None
    _truth: Truth

    def best_auc(self, rows: np.ndarray | None = None) -> float:
        """Area under the ROC curve of the true probabilities on the logged labels: what no model beats but by luck.

        Args:
            rows: indices or mask of event rows; None takes all.

        Raises:
            ConfigError: an implicit world, or rows with only one label.
        """
        if self.events.label is None or self.events.schema.label != "click":
            do = "rank with utility() instead" if self.events.label is None else "use best_rmse"
            raise ConfigError(f"best_auc of a world of {self.events.schema.label!r} labels", "a world of clicks", do)
        chosen = slice(None) if rows is None else rows
        label, score = self.events.label[chosen] > 0.5, self.probability[chosen]
        positives, negatives = int(label.sum()), int((~label).sum())
        if not positives or not negatives:
            raise ConfigError(f"{positives} positive and {negatives} negative rows", "both labels", "choose more rows")
        ranks = rankdata(score)[label].sum()
        return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))

    def best_rmse(self, rows: np.ndarray | None = None) -> float:
        """Root mean squared error of the true expected ratings on the logged ones: what no model beats but by luck.

        Args:
            rows: indices or mask of event rows; None takes all.

        Raises:
            ConfigError: not a world of ratings.
        """
        if self.events.label is None or self.events.schema.label != "rating":
            raise ConfigError(f"best_rmse of a world of {self.events.schema.label!r} labels", "a world of ratings", 'label="rating"')
        chosen = slice(None) if rows is None else rows
        return float(np.sqrt(np.mean((self.events.label[chosen] - self.expected[chosen]) ** 2)))

    def taste(self, user: np.ndarray, domain: int) -> np.ndarray:
        """(B, K) latent factors of users (indices into ``events.user_ids``) in a domain at the start of the world."""
        return self._truth.users.factors[domain, user]

    def utility(self, user: np.ndarray, domain: int, time: np.ndarray | None = None) -> np.ndarray:
        """True utilities of all items: the logit or rating without intercept, or the logit of the choice (implicit).

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
    label: Label = "click",
    relatedness: float = 1.0,
    user_overlap: float | Sequence[float] = 0.5,
    item_overlap: float | Sequence[float] = 0.5,
    click_rate: float | Sequence[float] = 0.3,
    level: float | Sequence[float] = 3.0,
    stars: bool = True,
    rotated: bool = False,
    facets: int = 1,
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
        label: ``click`` (logged impressions with a label), ``implicit`` (choices) or ``rating``.
        relatedness: 0 (domains are independent, even for shared users and items) to 1 (identical).
        user_overlap, item_overlap: share of each domain's users or items drawn from a common pool, one for all or one per
            domain; smaller domains take the first ones of the pool, so they lie within the larger domains' part of it.
        click_rate: mean click probability before noise, one for all or one per domain.
        level: rating of an average item by an average user, one for all or one per domain.
        stars: ratings are whole, from 1 to 5; False leaves them as they are.
        rotated: tastes in each domain but the first are turned by a rotation of its own, the same for all users.
        facets: number of facets that the factors are divided into; 1: every item shows all of its factors.
        drift: 0 (tastes stay) to 1 (at the end the users' tastes have nothing to do with those at the start).
        noise: share of labels flipped at random (click worlds), or standard deviation of a rating around its mean.
        signal: standard deviation of the taste part of the utility.  Beside it users differ by 0.5 and items by 0.7, so
            0.7 is much for ratings.
        factors: number of latent factors K.
        features: give items a ``category`` and users a ``segment``.
        seed: of everything drawn.

    Raises:
        ConfigError: a number outside its range, or lists that do not have one value per domain.
    """
    names = [f"domain{d}" for d in range(domains)] if isinstance(domains, int) else list(domains)
    _check_share("relatedness", relatedness, 1.0)
    _check_share("drift", drift, 1.0)
    _check_share("noise", noise, np.inf if label == "rating" else 0.5)
    shares = [_per_domain(k, v, len(names)) for k, v in (("user_overlap", user_overlap), ("item_overlap", item_overlap))]
    for name, several in zip(("user_overlap", "item_overlap"), shares, strict=True):
        for share in several:
            _check_share(name, share, 1.0)
    if facets < 1 or factors % facets:
        raise ConfigError(f"facets={facets} of factors={factors}", "facets that divide the factors equally", "change one of them")
    n_users, n_items, n_events = (_sizes(k, v, size_ratio, len(names)) for k, v in (("users", users), ("items", items), ("events", events)))
    rates = [float(r) for r in _per_domain("click_rate", click_rate, len(names))]
    if not all(0 < rate < 1 for rate in rates):
        raise ConfigError(f"click_rate={rates}", "numbers between 0 and 1, exclusive", "give a rate inside the range")
    rng = np.random.default_rng(seed)
    people = Side.draw(rng, n_users, shares[0], relatedness, factors, USER_BIAS)
    things = Side.draw(rng, n_items, shares[1], relatedness, factors, ITEM_BIAS)
    turns = rotations(rng, len(names), factors) if rotated else None
    truth = Truth(people if turns is None else people.rotated(turns), things if facets == 1 else things.faceted(rng, facets), drift, signal)
    if label == "implicit":
        drawn, offsets = [choices(rng, truth, d, n) for d, n in enumerate(n_events)], [0.0] * len(names)
    else:
        drawn, offsets = [impressions(rng, truth, d, n) for d, n in enumerate(n_events)], _per_domain("level", level, len(names))
    if label == "click":
        offsets = [intercept(utility[:200_000], rate) for (*_, utility), rate in zip(drawn, rates, strict=True)]
    return _assemble(rng, names, drawn, np.array(offsets), truth, label, noise, features, stars, turns)


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


def bridge_world(seed: int = 0, users: int = 1000, items: int = 300, events: int = 40_000) -> World:
    """Two domains of ratings with the same users and no common item, the tastes of the second a rotation of the first's.

    What a mapping of users from ``source`` to ``target`` should find is known: ``World.rotation[1]``.

    Args:
        seed: of everything drawn.
        users: all of them in both domains.
        items, events: of each domain.
    """
    return make_world(
        ("source", "target"),
        users=users,
        items=items,
        events=events,
        label="rating",
        relatedness=1.0,
        user_overlap=1.0,
        item_overlap=0.0,
        rotated=True,
        signal=0.8,
        noise=0.5,
        stars=False,
        features=False,
        seed=seed,
    )


def table2_world(scale: float = 1.0, seed: int = 0) -> World:
    """One source and three targets in the form of DACDR's industrial data (its Tables 1 and 2).

    As printed there: click rates (4.02, 1.48, 2.19 and 1.85 %), the share of each target's users who are in the source
    (94, 69 and 78 %), and the order of the catalogues' sizes.  Sizes are a laptop's, with fewer impressions of a source
    user and more of a target user than theirs.  Each target asks for a facet of its own of what users like.

    Args:
        scale: of the numbers of users, items and events; 1: 490,000 events.
        seed: of everything drawn.
    """
    users, items, events = (2_500, 900, 1_800, 600), (3_000, 400, 60, 900), (300_000, 50_000, 90_000, 50_000)

    def scaled(sizes: Sequence[int]) -> list[int]:
        return [max(2, round(scale * size)) for size in sizes]

    return make_world(
        ("source", "target1", "target2", "target3"),
        users=scaled(users),
        items=scaled(items),
        events=scaled(events),
        relatedness=0.95,
        user_overlap=(1.0, 0.94, 0.69, 0.78),
        item_overlap=(1.0, 0.3, 0.3, 0.3),
        click_rate=(0.0402, 0.0148, 0.0219, 0.0185),
        factors=6,
        facets=3,
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


def _assemble(
    rng: np.random.Generator,
    names: list[str],
    drawn: list[Drawn],
    offsets: np.ndarray,
    truth: Truth,
    label: Label,
    noise: float,
    features: bool,
    stars: bool,
    rotation: np.ndarray | None,
) -> World:
    """What was drawn in all domains in order of time, as events and their truth."""
    users, items = truth.users, truth.items
    user, item, time, value = (np.concatenate(column) for column in zip(*drawn, strict=True))
    domain = np.repeat(np.arange(len(names)), [len(part[0]) for part in drawn])
    order = np.argsort(time, kind="stable")
    user, item, time, domain, value = (column[order] for column in (user, item, time, domain, value))
    if label == "click":
        probability = expit(offsets[domain] + value)
        expected = noisy = probability * (1 - 2 * noise) + noise
        labels = (rng.random(len(user)) < noisy).astype(np.float32)
    elif label == "rating":
        probability = noisy = np.full(len(user), np.nan)
        labels, expected = _ratings(rng, offsets[domain] + value, noise, stars)
    else:
        probability, noisy, expected, labels = value, value, np.ones(len(user)), None
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
        label=labels,
        behaviour=None,
        context={},
        user_ids=user_ids,
        item_ids=item_ids,
        users=_groups(user_ids, "segment", users.group) if features else None,
        items=_groups(item_ids, "category", items.group) if features else None,
        shows=None,
        dropped={},
    )
    return World(events, probability, noisy, expected, offsets, rotation, truth)


def _ratings(rng: np.random.Generator, mean: np.ndarray, noise: float, stars: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ratings around their means, and what is expected of each."""
    drawn = mean + noise * rng.standard_normal(len(mean))
    if not stars:
        return drawn.astype(np.float32), mean
    # The mean of whole stars is 1 plus the probabilities of reaching the second, the third, ...
    steps = ((mean - (k - 0.5)) / max(noise, 1e-9) for k in range(2, STARS + 1))
    return np.clip(np.rint(drawn), 1, STARS).astype(np.float32), 1 + np.sum([ndtr(step) for step in steps], axis=0)


def _ids(letter: str, n: int) -> pl.Series:
    """Ids whose order as text is the order of their numbers."""
    width = len(str(n))
    return pl.Series("id", [f"{letter}{i:0{width}d}" for i in range(n)], dtype=pl.String)


def _groups(ids: pl.Series, name: str, group: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, name: pl.Series(group).cast(pl.String)}).with_columns(pl.lit(f"{name}-").add(pl.col(name)).alias(name))
