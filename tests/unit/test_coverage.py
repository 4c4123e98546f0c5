"""Intervals hold what they promise: many small worlds with a known truth and a fifth of the labels wrong."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from isthmus.ledger import Entry, ledger
from isthmus.measure import measure
from isthmus.scores import Scores

pytestmark = pytest.mark.slow

WORLDS = 400
NOISE = 0.2  # share of labels that are flipped, on average


class World:
    """Users whose clean label is a fair coin; each user's labels are flipped at a rate of her own, 0.2 on average.

    A scorer says the clean label, wrong with probability q.  The share of clean ones is 1 - NOISE among positives and NOISE among
    negatives, so its AUC is 1/2 + (1 - 2 NOISE)(1 - 2 q) / 2 whatever the spread of the users' rates: rows of one user depend on
    each other, pairs of users do not.
    """

    def __init__(self, seed: int, users: int = 80, each: int = 10, domains: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        n = users * each * domains
        user = np.tile(np.repeat(np.arange(users), each), domains)
        rate = self.rng.beta(0.4, 1.6, users)[user]  # mean 0.2, wide
        self.clean = self.rng.random(n) < 0.5
        label = self.clean ^ (self.rng.random(n) < rate)
        # How hard a user is to predict is shared by all models and seeds: differences have a user effect too.
        self.hard = 2 * self.rng.random(users)[user]
        domain = np.repeat([f"d{d}" for d in range(domains)], users * each)
        columns = {"group": user, "user": user, "item": np.arange(n) % 99, "domain": domain, "label": label.astype(np.float32)}
        self.frame = pl.DataFrame(columns)

    def scores(self, wrong: float) -> Scores:
        said = self.clean ^ (self.rng.random(len(self.clean)) < wrong * self.hard)
        return Scores(self.frame.with_columns(pl.Series("score", said.astype(np.float32))), "rows")

    def entry(self, name: str, wrong: float, luck: float, *, control: str | None = None, seeds: int = 3) -> Entry:
        """A model that is wrong at a rate of its own in each training."""
        test = {s: self.scores(wrong + luck * self.rng.normal()) for s in range(seeds)}
        return Entry(name, control, False, test, test)


def auc(wrong: float) -> float:
    return 0.5 + (1 - 2 * NOISE) * (1 - 2 * wrong) / 2


def at_least(share: float, n: int) -> int:
    """A count that a fair procedure falls below once in a thousand runs."""
    return int(stats.binom.ppf(0.001, n, share))


def at_most(share: float, n: int) -> int:
    return int(stats.binom.ppf(0.999, n, share))


def test_intervals_of_measure_hold_the_truth() -> None:
    held = dict.fromkeys(("d0", "d1", "all"), 0)
    for seed in range(WORLDS):
        frame = measure(World(seed).scores(0.15), ("auc",), resamples=400, seed=seed)
        for domain, low, high in frame.select("domain", "low", "high").iter_rows():
            held[domain] += low <= auc(0.15) <= high
    for domain, count in held.items():
        assert at_least(0.95, WORLDS) <= count <= at_most(0.95, WORLDS), (domain, count)


def test_intervals_hold_the_truth_with_few_users() -> None:
    held = 0
    for seed in range(WORLDS):
        frame = measure(World(10_000 + seed, users=12, domains=1).scores(0.15), ("auc",), resamples=400, seed=seed)
        low, high = frame.filter(pl.col("domain") == "d0").select("low", "high").row(0)
        held += low <= auc(0.15) <= high
    assert at_least(0.95, WORLDS) <= held, held


def test_intervals_over_rows_would_not_hold() -> None:
    """The worlds are hard enough: taking every row for a user of its own misses the truth far too often."""
    held = 0
    for seed in range(WORLDS):
        world = World(seed, each=40, domains=1)
        world.frame = world.frame.with_columns(pl.int_range(pl.len()).alias(name) for name in ("group", "user"))
        low, high = measure(world.scores(0.15), ("auc",), resamples=200, seed=seed).select("low", "high").row(0)
        held += low <= auc(0.15) <= high
    assert held < at_least(0.95, WORLDS), held


@pytest.mark.parametrize("luck", [0.0, 0.03])
def test_intervals_of_the_ledger_hold_the_true_difference(luck: float) -> None:
    held = dict.fromkeys(("d0", "d1", "all"), 0)
    for seed in range(WORLDS):
        world = World(20_000 + seed)
        entries = [world.entry("x", 0.15, luck, control="y"), world.entry("y", 0.22, luck)]
        for domain, low, high in ledger(entries, "auc", resamples=300, seed=seed).frame.select("domain", "low", "high").iter_rows():
            held[domain] += low <= auc(0.15) - auc(0.22) <= high
    for domain, count in held.items():
        assert at_least(0.95, WORLDS) <= count, (domain, count)


@pytest.mark.parametrize("luck", [0.0, 0.03])
def test_wrong_verdicts_stay_within_the_stated_rate(luck: float) -> None:
    """Three models, two domains, no difference anywhere: at most 5 % of the worlds have a verdict, at most 2.5 % a "helps"."""
    wrong = helps = wrong_mean = 0
    for seed in range(WORLDS):
        world = World(30_000 + seed, users=60)
        entries = [world.entry("y", 0.2, luck), *(world.entry(name, 0.2, luck, control="y") for name in "abc")]
        frame = ledger(entries, "auc", resamples=300, seed=seed).frame
        domains = frame.filter(pl.col("domain") != "all")
        wrong += bool((domains["verdict"] != "no evidence").any())
        helps += bool((domains["verdict"] == "helps").any())
        wrong_mean += bool((frame.filter(pl.col("domain") == "all")["verdict"] != "no evidence").any())
    assert wrong <= at_most(0.05, WORLDS), wrong
    assert helps <= at_most(0.025, WORLDS), helps
    assert wrong_mean <= at_most(0.05, WORLDS), wrong_mean


def test_wrong_verdicts_stay_within_the_stated_rate_when_luck_outweighs_users() -> None:
    """Three models with controls of their own, two domains, no difference anywhere, three seeds that differ a lot."""
    worlds, wrong = 150, 0
    for seed in range(worlds):
        world = World(50_000 + seed, users=60, each=6)
        entries = [world.entry(name, 0.25, 0.1, control=None if name.isupper() else name.upper()) for name in "aAbBcC"]
        frame = ledger(entries, "auc", resamples=100, seed=seed).frame
        wrong += bool((frame.filter(pl.col("domain") != "all")["verdict"] != "no evidence").any())
    assert wrong <= at_most(0.05, worlds), wrong


def test_true_differences_are_found() -> None:
    found = 0
    for seed in range(40):
        world = World(40_000 + seed, users=200)
        entries = [world.entry("x", 0.1, 0.01, control="y"), world.entry("y", 0.2, 0.01)]
        found += bool((ledger(entries, "auc", resamples=300, seed=seed).frame["verdict"] == "helps").all())
    assert found >= 30, found
