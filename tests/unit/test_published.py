"""A paper's numbers beside ours: hand-worked values, verdicts that respect users and seeds, errors that name the nearest."""

import dataclasses
import math

import polars as pl
import pytest
from scipy import stats

from isthmus.errors import ConfigError
from isthmus.ledger import Entry
from isthmus.published import against_paper, sentences
from isthmus.recipe import ModelSpec, Paper, Recipe
from isthmus.schema import Domain, Entity, Schema
from isthmus.scores import Scores

SCHEMA = Schema(domains=(Domain("s1"), Domain("s2")), user=Entity("user", size=400), item=Entity("item", size=10), label="implicit")


def scores(hits: dict[str, tuple[int, int]]) -> Scores:
    """Per domain (hits, users): recall@1 is hits / users; users are shared by no two domains."""
    rows, first = [], 0
    for domain, (hit, users) in hits.items():
        for user in range(users):
            right = user < hit
            rows += [(first + user, 1, domain, 1.0, 1.0 if right else 0.0), (first + user, 2, domain, 0.0, 0.5)]
        first += users
    frame = pl.DataFrame(rows, schema=["user", "item", "domain", "label", "score"], orient="row")
    return Scores.from_frame(frame, "lists", task="retrieval", part="test")


def entry(name: str, *by_seed: dict[str, tuple[int, int]], shallow: bool = False) -> Entry:
    found = {number: scores(hits) for number, hits in enumerate(by_seed)}
    return Entry(name, None, shallow, found, found)


def row(frame: pl.DataFrame, model: str, domain: str) -> dict[str, float]:
    return frame.row(by_predicate=(pl.col("model") == model) & (pl.col("domain") == domain), named=True)


def test_values_spread_and_p_by_hand() -> None:
    """One domain: 0.30 and 0.40 of 200 users over two seeds, 0.25 in the paper."""
    ours = entry("a", {"s1": (60, 200), "s2": (20, 100)}, {"s1": (80, 200), "s2": (20, 100)})
    frame = against_paper(Paper("t", "recall@1", {"a": {"s1": 0.25}}), [ours], SCHEMA, resamples=4000)
    (found,) = frame.to_dicts()
    assert (found["ours"], found["paper"], found["seeds"]) == (pytest.approx(0.35), 0.25, 2)
    assert found["difference"] == pytest.approx(0.10)
    assert found["spread"] == pytest.approx(0.1 / math.sqrt(2))  # two values 0.1 apart
    # users: 60 hit by both seeds (1), 20 by one (0.5), 120 by none: mean 0.35, mean square 0.325
    error = math.sqrt((0.325 - 0.35**2) / 200)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.06)
    # Cochran and Cox: both parts' quantiles, weighted by their variances
    variances = (error**2 * 200 / 199, 0.005 / 2)
    total, dofs = sum(variances), (199, 1)
    size = 0.10 / math.sqrt(total)

    def quantile(p: float) -> float:
        return sum(v / total * stats.t.isf(p / 2, d) for v, d in zip(variances, dofs, strict=True))

    low, high = 1e-9, 1.0
    for _ in range(200):
        low, high = ((low + high) / 2, high) if quantile((low + high) / 2) > size else (low, (low + high) / 2)
    assert found["p"] == pytest.approx(low, rel=0.05)
    assert found["verdict"] == "undecided"  # two seeds 0.1 apart say little


def test_above_below_and_undecided() -> None:
    steady = entry("a", *({"s1": (100 + k, 200), "s2": (100, 200)} for k in (0, 1, 2)))
    paper = Paper("t", "recall@1", {"a": {"s1": 0.20, "s2": 0.51}})
    frame = against_paper(paper, [steady, entry("b", {"s1": (1, 200), "s2": (1, 200)})], SCHEMA)
    assert frame["model"].unique().to_list() == ["a"]  # the paper says nothing of b
    verdicts = dict(frame.select("domain", "verdict").iter_rows())
    assert verdicts == {"s1": "above", "s2": "undecided", "all": "above"}
    lower = against_paper(dataclasses.replace(paper, values={"a": {"s1": 0.80, "s2": 0.80}}), [steady], SCHEMA)
    assert set(lower["verdict"]) == {"below"}
    assert sentences(frame) == ["a: above the paper in s1 and on average; undecided in s2"]
    assert sentences(lower) == ["a: below the paper in s1, in s2 and on average"]


def test_one_seed_of_a_network_decides_nothing_but_a_closed_form_does() -> None:
    hits = {"s1": (100, 200), "s2": (100, 200)}
    paper = Paper("t", "recall@1", {"net": {"s1": 0.1}, "knn": {"s1": 0.1}})
    frame = against_paper(paper, [entry("net", hits), entry("knn", hits, shallow=True)], SCHEMA)
    assert dict(frame.select("model", "verdict").iter_rows()) == {"net": "undecided", "knn": "above"}
    assert "one seed" in row(frame, "net", "s1")["note"]  # type: ignore[operator]
    assert row(frame, "knn", "s1")["spread"] is None


def test_many_values_are_corrected_for_their_number() -> None:
    """With p = 0.01 to 0.05 a value alone is decided, among ten of its kind it is not."""
    names = [f"m{i}" for i in range(10)]
    entries = [entry(name, {"s1": (100, 200), "s2": (100, 200)}, shallow=True) for name in names]
    values = {name: {"s1": 0.50 - 2.2 * math.sqrt(0.25 / 200)} for name in names}
    alone = against_paper(Paper("t", "recall@1", {"m0": values["m0"]}), entries, SCHEMA)
    together = against_paper(Paper("t", "recall@1", values), entries, SCHEMA)
    assert 0.01 < alone["p"][0] < 0.05
    assert alone["verdict"].to_list() == ["above"]
    assert set(together["verdict"]) == {"undecided"}
    assert together["p_holm"][0] == pytest.approx(min(1.0, 10 * together["p"][0]))


def test_the_average_is_the_printed_one_else_the_mean_else_missing() -> None:
    ours = entry("a", {"s1": (50, 200), "s2": (150, 200)}, shallow=True)
    printed = against_paper(Paper("t", "recall@1", {"a": {"s1": 0.2, "s2": 0.5, "all": 0.36}}), [ours], SCHEMA)
    assert (row(printed, "a", "all")["paper"], row(printed, "a", "all")["ours"]) == (0.36, pytest.approx(0.5))
    mean = against_paper(Paper("t", "recall@1", {"a": {"s1": 0.2, "s2": 0.5}}), [ours], SCHEMA)
    assert row(mean, "a", "all")["paper"] == pytest.approx(0.35)
    half = against_paper(Paper("t", "recall@1", {"a": {"s2": 0.5}}), [ours], SCHEMA)
    assert half["domain"].to_list() == ["s2"]


def test_a_paper_without_values_has_nothing_beside() -> None:
    assert against_paper(Paper("t", "recall@1", {}), [entry("a", {"s1": (1, 2), "s2": (1, 2)})], SCHEMA).is_empty()


def test_wrong_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 's1'"):
        Paper("t", "recall@1", {"a": {"s11": 0.1}}).check(SCHEMA)
    with pytest.raises(ConfigError, match="did you mean 'recall'"):
        Paper("t", "recal@1", {})
    with pytest.raises(ConfigError, match="a number"):
        Paper("t", "recall@1", {"a": {"s1": float("nan")}})
    models = (ModelSpec("dnn", "DNN"), ModelSpec("popularity", control=None))
    for label, message in (("DNM", "did you mean 'DNN'"), ("DNN (single)", r"did you mean 'DNN \(single-domain\)'")):
        with pytest.raises(ConfigError, match=message):
            Recipe("x", "table", models, metrics=("recall@10",), paper=Paper("t", "recall@10", {label: {"s1": 0.1}}))
    with pytest.raises(ConfigError, match=r"did you mean 'recall@10'"):
        Recipe("x", "table", models, metrics=("recall@10",), paper=Paper("t", "recall@1", {}))
    with pytest.raises(ConfigError, match="recall@20"):
        Recipe("x", "table", models, task="retrieval", paper=Paper("t", "recall@20", {}))


def test_several_metrics_and_one_domain() -> None:
    """recall@1 0.3 of 200 users; values of both metrics are one family, and one domain's value stands once."""
    one = Schema(domains=(Domain("s1"),), user=Entity("user", size=400), item=Entity("item", size=10), label="implicit")
    ours = entry("a", {"s1": (60, 200)}, {"s1": (64, 200)})
    paper = Paper("t", "recall@1", {"a": {"all": 0.9}}, further={"mrr": {"a": {"all": 0.64}}})
    frame = against_paper(paper, [ours], one)
    assert frame.select("domain", "metric", "paper").rows() == [("all", "recall@1", 0.9), ("all", "mrr", 0.64)]
    first, second = frame["p"]
    assert first < second
    assert frame["p_holm"].to_list() == pytest.approx([2 * first, max(2 * first, second)])
    assert sentences(frame) == ["a (recall@1): below the paper on average", "a (mrr): undecided on average"]
    assert against_paper(dataclasses.replace(paper, values={"a": {"s1": 0.9}}, further={}), [ours], one)["domain"].to_list() == ["s1"]
    with pytest.raises(ConfigError, match="each metric once"):
        Paper("t", "mrr", {}, further={"mrr": {}})
