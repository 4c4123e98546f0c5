"""Metrics against scikit-learn, ir_measures, brute force and their own docstrings."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG
from sklearn import metrics as sk

from isthmus import metrics
from isthmus.errors import ConfigError
from isthmus.metrics import Table
from isthmus.metrics._base import sigmoid
from isthmus.metrics._inference import effective_dof

RANKING = ("ndcg@3", "ndcg", "recall@3", "hit_rate@3", "mrr", "mrr@3")


def value(name: str, table: Table) -> float:
    return metrics.get(name).value(table)


def make(seed: int, *, rows: int = 300, groups: int = 20, levels: int | None = None, share: float = 0.3) -> Table:
    """Random rows; ``levels`` distinct scores, or none tied."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=rows) if levels is None else rng.integers(0, levels, rows)
    group = rng.integers(0, groups, rows)
    return Table.of(rng.random(rows) < share, score, group, user=group // 2)


# Names and descriptions


@pytest.mark.parametrize("name", metrics.available())
def test_docstring_examples_hold_and_are_complete(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"isthmus.metrics.{name}"))
    assert found.attempted
    assert not found.failed
    base = importlib.import_module(f"isthmus.metrics.{name}")
    text = metrics._class(name).__doc__ or ""
    assert all(word in text for word in ("Equation::", "Symbols:", "Example:")), base.__name__


def test_names_are_those_of_the_files() -> None:
    assert set(metrics.available()) == {
        *("auc", "gauc", "wauc", "logloss", "mae", "rmse", "mrr", "ndcg", "recall", "hit_rate", "calibration_error", "coverage"),
    }
    ndcg = metrics.get("ndcg@10")
    assert (ndcg.name, ndcg.k, ndcg.higher_is_better, ndcg.pooled) == ("ndcg@10", 10, True, False)
    named = {n: metrics.get(n + ("@5" if n in ("recall", "hit_rate", "coverage") else "")) for n in metrics.available()}
    assert [n for n, m in named.items() if not m.higher_is_better] == ["calibration_error", "logloss", "mae", "rmse"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recal@10", "did you mean 'recall'"),
        ("auc@10", "takes no cutoff"),
        ("recall", "recall@10"),
        ("recall@x", "whole number"),
        ("recall@", "whole number"),
        ("recall@0", "1 or more"),
        ("_base", "unknown metric"),
        ("", "unknown metric"),
    ],
)
def test_wrong_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics.get(name)


# Against scikit-learn


@pytest.mark.parametrize("levels", [None, 2, 7])
def test_auc_and_gauc_equal_scikit_learn(levels: int | None) -> None:
    table = make(1, levels=levels)
    assert value("auc", table) == pytest.approx(sk.roc_auc_score(table.label, table.score))
    top = bottom = 0.0
    for g in range(table.groups):
        mine = table.group == g
        clicks = table.label[mine].sum()
        if 0 < clicks < mine.sum():
            top, bottom = top + clicks * sk.roc_auc_score(table.label[mine], table.score[mine]), bottom + clicks
    assert value("gauc", table) == pytest.approx(top / bottom)


@pytest.mark.parametrize("levels", [None, 2, 7])
def test_wauc_pools_the_queries_of_a_user(levels: int | None) -> None:
    table = make(1, levels=levels, rows=60)
    own = [table.user == u for u in range(table.users)]
    both = [mine for mine in own if 0 < table.label[mine].sum() < mine.sum()]
    expected = np.average(
        [sk.roc_auc_score(table.label[mine], table.score[mine]) for mine in both], weights=[table.label[m].sum() for m in both]
    )
    assert value("wauc", table) == pytest.approx(expected)
    assert value("wauc", table) != pytest.approx(value("gauc", table))


@pytest.mark.parametrize("levels", [None, 3])
def test_resampled_auc_equals_scikit_learn_with_weights(levels: int | None) -> None:
    table = make(2, levels=levels)
    weight = np.random.default_rng(0).poisson(1, (table.users, 5)).astype(float)
    expected = [sk.roc_auc_score(table.label, table.score, sample_weight=w[table.user]) for w in weight.T]
    assert metrics.get("auc").statistic(table).resampled(weight) == pytest.approx(expected)


def test_resampled_auc_in_several_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table, weight = make(3), np.random.default_rng(0).poisson(1, (10, 9)).astype(float)
    whole = metrics.get("auc").statistic(table).resampled(weight)
    monkeypatch.setattr("isthmus.metrics.auc.CELLS", 1)
    assert metrics.get("auc").statistic(table).resampled(weight) == pytest.approx(whole)


def test_losses_equal_scikit_learn() -> None:
    table = make(4)
    assert value("logloss", table) == pytest.approx(sk.log_loss(table.label, sigmoid(table.score)))
    rng = np.random.default_rng(5)
    ratings = Table.of(rng.integers(1, 6, 100), rng.normal(3, 2, 100))
    assert value("mae", ratings) == pytest.approx(sk.mean_absolute_error(ratings.label, ratings.score))
    assert value("rmse", ratings) == pytest.approx(sk.root_mean_squared_error(ratings.label, ratings.score))


def test_logloss_of_sure_scores_is_finite() -> None:
    assert value("logloss", Table.of([1, 0], [-1000, 1000])) == pytest.approx(1000)
    assert value("logloss", Table.of([1, 0], [1000, -1000])) == 0


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("k", [1, 3, None])
def test_ndcg_equals_scikit_learn_which_averages_ties_too(levels: int | None, k: int | None) -> None:
    table = make(6, levels=levels)
    each = [(table.label[table.group == g][None], table.score[table.group == g][None]) for g in range(table.groups)]
    expected = np.mean([sk.ndcg_score(label, score, k=k) for label, score in each if label.any()])
    assert value("ndcg" if k is None else f"ndcg@{k}", table) == pytest.approx(expected)


# Against ir_measures and brute force


def test_ranking_metrics_equal_ir_measures() -> None:
    table = make(7, rows=2000, groups=60)
    run, qrels = [], []
    for g, (label, score, query) in enumerate(zip(table.label, table.score, table.group, strict=True)):
        run.append(ir_measures.ScoredDoc(str(query), str(g), float(score)))
        qrels.append(ir_measures.Qrel(str(query), str(g), int(label)))
    names = {"ndcg@10": nDCG @ 10, "recall@10": R @ 10, "hit_rate@10": Success @ 10, "mrr": RR}
    expected = ir_measures.calc_aggregate(list(names.values()), qrels, run)
    for name, measure in names.items():
        assert value(name, table) == pytest.approx(expected[measure]), name


def by_permutation(name: str, label: list[int], score: list[int]) -> float:
    """The mean over all orders that respect the scores."""
    k = metrics.get(name).k or len(label)
    values = []
    for order in itertools.permutations(range(len(label))):
        ranked = [score[i] for i in order]
        if ranked != sorted(score, reverse=True):
            continue
        hits = [label[i] for i in order]
        first = hits.index(1) + 1
        ideal = sum(1 / math.log2(j + 2) for j in range(min(k, sum(label))))
        values.append(
            {
                "recall": sum(hits[:k]) / sum(label),
                "hit_rate": float(any(hits[:k])),
                "mrr": 1 / first if first <= k else 0.0,
                "ndcg": sum(h / math.log2(j + 2) for j, h in enumerate(hits[:k])) / ideal,
            }[name.partition("@")[0]]
        )
    return float(np.mean(values))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6).filter(lambda rows: any(y for y, _ in rows)))
def test_ties_count_in_expectation_over_their_orders(rows: list[tuple[int, int]]) -> None:
    label, score = [y for y, _ in rows], [s for _, s in rows]
    for name in RANKING:
        assert value(name, Table.of(label, score)) == pytest.approx(by_permutation(name, label, score)), name


def test_a_constant_scorer_is_no_better_than_chance() -> None:
    label = [1] + [0] * 99
    constant = Table.of(label, np.zeros(100))
    assert value("recall@10", constant) == pytest.approx(0.1)
    assert value("hit_rate@10", constant) == pytest.approx(0.1)
    assert value("mrr", constant) == pytest.approx(np.mean(1 / np.arange(1, 101)))
    assert value("ndcg@10", constant) == pytest.approx(np.sum(1 / np.log2(np.arange(2, 12))) / 100)
    assert value("auc", constant) == 0.5
    assert value("gauc", constant) == 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 50]), st.integers(3, 12))
def test_stored_first_places_and_ranks_give_what_the_whole_catalogue_gives(seed: int, levels: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    queries, items = 5, 30
    score = rng.integers(0, levels, (queries, items))
    label = rng.random((queries, items)) < 0.15
    label[:, 0] = True
    query = np.repeat(np.arange(queries), items)
    whole = Table.of(label.ravel(), score.ravel(), query)
    rank = (score[:, None, :] > score[:, :, None]).sum(2) + ((score[:, None, :] == score[:, :, None]).sum(2) + 1) / 2
    tied = (score[:, None, :] == score[:, :, None]).sum(2)
    place = np.argsort(np.argsort(-score + rng.random(score.shape), axis=1), axis=1)
    stored = ((place < kept) | label).ravel()
    columns = {"rank": rank, "tied": tied, "relevant": np.repeat(label.sum(1)[:, None], items, 1)}
    part = Table.of(label.ravel()[stored], score.ravel()[stored], query[stored], **{n: v.ravel()[stored] for n, v in columns.items()})
    for name in ("ndcg", "mrr", *(f"{base}@{k}" for base in ("ndcg", "recall", "hit_rate", "mrr") for k in (1, 2, 3, 7, 12, 29, 30, 99))):
        assert value(name, part) == pytest.approx(value(name, whole)), name


def test_a_block_of_which_one_row_is_stored_by_hand() -> None:
    # Five items share places 3 to 7; one of them is the positive.
    table = Table.of([0, 0, 1], [9, 8, 5], rank=[1, 2, 5], tied=[1, 1, 5], relevant=[1, 1, 1])
    assert [value(f"recall@{k}", table) for k in (2, 3, 4, 6, 7, 50)] == pytest.approx([0, 1 / 5, 2 / 5, 4 / 5, 1, 1])
    assert value("hit_rate@4", table) == pytest.approx(2 / 5)
    assert value("mrr", table) == pytest.approx((1 / 3 + 1 / 4 + 1 / 5 + 1 / 6 + 1 / 7) / 5)
    assert value("mrr@4", table) == pytest.approx((1 / 3 + 1 / 4) / 5)
    assert value("ndcg@4", table) == pytest.approx((1 / math.log2(4) + 1 / math.log2(5)) / 5)
    # Two of the five are positive, one more is not in the catalogue: both miss place 3 in 3 of 5 orders.
    two = Table.of([1, 1, 1], [5, 5, 0], rank=[5, 5, np.inf], tied=[5, 5, 1], relevant=[3, 3, 3])
    assert value("recall@4", two) == pytest.approx(2 * 2 / 5 / 3)
    assert value("hit_rate@3", two) == pytest.approx(2 / 5)
    assert value("hit_rate@4", two) == pytest.approx(1 - (3 * 2) / (5 * 4))


def test_a_rank_without_the_number_tied_stands_for_itself() -> None:
    ranks = {"rank": [1, 5, 5, 9], "relevant": [2] * 4}
    table = Table.of([0, 0, 1, 1], [9, 5, 5, 1], **ranks)  # two stored rows share 5: places 4.5 and 5.5, above them 3.5
    assert [value(f"recall@{k}", table) for k in (3, 4, 5, 8, 9)] == pytest.approx([0, 0.125, 0.375, 0.5, 1])
    first = Table.of([1, 1, 0], [9, 9, 1], rank=[1, 1, 3])  # ties called by their first place, not their mean
    assert (value("mrr", first), value("recall@2", first)) == (1, 1)


def test_items_that_are_not_ranked_are_never_found() -> None:
    nothing = Table.of([1, 1], [0, 0], rank=[np.inf, np.inf], tied=[1, 1], relevant=[2, 2])
    assert [value(name, nothing) for name in RANKING] + [value("hit_rate@9", nothing)] == [0] * (len(RANKING) + 1)
    table = Table.of([0, 0, 1, 1], [3, 2, 1, 0], rank=[1, 2, 57, np.inf], relevant=[2, 2, 2, 2])
    assert value("recall@60", table) == 0.5
    assert value("mrr", table) == pytest.approx(1 / 57)
    assert value("hit_rate@10", table) == 0
    assert value("ndcg", table) == pytest.approx((1 / math.log2(58)) / (1 + 1 / math.log2(3)))


def test_positives_missing_from_a_list_count_against_it() -> None:
    listed = Table.of([1, 0], [2, 1], relevant=[2, 2])
    assert value("recall@10", listed) == 0.5
    assert value("gauc", listed) == 1  # pairs exist among listed rows only
    missed = Table.of([0, 0, 1, 0], [2, 1, 2, 1], group=[0, 0, 1, 1], relevant=[1, 1, 1, 1])
    assert [value(n, missed) for n in ("recall@1", "hit_rate@1", "mrr", "ndcg@1")] == [0.5] * 4


def test_calibration_error_by_hand() -> None:
    score = np.log([0.2 / 0.8] * 10 + [0.6 / 0.4] * 5)
    label = [1] + [0] * 9 + [1] * 5
    assert value("calibration_error", Table.of(label, score)) == pytest.approx((10 * 0.1 + 5 * 0.4) / 15)


def test_calibration_error_bins_hold_equal_numbers_of_rows() -> None:
    rng = np.random.default_rng(0)
    p = rng.permutation(np.linspace(0.01, 0.99, 1500))
    label = rng.random(1500) < p**2
    order = np.argsort(p)
    expected = np.mean([abs(p[b].mean() - label[b].mean()) for b in np.split(order, 15)])
    assert value("calibration_error", Table.of(label, np.log(p / (1 - p)))) == pytest.approx(expected)


# Properties


@pytest.mark.parametrize("name", [*RANKING, "auc", "gauc"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([None, 3]))
def test_only_the_order_of_the_scores_counts(name: str, seed: int, levels: int | None) -> None:
    table = make(seed, rows=60, groups=6, levels=levels)
    order = np.random.default_rng(seed).permutation(len(table))
    moved = Table.of(table.label[order], np.exp(0.5 * table.score[order]) - 9, table.group[order])
    assert value(name, moved) == pytest.approx(value(name, table), nan_ok=True)
    assert not 0 > value(name, table) > 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([None, 3]))
def test_turning_the_scores_round_turns_auc_round(seed: int, levels: int | None) -> None:
    table = make(seed, rows=60, levels=levels)
    turned = Table.of(table.label, -table.score, table.group)
    for name in ("auc", "gauc"):
        assert value(name, turned) == pytest.approx(1 - value(name, table))


@pytest.mark.parametrize("name", [*RANKING, "auc", "gauc", "logloss", "mae", "rmse", "calibration_error"])
def test_a_resample_is_the_metric_of_its_users(name: str) -> None:
    table = make(8, rows=200, levels=5)
    statistic = metrics.get(name).statistic(table)
    assert statistic.resampled(np.ones((table.users, 2))) == pytest.approx([statistic.value] * 2)
    if name == "calibration_error":
        return  # a resample keeps the bins of the sample
    weight = np.random.default_rng(1).integers(0, 3, table.users)
    copies = [(copy, np.flatnonzero(table.user == u)) for u in range(table.users) for copy in range(weight[u])]
    rows = np.concatenate([r for _, r in copies])
    group = np.concatenate([table.group[r] + 1000 * copy for copy, r in copies])
    drawn = Table.of(table.label[rows], table.score[rows], group)
    assert statistic.resampled(weight[:, None].astype(float))[0] == pytest.approx(value(name, drawn))


def test_resamples_without_a_class_are_not_defined() -> None:
    table = Table.of([1, 0, 0], [3, 2, 1], group=[0, 1, 1])
    weight = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for name in ("auc", "ndcg@3"):
        resampled = metrics.get(name).statistic(table).resampled(weight)
        assert np.isnan(resampled[2])
    assert np.isnan(metrics.get("auc").statistic(table).resampled(weight)).all()


@pytest.mark.parametrize("name", [*RANKING, "auc", "gauc", "logloss", "mae", "rmse", "calibration_error"])
def test_no_rows_give_no_value_and_say_so(name: str) -> None:
    statistic = metrics.get(name).statistic(Table.of([], []))
    assert math.isnan(statistic.value)
    assert statistic.note == "no rows"


def test_groups_without_a_positive_are_left_out_and_noted() -> None:
    table = Table.of([1, 0, 0, 0], [2, 1, 2, 1], group=[0, 0, 1, 1])
    statistic = metrics.get("recall@1").statistic(table)
    assert (statistic.value, statistic.users, statistic.note) == (1.0, 1, "1 of 2 groups are without a positive: left out")
    nothing = metrics.get("recall@1").statistic(Table.of([0, 0], [2, 1]))
    assert nothing.note == "all 1 groups are without a positive"


def test_effective_degrees_of_freedom_by_hand() -> None:
    assert effective_dof(np.array([1.0, 1.0]), np.array([4.0, 4.0])) == pytest.approx(8)
    assert effective_dof(np.array([4.0, 0.0]), np.array([7.0, 1.0])) == pytest.approx(7)
    assert effective_dof(np.array([3.0, 1.0]), np.array([9.0, 1.0])) == pytest.approx(16 / (1 + 1))
