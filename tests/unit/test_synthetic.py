"""Synthetic worlds: the truth they claim is the truth they draw from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.synthetic import bridge_world, demo_world, make_world, table2_world
from isthmus.data.tastes import SPAN, START
from isthmus.errors import ConfigError


def auc_by_pairs(label: np.ndarray, score: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties counted half."""
    difference = score[label > 0.5][:, None] - score[label < 0.5][None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def test_same_seed_same_world_other_seed_other_world() -> None:
    a, b, c = make_world(2, events=500, seed=3), make_world(2, events=500, seed=3), make_world(2, events=500, seed=4)
    for name in ("user", "item", "domain", "time", "label"):
        assert np.array_equal(getattr(a.events, name), getattr(b.events, name)), name
    assert not np.array_equal(a.events.item, c.events.item)


def test_sizes_and_overlaps_are_as_asked() -> None:
    world = make_world(("x", "y"), users=(100, 40), items=(50, 30), events=(900, 400), user_overlap=0.5, item_overlap=1.0)
    events = world.events
    users = [set(events.user[events.domain == d]) for d in range(2)]
    items = [set(events.item[events.domain == d]) for d in range(2)]
    assert events.schema.domain_names == ("x", "y")
    assert [int((events.domain == d).sum()) for d in range(2)] == [900, 400]
    assert [len(u) for u in users] == [100, 40]
    assert len(users[0] & users[1]) == 20  # half of the smaller domain
    assert [len(i) for i in items] == [50, 30]
    assert items[1] < items[0]


def test_size_ratio_scales_each_domain_by_the_one_before() -> None:
    events = make_world(3, users=80, items=40, events=1600, size_ratio=0.5).events
    assert [int((events.domain == d).sum()) for d in range(3)] == [1600, 800, 400]
    assert [len(np.unique(events.user[events.domain == d])) for d in range(3)] == [80, 40, 20]


def test_events_are_in_order_of_time_and_of_the_declared_types() -> None:
    events = make_world(2, events=1000).events
    assert (np.diff(events.time) >= 0).all()
    assert events.time.min() >= START
    assert events.time.max() < START + SPAN
    assert (events.user.dtype, events.item.dtype, events.domain.dtype) == (np.int32, np.int32, np.int16)
    assert (events.time.dtype, events.label.dtype) == (np.int64, np.float32)
    assert events.user_ids.is_sorted()
    assert events.user_ids.n_unique() == len(events.user_ids)


def test_click_rates_are_as_asked() -> None:
    world = make_world(2, users=300, events=40_000, click_rate=(0.1, 0.6))
    for d, rate in enumerate((0.1, 0.6)):
        rows = world.events.domain == d
        assert world.probability[rows].mean() == pytest.approx(rate, abs=1e-6)
        assert world.events.label[rows].mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 40_000))


def test_probabilities_are_calibrated_before_and_after_noise() -> None:
    world = make_world(1, users=300, events=60_000, noise=0.2, seed=1)
    assert world.noisy_probability == pytest.approx(0.6 * world.probability + 0.2)
    order = np.argsort(world.noisy_probability)
    for rows in np.array_split(order, 10):
        expected = world.noisy_probability[rows].mean()
        assert world.events.label[rows].mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(rows)))


def test_probability_is_the_sigmoid_of_intercept_and_utility_with_drift() -> None:
    world = make_world(2, users=30, items=20, events=200, drift=0.7)
    for d in range(2):
        rows = np.flatnonzero(world.events.domain == d)
        utility = world.utility(world.events.user[rows], d, world.events.time[rows])
        logit = world.intercept[d] + utility[np.arange(len(rows)), world.events.item[rows]]
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(world.probability[rows])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.4))
def test_best_auc_equals_counting_pairs(seed: int, noise: float) -> None:
    world = make_world(1, users=20, items=20, events=200, noise=noise, seed=seed)
    rows = np.arange(0, 200, 2)
    if 0 < world.events.label[rows].sum() < len(rows):
        assert world.best_auc(rows) == pytest.approx(auc_by_pairs(world.events.label[rows], world.probability[rows]))


def test_noise_lowers_the_best_auc() -> None:
    best = [make_world(1, events=20_000, noise=noise, seed=2).best_auc() for noise in (0.0, 0.2, 0.4)]
    assert best[0] > best[1] + 0.05 > best[2] + 0.1


@pytest.mark.parametrize("relatedness", [0.0, 0.3, 0.7, 1.0])
def test_relatedness_is_the_correlation_of_tastes_between_domains(relatedness: float) -> None:
    found = []
    for seed in range(8):
        world = make_world(
            2, users=300, items=200, events=300, user_overlap=1, item_overlap=1, relatedness=relatedness, factors=8, seed=seed
        )
        a, b = (world.utility(np.arange(300), d).ravel() for d in range(2))
        found.append(np.corrcoef(a, b)[0, 1])
    assert np.mean(found) == pytest.approx(relatedness, abs=0.08)
    if relatedness == 1.0:
        assert min(found) > 0.999999


def test_unrelated_domains_share_no_popularity_or_field_effect_and_identical_ones_do() -> None:
    """Correlation between two domains of the mean click probabilities by item, user and category."""

    def correlation(relatedness: float, by: str) -> float:
        found = []
        for seed in range(6):
            size = {"users": 400, "items": 400, "events": 40_000}
            world = make_world(2, **size, user_overlap=1, item_overlap=1, relatedness=relatedness, seed=seed)
            events = world.events
            group = {"item": events.item, "user": events.user, "category": _codes(events.items["category"])[events.item]}[by]
            means = []
            for d in range(2):
                rows = events.domain == d
                means.append(np.bincount(group[rows], weights=world.probability[rows]) / np.bincount(group[rows]))
            found.append(np.corrcoef(*means)[0, 1])
        return float(np.mean(found))

    assert abs(correlation(0.0, "item")) < 0.08
    assert abs(correlation(0.0, "user")) < 0.08
    assert abs(correlation(0.0, "category")) < 0.35  # ten categories a world
    assert correlation(1.0, "item") > 0.8
    assert correlation(1.0, "user") > 0.8


def _codes(column) -> np.ndarray:
    return np.unique(column.to_numpy(), return_inverse=True)[1]


def test_fields_carry_signal_about_what_domains_share_and_none_when_they_share_nothing() -> None:
    """Share of the variance of utilities that the pair (segment, category) explains."""

    def explained(relatedness: float) -> float:
        world = make_world(1, users=600, items=600, events=600, relatedness=relatedness, seed=5)
        utility = world.utility(np.arange(600), 0)
        segment, category = _codes(world.events.users["segment"]), _codes(world.events.items["category"])
        cell = segment[:, None] * 10 + category[None, :]
        total, sums = np.bincount(cell.ravel(), minlength=100), np.bincount(cell.ravel(), weights=utility.ravel(), minlength=100)
        means = sums / np.maximum(total, 1)
        return float(np.var(means[cell]) / np.var(utility))

    assert explained(1.0) > 0.2
    assert explained(0.0) < 0.05


def test_without_features_there_are_no_tables() -> None:
    events = make_world(1, events=500, features=False).events
    assert events.users is None
    assert events.items is None
    assert events.schema.user.fields == ()


def test_drift_turns_tastes_and_keeps_their_strength() -> None:
    world = make_world(1, users=500, items=300, events=600, drift=1.0, seed=1)
    start, end = (world.utility(np.arange(500), 0, np.full(500, START + moment)) for moment in (0, SPAN))
    centred = [u - u.mean(axis=0) - u.mean(axis=1, keepdims=True) + u.mean() for u in (start, end)]
    assert abs(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]) < 0.1
    assert centred[1].std() == pytest.approx(centred[0].std(), rel=0.1)
    still = make_world(1, users=500, items=300, events=600, drift=0.0, seed=1)
    assert np.array_equal(still.utility(np.arange(5), 0), still.utility(np.arange(5), 0, np.full(5, START + SPAN)))


def test_choices_never_repeat_and_have_their_true_probability() -> None:
    world = make_world(2, label="implicit", users=40, items=30, events=400, seed=2)
    events = world.events
    assert events.label is None
    for d in range(2):
        chosen: dict[int, list[int]] = {}
        for row in np.flatnonzero(events.domain == d):
            user, item = int(events.user[row]), int(events.item[row])
            utility = world.utility(np.array([user]), d)[0]
            utility[chosen.setdefault(user, [])] = -np.inf
            weight = np.exp(utility - utility.max())
            assert world.probability[row] == pytest.approx(weight[item] / weight.sum())
            assert item not in chosen[user]
            chosen[user].append(item)


def test_choices_of_a_crowded_world_are_spread_over_users_with_room() -> None:
    events = make_world(1, label="implicit", users=20, items=20, events=190, seed=1).events
    count = np.bincount(events.user, minlength=20)
    assert count.sum() == 190
    assert count.max() <= 10


def test_choices_follow_the_softmax() -> None:
    """First choices of many users of one taste: counts against the mean probabilities of all items."""
    world = make_world(1, label="implicit", users=20_000, items=10, events=20_000, factors=1, seed=0)
    expected = np.zeros(10)
    utility = world.utility(world.events.user, 0)
    expected = (np.exp(utility) / np.exp(utility).sum(axis=1, keepdims=True)).mean(axis=0)
    assert np.bincount(world.events.item, minlength=10) / 20_000 == pytest.approx(expected, abs=0.015)


def test_items_of_other_domains_have_utility_minus_infinity() -> None:
    world = make_world(2, items=20, events=200, item_overlap=0.5)
    own = set(world.events.item[world.events.domain == 1])
    utility = world.utility(np.array([0]), 1)[0]
    assert set(np.flatnonzero(np.isfinite(utility))) == own


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"relatedness": 1.5}, "relatedness=1.5"),
        ({"user_overlap": -0.1}, "user_overlap=-0.1"),
        ({"noise": 0.7}, "noise=0.7"),
        ({"noise": -0.1, "label": "rating"}, "noise=-0.1"),
        ({"user_overlap": (0.5, 0.5)}, "2 values for 3 domains"),
        ({"item_overlap": (0.5, 0.5, 1.5)}, "item_overlap=1.5"),
        ({"level": (3.0,), "label": "rating"}, "1 values for 3 domains"),
        ({"facets": 3}, "facets=3 of factors=4"),
        ({"click_rate": 1.0}, "click_rate"),
        ({"users": (3, 4)}, "2 values for 3 domains"),
        ({"items": 1}, "items=[1, 1, 1]"),
        ({"label": "implicit", "users": 5, "items": 5, "events": 500}, "at most 2 by each"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_world(3, **arguments)
    assert part in str(caught.value)


def test_best_auc_needs_labels_of_both_kinds() -> None:
    world = make_world(1, events=300)
    with pytest.raises(ConfigError, match="0 negative"):
        world.best_auc(world.events.label > 0.5)
    for label in ("implicit", "rating"):
        with pytest.raises(ConfigError, match=label):
            make_world(1, label=label, events=300, users=100).best_auc()
    with pytest.raises(ConfigError, match="click"):
        world.best_rmse()


def test_demo_world_has_a_small_market_beside_large_ones() -> None:
    world = demo_world()
    events = world.events
    assert events.schema.domain_names == ("large", "medium", "small")
    assert [int((events.domain == d).sum()) for d in range(3)] == [30_000, 16_000, 4_000]
    small = world.events.domain == 2
    assert 0.8 < world.best_auc(small) < 0.95
    shared = np.isin(np.unique(events.item[small]), events.item[~small]).mean()
    assert shared > 0.8


def test_ratings_are_level_plus_utility_plus_noise() -> None:
    world = make_world(2, users=300, items=80, events=20_000, label="rating", level=(2.5, 3.5), noise=0.4, signal=0.6, stars=False)
    events = world.events
    assert events.schema.label == "rating"
    for d, level in enumerate((2.5, 3.5)):
        rows = np.flatnonzero(events.domain == d)
        utility = world.utility(events.user[rows], d, events.time[rows])[np.arange(len(rows)), events.item[rows]]
        assert world.expected[rows] == pytest.approx(level + utility)
        residual = events.label[rows] - level - utility
        assert residual.std() == pytest.approx(0.4, rel=0.03)
        assert abs(residual.mean()) < 0.015
        assert world.best_rmse(rows) == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert np.isnan(world.probability).all()


def test_stars_are_whole_and_their_expectation_is_exact() -> None:
    world = make_world(1, users=300, items=80, events=60_000, label="rating", noise=0.7, signal=0.8, seed=3)
    label, expected = world.events.label, world.expected
    assert set(np.unique(label)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    order = np.argsort(expected)
    for rows in np.array_split(order, 20):  # calibrated from the lowest to the highest
        assert label[rows].mean() == pytest.approx(expected[rows].mean(), abs=4 * 0.8 / np.sqrt(len(rows)))
    plain = make_world(1, users=300, items=80, events=60_000, label="rating", noise=0.7, signal=0.8, stars=False, seed=3)
    assert np.array_equal(label, np.clip(np.rint(plain.events.label), 1, 5))
    assert world.best_rmse() < np.sqrt(np.mean((label - np.clip(plain.expected, 1, 5)) ** 2))  # the mean before rounding is worse
    exact = make_world(1, events=500, label="rating", noise=0.0)
    assert exact.best_rmse() == 0


def test_rotated_tastes_are_a_linear_map_of_the_first_domains() -> None:
    world = bridge_world(users=200, items=60, events=800)
    assert world.rotation is not None
    turn, everybody = world.rotation[1], np.arange(200)
    source, target = (world.taste(everybody, d) for d in range(2))
    assert target == pytest.approx(source @ turn.T)
    assert turn @ turn.T == pytest.approx(np.eye(4))
    solved = np.linalg.lstsq(source, target, rcond=None)[0]  # what a mapping of users should find
    assert solved == pytest.approx(turn.T)
    assert abs(turn - np.eye(4)).max() > 0.3
    events = world.events
    assert not set(events.item[events.domain == 0]) & set(events.item[events.domain == 1])
    assert set(events.user[events.domain == 0]) == set(events.user[events.domain == 1]) == set(range(200))
    less = make_world(2, users=2000, user_overlap=1.0, relatedness=0.49, rotated=True, events=3000, seed=1)
    assert less.rotation is not None
    found = np.linalg.lstsq(less.taste(np.arange(2000), 0), less.taste(np.arange(2000), 1), rcond=None)[0]
    assert found == pytest.approx(0.7 * less.rotation[1].T, abs=0.1)  # factors correlate by the square root of relatedness


def test_worlds_without_the_new_dials_do_not_change() -> None:
    """The demo's world is in the docs, and comparisons are kept by their data."""
    world = demo_world()
    assert world.events.user[:5].tolist() == [6, 84, 1406, 490, 591]
    assert world.events.label is not None
    assert (world.events.label[:1000].sum(), world.events.label.sum()) == (271, 13728)


def test_a_target_asks_for_one_facet_and_a_source_item_shows_one() -> None:
    """What a user's factors of each facet explain of the utilities of an item."""
    world = make_world(3, users=3000, items=600, events=120_000, user_overlap=1.0, facets=2, item_overlap=0.0, click_rate=0.2, seed=4)
    events, utility = world.events, [world.utility(np.arange(3000), d) for d in range(3)]
    facet = events.items["category"].str.strip_prefix("category-").cast(int).to_numpy() // 5
    assert np.isin(facet[np.unique(events.item[events.domain == 1])], 0).all()
    assert np.isin(facet[np.unique(events.item[events.domain == 2])], 1).all()
    user_factors = world.taste(np.arange(3000), 0)
    for d, shown in ((0, None), (1, 0), (2, 1)):
        own = np.isfinite(utility[d][0])
        values = utility[d][:, own] - utility[d][:, own].mean(axis=0)
        for f, block in enumerate((slice(0, 2), slice(2, 4))):
            design = np.column_stack([np.ones(3000), user_factors[:, block]])
            left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
            explained = 1 - left.var(axis=0) / values.var(axis=0)
            wanted = (facet[np.flatnonzero(own)] == f) if shown is None else np.full(own.sum(), shown == f)
            assert explained[~wanted].max(initial=0) < 0.02  # the factors of a facet not shown say nothing
            assert np.median(explained[wanted]) > 0.7 if wanted.any() else True


def test_table2_world_has_the_printed_form() -> None:
    world = table2_world(scale=0.2, seed=1)
    events = world.events
    assert events.schema.domain_names == ("source", "target1", "target2", "target3")
    people = [set(events.user[events.domain == d]) for d in range(4)]
    for d, (rate, overlap) in enumerate(((0.0402, 1), (0.0148, 0.94), (0.0219, 0.69), (0.0185, 0.78))):
        assert world.probability[events.domain == d].mean() == pytest.approx(rate, rel=0.02)
        assert len(people[d] & people[0]) / len(people[d]) == pytest.approx(overlap, abs=0.005)
    items = [len(set(events.item[events.domain == d])) for d in range(4)]
    assert items[0] > items[3] > items[1] > items[2]
