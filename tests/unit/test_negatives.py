"""Negatives: never a known positive, never from another domain's catalogue, and as frequent as log q says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chi2

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.negatives import Negatives, _alias
from isthmus.errors import ConfigError
from isthmus.schema import Domain, Schema


def world(folder, rows, shows=None, part=None) -> Dataset:
    """Implicit events (user, domain, item) -> a data set."""
    user, domain, item = (np.array(c) for c in zip(*rows, strict=True))
    shown = [x for s in shows or () for x in s]
    events = Events(
        schema=Schema(domains=(Domain("a"), Domain("b"))),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        domain=domain.astype(np.int16),
        time=None,
        label=None,
        behaviour=None,
        context={},
        user_ids=pl.Series("id", range(int(user.max()) + 1)),
        item_ids=pl.Series("id", range(max([int(item.max()), *shown]) + 1)),
        users=None,
        items=None,
        shows=None if shows is None else [np.array(s, np.int32) for s in shows],
        dropped={},
    )
    return encode(events, split.given(events, part or ["train"] * len(user)), folder)


def draw(dataset, negatives, rows, seed=0):
    """Draws for (user id, domain, item id) rows ordered by domain; ids back, and log q."""
    user = dataset.user_vocabulary.encode([u for u, _, _ in rows])
    item = dataset.item_vocabulary.encode([i for _, _, i in rows])
    offsets = np.searchsorted([d for _, d, _ in rows], np.arange(3))
    got, log_q = negatives.sample(user, offsets, item, np.random.default_rng(seed))
    ids = np.array(dataset.item_vocabulary.decode(got.ravel()).to_list()).reshape(got.shape)
    assert got.dtype == np.int64
    assert log_q.dtype == np.float32
    assert log_q.shape == (len(rows), 1 + got.shape[1])
    return ids, log_q


@pytest.mark.parametrize("how", ["uniform", "popularity"])
def test_never_known_never_elsewhere(tmp_path, how):
    rng = np.random.default_rng(1)
    rows = [(int(u), 0, int(i)) for u, i in zip(rng.integers(0, 20, 300), rng.integers(0, 30, 300), strict=True)]
    rows += [(int(u), 1, int(i)) for u, i in zip(rng.integers(0, 20, 100), rng.integers(20, 60, 100), strict=True)]
    dataset = world(tmp_path / "d", rows)
    got, _ = draw(dataset, Negatives(dataset, 50, how), rows)
    for (user, domain, _), items in zip(rows, got, strict=True):
        known = {i for u, d, i in rows if (u, d) == (user, domain)}
        catalogue = {i for _, d, i in rows if d == domain}
        assert set(items.tolist()) <= catalogue - known


@pytest.mark.parametrize(("how", "alpha"), [("uniform", 0.75), ("popularity", 0.75), ("popularity", 1.0), ("popularity", 0.0)])
def test_frequencies_are_those_that_log_q_states(tmp_path, how, alpha):
    counts = [40, 20, 10, 5, 3, 2, 1, 1]
    rows = [(u, 0, i) for i, n in enumerate(counts) for u in range(n)] + [(99, 0, 0), (99, 0, 3)] + [(0, 1, 0), (0, 1, 9)]
    dataset = world(tmp_path / "d", rows)
    asked = [(99, 0, 0)] * 400
    got, log_q = draw(dataset, Negatives(dataset, 50, how, alpha), asked, seed=3)
    popular = np.array([41, 20, 10, 6, 3, 2, 1, 1], float)
    weight = popular**alpha if how == "popularity" else np.ones(8)
    expected = np.log(weight / weight.sum())
    assert np.allclose(log_q[:, 0], expected[0], atol=1e-6)
    assert np.allclose(log_q[:, 1:], expected[got], atol=1e-5)
    allowed = np.array([1, 2, 4, 5, 6, 7])  # user 99 knows 0 and 3
    observed = np.bincount(got.ravel(), minlength=8)
    assert observed.sum() == observed[allowed].sum() == 20_000
    wanted = softmax(expected[allowed]) * 20_000  # the constant that restricting adds cancels
    assert ((observed[allowed] - wanted) ** 2 / wanted).sum() < chi2.ppf(0.9999, len(allowed) - 1)


@pytest.mark.parametrize("how", ["uniform", "popularity"])
def test_who_knows_nearly_everything_gets_the_rest_in_its_proportions(tmp_path, how):
    # 400 items; user 0 knows all but three of them, of popularity 1, 2 and 5.
    rows = [(0, 0, i) for i in range(397)] + [(u, 0, i) for i, n in ((397, 1), (398, 2), (399, 5)) for u in range(1, 1 + n)] + [(1, 1, 0)]
    dataset = world(tmp_path / "d", rows)
    got, log_q = draw(dataset, Negatives(dataset, 100, how, 1.0), [(0, 0, 7)] * 60 + [(5, 0, 399)], seed=2)
    observed = np.bincount(got[:60].ravel(), minlength=400)
    assert observed[:397].sum() == 0
    share = np.array([1, 2, 5]) / 8 if how == "popularity" else np.ones(3) / 3
    assert ((observed[397:] - 6000 * share) ** 2 / (6000 * share)).sum() < chi2.ppf(0.9999, 2)
    assert 399 not in got[60]
    weight, total = (np.array([1, 2, 5]), 405) if how == "popularity" else (np.ones(3), 400)
    assert np.allclose(log_q[0, 1:], np.log(weight[got[0] - 397] / total))


def test_who_knows_everything_gets_anything_but_the_positive(tmp_path):
    dataset = world(tmp_path / "d", [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 4), (1, 1, 4)])
    got, log_q = draw(dataset, Negatives(dataset, 40), [(0, 0, 2), (0, 1, 4)])
    assert set(got[0].tolist()) == {1, 3}
    assert set(got[1].tolist()) == {4}  # a catalogue of one item: the loss masks what repeats the positive
    assert np.allclose(log_q, np.log([[1 / 3], [1.0]]))


def test_a_positive_that_is_no_training_event_is_never_its_own_negative(tmp_path):
    dataset = world(tmp_path / "d", [(0, 0, 1), (1, 0, 2), (1, 0, 3), (0, 1, 4)])
    got, _ = draw(dataset, Negatives(dataset, 40), [(0, 0, 2)])
    assert set(got[0].tolist()) == {3}


def test_shown_items_without_events_count_once(tmp_path):
    rows = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (0, 1, 1), (4, 1, 2)]
    dataset = world(tmp_path / "d", rows, shows=[[0, 5], [1]])
    got, log_q = draw(dataset, Negatives(dataset, 30, "popularity", 1.0), [(3, 0, 0), (4, 1, 0)])
    assert set(got[0].tolist()) == {5}
    assert np.allclose(log_q[0], np.log([0.8, *[0.2] * 30]))
    assert set(got[1].tolist()) == {1}
    assert np.allclose(log_q[1], np.log(0.5))  # items 1 and 2 have weight 1; so does a positive outside the catalogue


def test_draws_follow_their_generator(tmp_path):
    rows = [(u, d, 10 * d + i) for u in range(5) for d in (0, 1) for i in range(u, u + 3)]
    dataset = world(tmp_path / "d", rows)
    rows.sort(key=lambda r: r[1])
    negatives = Negatives(dataset, 8, "popularity")
    first, again, other = (draw(dataset, negatives, rows, seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_refusals(tmp_path):
    dataset = world(tmp_path / "d", [(0, 0, 0), (0, 1, 0)])
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        Negatives(dataset, 1, "unifrom")
    with pytest.raises(ConfigError, match="-1 negatives"):
        Negatives(dataset, -1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40))
def test_alias_table_holds_exactly_its_weights(weights):
    weight = np.array(weights)
    keep, alias = _alias(weight, 100)
    assert ((keep >= 0) & (keep <= 1)).all()
    share = (keep + np.bincount(alias - 100, weights=1 - keep, minlength=len(weight))) / len(weight)
    assert np.allclose(share, weight / weight.sum(), atol=1e-12)
