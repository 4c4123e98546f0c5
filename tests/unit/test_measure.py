"""``measure``: which numbers stand where, intervals over users, and what happens when the data are too few."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from isthmus.errors import ColumnError, ConfigError, DataError, LabelError
from isthmus.measure import COLUMNS, measure
from isthmus.metrics._bootstrap import interval, user_weights
from isthmus.scores import Scores


def rows(seed: int = 0, *, users: int = 60, each: int = 8, domains: tuple[str, ...] = ("a", "b")) -> pl.DataFrame:
    """Clicks with scores that know something; every user is in every domain."""
    rng = np.random.default_rng(seed)
    n = users * each * len(domains)
    user = np.tile(np.repeat(np.arange(users), each), len(domains))
    label = rng.random(n) < 0.4
    score = label + rng.normal(size=n)
    domain = np.repeat(domains, users * each)
    state = np.array(["new", "few", "many"])[user % 3]
    columns = {"row": np.arange(n), "group": user, "user": user, "item": rng.integers(0, 99, n), "domain": domain}
    return pl.DataFrame(columns | {"label": label.astype(np.float32), "score": score.astype(np.float32), "state": state})


def one(frame: pl.DataFrame, domain: str, state: str = "all") -> dict[str, object]:
    return frame.row(by_predicate=(pl.col("domain") == domain) & (pl.col("state") == state), named=True)


def test_one_line_per_metric_domain_and_state() -> None:
    data = rows()
    frame = measure(Scores(data, "rows"), ("auc", "ndcg@5"), resamples=100)
    assert dict(frame.schema) == COLUMNS
    assert frame.select("metric", "domain", "state").n_unique() == frame.height == 2 * 3 * 4
    for domain in ("a", "b"):
        for state in ("all", "new", "few", "many"):
            mine = data.filter((pl.col("domain") == domain) & ((pl.col("state") == state) | (state == "all")))
            found = one(frame.filter(pl.col("metric") == "auc"), domain, state)
            assert found["value"] == pytest.approx(roc_auc_score(mine["label"], mine["score"]))
            assert (found["rows"], found["groups"], found["kind"]) == (mine.height, mine["user"].n_unique(), "rows")
            assert found["low"] < found["value"] < found["high"]  # type: ignore[operator]


def test_states_by_events_in_other_domains_take_the_place_of_the_usual_ones() -> None:
    names = ("source <5", "source 5-19", "source 20+")
    data = rows().with_columns(state=pl.Series(names).gather(rows()["user"] % 2))  # the third has no user
    frame = measure(Scores(data, "rows"), ("auc",), resamples=0)
    assert set(frame["state"]) == {"all", *names}
    for state in names[:2]:
        mine = data.filter((pl.col("domain") == "a") & (pl.col("state") == state))
        assert one(frame, "a", state)["value"] == pytest.approx(roc_auc_score(mine["label"], mine["score"]))
    assert one(frame, "a", names[2])["value"] is None
    assert set(measure(Scores(rows().drop("state"), "rows"), ("auc",), resamples=0)["state"]) == {"all"}


def test_all_is_the_unweighted_mean_over_domains() -> None:
    data = rows().filter((pl.col("domain") == "a") | (pl.col("user") < 10))
    frame = measure(Scores(data, "rows"), ("auc",), resamples=0)
    assert one(frame, "all")["value"] == pytest.approx((one(frame, "a")["value"] + one(frame, "b")["value"]) / 2)  # type: ignore[operator]
    assert one(frame, "all")["rows"] == data.height


def test_rows_may_come_in_any_order() -> None:
    data = rows()
    shuffled = data.sample(fraction=1.0, shuffle=True, seed=3)
    names = ("auc", "gauc", "logloss", "calibration_error", "recall@3", "mrr")
    first, second = (measure(Scores(d, "rows"), names, resamples=50).sort("metric", "domain", "state") for d in (data, shuffled))
    for column in ("value", "low", "high"):
        assert first[column].to_numpy() == pytest.approx(second[column].to_numpy())


def test_without_states_only_all_users() -> None:
    frame = measure(Scores(rows().drop("state"), "rows"), ("auc",), resamples=0)
    assert frame["state"].unique().to_list() == ["all"]


def test_equal_seeds_give_equal_intervals_and_others_nearly() -> None:
    scores = Scores(rows(users=300), "rows")
    first, again, other = (measure(scores, ("auc",), resamples=500, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert first["low"].to_numpy() == pytest.approx(other["low"].to_numpy(), abs=0.02)


def test_no_resamples_give_values_without_intervals() -> None:
    frame = measure(Scores(rows(), "rows"), ("auc",), resamples=0)
    assert frame["value"].null_count() == 0
    assert frame["low"].null_count() == frame["high"].null_count() == frame["note"].null_count() == frame.height


def test_intervals_are_over_users_not_rows() -> None:
    data = rows(users=100, domains=("a",))
    once = one(measure(Scores(data, "rows"), ("auc", "logloss")[:1]), "a")
    tenfold = one(measure(Scores(pl.concat([data] * 10), "rows"), ("auc",)), "a")
    assert (tenfold["low"], tenfold["high"]) == pytest.approx((once["low"], once["high"]))


def test_a_users_rows_are_drawn_together_in_all_domains() -> None:
    data = rows(users=200, domains=("a",))
    twins = pl.concat([data, data.with_columns(pl.lit("b").alias("domain"))])
    frame = measure(Scores(twins, "rows"), ("auc",))
    for bound in ("low", "high"):
        assert one(frame, "all")[bound] == pytest.approx(one(frame, "a")[bound], abs=1e-3)
    strangers = twins.with_columns(pl.when(pl.col("domain") == "b").then(pl.col("user") + 200).otherwise(pl.col("user")).alias("user"))
    apart = measure(Scores(strangers, "rows"), ("auc",))
    widths = [one(f, "all")["high"] - one(f, "all")["low"] for f in (frame, apart)]  # type: ignore[operator]
    assert widths[1] == pytest.approx(widths[0] / np.sqrt(2), rel=0.15)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    error = rng.normal(size=400)
    user = np.arange(400)
    frame = pl.DataFrame({"group": user, "user": user, "item": 0, "domain": "a", "label": np.zeros(400), "score": error})
    found = one(measure(Scores(frame, "rows"), ("mae",), resamples=4000), "a")
    half = stats.t.ppf(0.975, 399) * np.abs(error).std(ddof=1) / 20
    assert (found["low"], found["high"]) == pytest.approx((np.abs(error).mean() - half, np.abs(error).mean() + half), abs=0.006)


# Too little data


def test_too_little_data_give_null_and_a_reason() -> None:
    data = rows(users=30).with_columns(pl.lit("many").alias("state"), pl.col("label") * (pl.col("domain") == "a"))
    frame = measure(Scores(data, "rows"), ("auc", "recall@3", "logloss"), resamples=100)
    assert not frame.select(pl.any_horizontal(pl.col("value", "low", "high").is_nan().fill_null(False)).any()).item()
    auc = frame.filter(pl.col("metric") == "auc")
    assert (one(auc, "b")["value"], one(auc, "b")["low"], one(auc, "b")["note"]) == (None, None, "one class only (240 rows, 0 positive)")
    assert (one(auc, "a", "new")["value"], one(auc, "a", "new")["note"], one(auc, "a", "new")["rows"]) == (None, "no rows", 0)
    assert one(auc, "all")["value"] == one(auc, "a")["value"]
    assert one(auc, "all")["note"] == "mean over 1 domains, without b"
    assert one(auc, "all", "new")["note"] == "no domain has a value"
    assert one(frame.filter(pl.col("metric") == "recall@3"), "b")["note"] == "all 30 groups are without a positive"
    assert one(frame.filter(pl.col("metric") == "logloss"), "b")["value"] is not None


def test_one_user_has_no_interval() -> None:
    found = one(measure(Scores(rows(users=1, each=40), "rows"), ("auc",)), "a")
    assert found["value"] is not None
    assert (found["low"], found["high"], found["note"]) == (None, None, "one user: no interval")


def test_no_variation_has_no_interval() -> None:
    user, label = np.repeat(np.arange(9), 2), np.tile([1, 0], 9)
    frame = pl.DataFrame({"group": user, "user": user, "item": 0, "domain": "a", "label": label, "score": label})
    found = one(measure(Scores(frame, "rows"), ("recall@1",)), "a")
    assert (found["value"], found["low"], found["note"]) == (1.0, None, "no variation between users: no interval")


def test_a_class_held_by_one_user_has_no_interval() -> None:
    data = rows(users=50, domains=("a",)).with_columns((pl.col("user") == 7).cast(pl.Float32).alias("label"))
    found = one(measure(Scores(data, "rows"), ("auc",)), "a")
    assert found["value"] is not None
    assert found["low"] is None
    assert "resamples of users" in str(found["note"])


# Kinds


def test_full_rankings_are_measured_by_their_ranks() -> None:
    frame = pl.DataFrame(
        {
            "group": [10, 10, 20, 20],
            "user": [0, 0, 1, 1],
            "item": [1, 2, 3, 4],
            "domain": "a",
            "label": [0, 1, 1, 0],
            "score": [9.0, 1.0, 5.0, 4.0],
            "rank": [1.0, 40.0, 1.0, 2.0],
            "relevant": [1, 1, 2, 2],
        }
    )
    found = measure(Scores(frame, "full"), ("recall@10", "mrr"), resamples=0).filter(pl.col("domain") == "a")
    assert found["value"].to_list() == pytest.approx([0.25, (1 / 40 + 1) / 2])


def test_the_lists_are_named() -> None:
    lists = {"a": "real lists", "b": "made lists"}
    frame = measure(Scores(rows(), "lists", lists=lists), ("recall@3",), resamples=0).filter(pl.col("state") == "all")
    assert dict(zip(frame["domain"], frame["lists"], strict=True)) == lists | {"all": "real lists, made lists"}


@pytest.mark.parametrize(("metric", "kind"), [("auc", "full"), ("gauc", "full"), ("logloss", "lists"), ("rmse", "sampled")])
def test_metrics_refuse_kinds_that_they_cannot_judge(metric: str, kind: str) -> None:
    data = rows().with_columns(pl.lit(1.0).alias("rank"), pl.lit(1).alias("relevant"))
    with pytest.raises(ConfigError, match=f"{metric}' on scores of kind '{kind}'"):
        measure(Scores(data, kind), (metric,))  # type: ignore[arg-type]


def test_wrong_scores_are_refused() -> None:
    data = rows()
    with pytest.raises(DataError, match="1 scores or labels that are not finite numbers, first in domain 'b'"):
        measure(Scores(data.with_columns(pl.when(pl.col("row") == 700).then(np.nan).otherwise("score").alias("score")), "rows"), ("auc",))
    with pytest.raises(LabelError, match="0 and 1"):
        measure(Scores(data.with_columns(pl.col("label") * 5), "rows"), ("auc",))
    with pytest.raises(ColumnError, match="'user'"):
        measure(Scores(data.drop("user"), "rows"), ("auc",))
    with pytest.raises(ColumnError, match="'rank'"):
        measure(Scores(data, "full"), ("mrr",))
    with pytest.raises(DataError, match="without rows"):
        measure(Scores(data.clear(), "rows"), ("auc",))
    with pytest.raises(ConfigError, match="did you mean 'auc'"):
        measure(Scores(data, "rows"), ("acu",))


# The bootstrap itself


def test_user_weights_are_poisson_and_repeatable() -> None:
    blocks = [weight.copy() for _, weight in user_weights(1000, 500, seed=1)]
    weight = np.concatenate(blocks, axis=1)
    assert weight.shape == (1000, 500)
    expected = stats.poisson.pmf(np.arange(5), 1)
    assert [np.mean(weight == c) for c in range(5)] == pytest.approx(expected, abs=0.004)
    assert abs(np.corrcoef(weight[:, 0], weight[:, 1])[0, 1]) < 0.15
    assert np.array_equal(weight, np.concatenate([w for _, w in user_weights(1000, 500, seed=1)], axis=1))
    assert not np.array_equal(weight, np.concatenate([w for _, w in user_weights(1000, 500, seed=2)], axis=1))
    assert [columns for columns, _ in user_weights(10, 300, seed=1)] == [slice(0, 256), slice(256, 300)]


def test_the_interval_widens_for_few_users() -> None:
    replicates = stats.norm.ppf((np.arange(20000) + 0.5) / 20000)
    many, few = interval(replicates, 1e6), interval(replicates, 4)
    assert many == pytest.approx((-1.96, 1.96), abs=0.01)
    assert few == pytest.approx((-2.776 * np.sqrt(5 / 4), 2.776 * np.sqrt(5 / 4)), abs=0.05)
