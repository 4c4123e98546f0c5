"""``ledger``: what is compared with what, in which direction, with which verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from isthmus.errors import ConfigError, DataError
from isthmus.judged import Judged
from isthmus.ledger import Entry, ledger
from isthmus.metrics._inference import holm, seed_variance, student
from isthmus.scores import Scores
from isthmus.slices import Scored
from isthmus.verdicts import COLUMNS, LEFT_OUT, NUMBERS, VALIDATION, Ledger, decided, together

USERS, EACH = 150, 6


def truth(seed: int, domains: tuple[str, ...] = ("a", "b")) -> pl.DataFrame:
    """Rows without scores; every user is in every domain."""
    n = USERS * EACH * len(domains)
    rng = np.random.default_rng(seed)
    user = np.tile(np.repeat(np.arange(USERS), EACH), len(domains))
    columns = {"row": np.arange(n), "group": user, "user": user, "item": rng.integers(0, 99, n)}
    label = (rng.random(n) < 0.4).astype(np.float32)
    return pl.DataFrame(columns | {"domain": np.repeat(domains, USERS * EACH), "label": label, "noise": rng.normal(size=n)})


TEST, VALID = truth(1), truth(2)


def scored(frame: pl.DataFrame, skill: dict[str, float], seed: int, own: float = 0.3) -> Scores:
    """Scores that know the label by ``skill`` of the domain, with noise that all models share and some of their own."""
    rng = np.random.default_rng(seed)
    skills = frame["domain"].replace_strict(skill, return_dtype=pl.Float64).to_numpy()
    score = skills * frame["label"].to_numpy() + frame["noise"].to_numpy() + own * rng.normal(size=frame.height)
    return Scores(frame.drop("noise").with_columns(pl.Series("score", score)), "rows")


def entry(
    name: str,
    skill: dict[str, float],
    *,
    control: str | None = None,
    shallow: bool = False,
    seeds: tuple[int, ...] = (0, 1, 2),
    valid: dict[str, float] | None = None,
) -> Entry:
    seeds = seeds[:1] if shallow else seeds
    start = sum(map(ord, name))
    test = {s: scored(TEST, skill, 100 * start + s) for s in seeds}
    return Entry(name, control, shallow, test, {s: scored(VALID, valid or skill, 200 * start + s) for s in seeds})


def flat(a: float, b: float | None = None) -> dict[str, float]:
    return {"a": a, "b": a if b is None else b}


def line(frame: pl.DataFrame, model: str, domain: str, against: str) -> dict[str, object]:
    return frame.row(by_predicate=(pl.col("model") == model) & (pl.col("domain") == domain) & (pl.col("against") == against), named=True)


JOINT = entry("joint", flat(1.0, 0.2), control="alone")
ALONE = entry("alone", flat(0.4, 0.8))
EASE = entry("ease", flat(0.6, 0.5), shallow=True)
POPULAR = entry("popular", flat(0.1, 0.1), shallow=True)


def test_every_comparison_has_one_line() -> None:
    book = ledger([JOINT, ALONE, EASE, POPULAR], "auc", resamples=300)
    assert dict(book.frame.schema) == COLUMNS
    found = set(book.frame.select("model", "against", "reference", "domain").iter_rows())
    domains = ("a", "b", "all")
    assert found == {
        *(("joint", "control", "alone", d) for d in domains),
        *(("joint", "shallow", "ease", d) for d in domains),
        *(("alone", "shallow", "ease", d) for d in domains),
    }
    assert book.left_out.is_empty()
    assert book.frame.drop("note").null_count().sum_horizontal().item() == 0


def test_verdicts_follow_the_truth() -> None:
    frame = ledger([JOINT, ALONE, EASE, POPULAR], "auc", resamples=300).frame
    helped, hurt = line(frame, "joint", "a", "control"), line(frame, "joint", "b", "control")
    assert (helped["verdict"], hurt["verdict"]) == ("helps", "hurts")
    assert helped["difference"] == pytest.approx(helped["value"] - helped["reference_value"])  # type: ignore[operator]
    assert 0 < helped["low"] < helped["difference"] < helped["high"]  # type: ignore[operator]
    assert (helped["seeds"], helped["users"], helped["metric"]) == (3, USERS, "auc")
    twin = replace(entry("twin", flat(0.4, 0.8)), control="alone")
    assert set(ledger([twin, ALONE], "auc", resamples=300).frame["verdict"]) == {"no evidence"}


def test_above_zero_is_better_when_lower_is_better() -> None:
    frame = ledger([JOINT, ALONE], "rmse", resamples=300).frame
    found = line(frame, "joint", "a", "control")
    assert found["difference"] == pytest.approx(found["reference_value"] - found["value"])  # type: ignore[operator]
    assert found["low"] < found["difference"] < found["high"]  # type: ignore[operator]
    assert (found["difference"] > 0) == (found["value"] < found["reference_value"])  # type: ignore[operator]


def test_the_numbers_by_hand() -> None:
    """MAE of one row per user: the bootstrap variance is that of a mean of paired differences."""
    rng = np.random.default_rng(0)
    n = 500
    base = pl.DataFrame({"group": np.arange(n), "user": np.arange(n), "item": np.arange(n), "domain": "a", "label": np.zeros(n)})
    shared = 2 + np.abs(rng.normal(3, 1, n))  # errors that both make: they cancel
    errors = {m: {s: shared + bias + 0.2 * rng.normal(size=n) for s in (0, 1)} for m, bias in (("x", 0.0), ("y", 0.05))}
    scores = {m: {s: Scores(base.with_columns(pl.Series("score", e)), "rows") for s, e in v.items()} for m, v in errors.items()}
    entries = [Entry("x", "y", False, scores["x"], scores["x"]), Entry("y", None, False, scores["y"], scores["y"])]
    found = line(ledger(entries, "mae", resamples=20_000).frame, "x", "a", "control")
    by_seed = [np.mean(errors["y"][s] - errors["x"][s]) for s in (0, 1)]
    per_user = sum(errors["y"][s] - errors["x"][s] for s in (0, 1)) / 2
    over_users, over_seeds = np.var(per_user, ddof=1) / n, np.var(by_seed, ddof=1) / 2
    error = np.sqrt(over_users + over_seeds)

    def quantile(p: float) -> float:
        return (over_users * stats.t.isf(p / 2, n - 1) + over_seeds * stats.t.isf(p / 2, 1)) / error**2

    half = quantile(0.05) * error
    assert found["difference"] == pytest.approx(np.mean(by_seed))
    assert found["high"] - found["difference"] == pytest.approx(half, rel=0.03)  # type: ignore[operator]
    assert quantile(found["p"]) == pytest.approx(abs(np.mean(by_seed)) / error, rel=0.03)  # type: ignore[arg-type]


def test_the_best_shallow_model_is_chosen_on_validation_in_each_domain() -> None:
    luckily = entry("lucky", flat(2.0, 0.1), shallow=True, valid=flat(0.0, 1.0))
    frame = ledger([ALONE, EASE, luckily], "auc", resamples=300).frame
    assert line(frame, "alone", "a", "shallow")["reference"] == "ease"
    assert line(frame, "alone", "b", "shallow")["reference"] == "lucky"


def test_the_best_model_is_chosen_on_validation() -> None:
    deceiver = entry("deceiver", flat(3.0, 3.0), valid=flat(0.0, 0.0))
    book = ledger([deceiver, JOINT, ALONE, EASE], "auc", resamples=100)
    assert book.best() == {"a": "joint", "b": "alone"}
    upside_down = ledger([deceiver, JOINT, ALONE], "mae", resamples=100)
    means = upside_down.validation.filter(pl.col("domain") == "a").sort("value")
    assert upside_down.best()["a"] == means["model"][0]


def test_shallow_models_are_compared_with_their_control_only() -> None:
    across = replace(entry("ease across", flat(0.9), shallow=True), control="ease")
    frame = ledger([EASE, across, ALONE], "auc", resamples=100).frame
    assert set(frame.filter(pl.col("model") == "ease across")["against"]) == {"control"}
    assert "ease" not in frame["model"]


def test_families_are_corrected_apart() -> None:
    frame = ledger([JOINT, ALONE, EASE, POPULAR], "auc", resamples=300).frame
    for against in ("control", "shallow"):
        for means in (True, False):
            family = frame.filter((pl.col("against") == against) & ((pl.col("domain") == "all") == means))
            assert family.height
            assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))


def test_lines_named_are_a_family_of_their_own_over_all_metrics() -> None:
    named = replace(JOINT, against=("alone", "popular"))
    book = ledger([named, ALONE, EASE, POPULAR], ["auc", "logloss", "auc"], resamples=300)
    assert book.metrics == ("auc", "logloss")
    assert book.metric == "auc"
    frame = book.frame
    for against, references in (("line", {"alone", "popular"}), ("control", {"alone"}), ("shallow", {"ease"})):
        assert set(frame.filter((pl.col("against") == against) & (pl.col("model") == "joint"))["reference"]) == references
        for means in (True, False):
            family = frame.filter((pl.col("against") == against) & ((pl.col("domain") == "all") == means))
            models = 2 if against == "shallow" else 1
            assert family.height == 2 * models * len(references) * (1 if means else 2)  # two metrics, one mean or two domains
            assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))
    once = ledger([JOINT, ALONE, EASE, POPULAR], "logloss", resamples=300).frame.filter(pl.col("against") == "control")
    both = frame.filter((pl.col("against") == "control") & (pl.col("metric") == "logloss"))
    assert both.drop("p_holm", "verdict").equals(once.drop("p_holm", "verdict"))
    assert "joint helps in 'a' (" in "".join(book.summary())
    assert any("logloss against popular)" in s for s in book.summary())
    assert set(book.validation["metric"]) == {"auc", "logloss"}
    assert book.best() == ledger([named, ALONE, EASE, POPULAR], "auc", resamples=100).best()


def test_the_bar_is_the_best_shallow_model_by_the_metric_itself() -> None:
    """Scores ten times as large order rows alike, and are much worse ratings."""

    def scaled(by_seed: Mapping[int, Scored | Judged]) -> dict[int, Scores]:
        found: dict[int, Scores] = {}
        for seed, scores in by_seed.items():
            assert isinstance(scores, Scores)
            found[seed] = Scores(scores.frame.with_columns(pl.col("score") * 10), "rows")
        return found

    loud = entry("loud", flat(0.9), shallow=True)
    loud = replace(loud, test=scaled(loud.test), valid=scaled(loud.valid))
    frame = ledger([ALONE, EASE, loud], ["auc", "rmse"], resamples=100).frame
    assert set(frame.filter(pl.col("metric") == "auc")["reference"]) == {"loud"}
    assert set(frame.filter(pl.col("metric") == "rmse")["reference"]) == {"ease"}


def test_one_domain_has_no_mean_of_its_own() -> None:
    def cut(by_seed: Mapping[int, Scored | Judged]) -> dict[int, Scores]:
        return {s: Scores(x.frame.filter(pl.col("domain") == "b"), "rows") for s, x in by_seed.items() if isinstance(x, Scores)}

    tested = [replace(e, test=cut(e.test)) for e in (JOINT, ALONE, EASE)]
    book = ledger(tested, "auc", resamples=100)
    assert set(book.frame["domain"]) == {"b"}
    assert book.left_out.is_empty()


def test_cells_are_one_family() -> None:
    """Two cells with p-values worked by hand; the means over domains stay apart."""

    def book(rows: list[tuple[str, str, str, float]]) -> Ledger:
        filled = [dict(zip(("model", "domain", "against", "p"), r, strict=True)) for r in rows]
        numbers = {"metric": "auc", "reference": "y", "value": 1.0, "reference_value": 0.9, "difference": 0.1, "low": 0.0, "high": 0.2}
        frame = pl.DataFrame([numbers | r | {"seeds": 3, "users": 9, "note": None} for r in filled], schema=NUMBERS)
        validation = pl.DataFrame([("x", d, "auc", 0.5) for d in dict.fromkeys(r[1] for r in rows)], schema=VALIDATION, orient="row")
        return Ledger(decided(frame, 0.05), pl.DataFrame(schema=LEFT_OUT), validation, ("auc",), 0.95)

    first = book([("x", "a", "control", 0.01), ("x", "b", "control", 0.04), ("x", "all", "control", 0.03), ("x", "a", "line", 0.02)])
    second = book([("x", "c", "control", 0.03), ("z", "c", "control", 0.005)])
    assert first.frame["p_holm"].to_list() == pytest.approx([0.02, 0.04, 0.03, 0.02])
    assert first.frame["verdict"].to_list() == ["helps"] * 4
    whole = together({"one": first, "two": second})
    assert whole.frame.columns == ["cell", *COLUMNS]
    found = {(r["cell"], r["model"], r["domain"], r["against"]): (r["p_holm"], r["verdict"]) for r in whole.frame.iter_rows(named=True)}
    assert found == {
        ("one", "x", "a", "control"): (pytest.approx(0.03), "helps"),
        ("one", "x", "b", "control"): (pytest.approx(0.06), "no evidence"),
        ("one", "x", "all", "control"): (pytest.approx(0.03), "helps"),
        ("one", "x", "a", "line"): (pytest.approx(0.02), "helps"),
        ("two", "x", "c", "control"): (pytest.approx(0.06), "no evidence"),
        ("two", "z", "c", "control"): (pytest.approx(0.02), "helps"),
    }
    assert whole.best() == {"one: a": "x", "one: b": "x", "two": "x"}
    assert any(s.startswith("x helps in 'a' of cell 'one'") for s in whole.summary())


def test_verdicts_go_by_the_corrected_p() -> None:
    book = ledger([JOINT, ALONE, EASE, POPULAR], "auc", resamples=300)
    for r in book.frame.iter_rows(named=True):
        sure = r["p_holm"] < 0.05
        assert (r["verdict"] != "no evidence") == sure
        if sure:
            assert (r["verdict"] == "helps") == (r["difference"] > 0)


def test_one_seed_of_a_network_gets_an_interval_but_no_verdict() -> None:
    once = replace(entry("once", flat(3.0), seeds=(0,)), control="ease")
    book = ledger([once, EASE], "auc", resamples=300)
    found = line(book.frame, "once", "a", "control")
    assert found["low"] > 0  # type: ignore[operator]
    assert found["verdict"] == "no evidence"
    assert "one seed" in str(found["note"])
    assert "one seed" in book.summary()[0]
    thrice = replace(entry("thrice", flat(3.0)), control="ease")
    assert line(ledger([thrice, EASE], "auc", resamples=300).frame, "thrice", "a", "control")["verdict"] == "helps"


def test_the_same_scores_are_no_evidence() -> None:
    same = replace(EASE, model="same", control="ease")
    found = line(ledger([same, EASE], "auc", resamples=100).frame, "same", "a", "control")
    assert (found["difference"], found["low"], found["high"], found["p"], found["verdict"]) == (0, 0, 0, 1, "no evidence")


def test_equal_seeds_give_the_same_ledger() -> None:
    first, again, other = (ledger([JOINT, ALONE], "auc", resamples=200, seed=seed).frame for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_a_higher_level_is_more_careful() -> None:
    narrow, wide = (ledger([JOINT, ALONE], "auc", resamples=200, level=level).frame for level in (0.5, 0.999))
    assert ((wide["high"] - wide["low"]) > (narrow["high"] - narrow["low"])).all()


def test_summary_says_it_in_sentences() -> None:
    lines = ledger([JOINT, ALONE, EASE, POPULAR], "auc", resamples=300).summary()
    assert any(s.startswith("joint helps in 'a' (+0.") and "auc against its control alone)" in s for s in lines)
    assert any(s.startswith("joint hurts in 'b' (-0.") for s in lines)
    assert any("against the best shallow model, ease)" in s for s in lines)
    verdicts = ["no evidence" in s for s in lines]
    assert verdicts == sorted(verdicts)


# What cannot be compared


def test_domains_with_too_little_data_are_left_out_with_a_reason() -> None:
    def without_clicks(by_seed: dict[int, Scores]) -> dict[int, Scores]:
        kept = pl.col("label") * (pl.col("domain") == "a")
        return {s: Scores(x.frame.with_columns(kept.alias("label")), "rows") for s, x in by_seed.items()}

    cut = [replace(e, test=without_clicks(dict(e.test)), valid=without_clicks(dict(e.valid))) for e in (JOINT, ALONE, EASE)]
    book = ledger(cut, "auc", resamples=200)
    assert "b" not in book.frame["domain"]
    assert set(book.left_out.select("model", "domain", "against").iter_rows()) == {
        ("joint", "b", "control"),
        ("joint", "b", "shallow"),
        ("alone", "b", "shallow"),
    }
    assert "one class only" in book.left_out.filter(pl.col("against") == "control")["reason"][0]
    assert "no shallow model has a validation value" in book.left_out.filter(pl.col("against") == "shallow")["reason"][0]
    found = line(book.frame, "joint", "all", "control")
    assert found["difference"] == pytest.approx(line(book.frame, "joint", "a", "control")["difference"])
    assert "without b" in str(found["note"])
    assert "b" not in book.best()
    assert any("could not be compared in 'b'" in s for s in book.summary())


def test_entries_of_other_users_are_refused() -> None:
    fewer = {s: Scores(x.frame.filter(pl.col("user") > 3), "rows") for s, x in ALONE.test.items()}
    with pytest.raises(DataError, match=r"different rows of the test part \('joint' \(seed 0\): 150 users and 900 rows in 'a'.*146 users"):
        ledger([JOINT, replace(ALONE, test=fewer)], "auc")
    shifted = {s: Scores(x.frame.with_columns(pl.col("item") + 1), "rows") for s, x in ALONE.valid.items()}
    with pytest.raises(DataError, match="valid part"):
        ledger([JOINT, replace(ALONE, valid=shifted)], "auc")


def test_full_rankings_may_store_other_places() -> None:
    def full(best: int) -> Scores:
        """One positive per query, item 7, at a rank of 1 to ``best``; another item stored beside it."""
        user, label = np.repeat(np.arange(40), 2), np.tile([0, 1], 40)
        rank = np.where(label, 1.0 + user % best, 60.0)
        columns = {"group": user, "user": user, "item": np.where(label, 7, best), "domain": "a", "label": label, "score": -rank}
        return Scores(pl.DataFrame({**columns, "rank": rank, "relevant": 1}), "full")

    entries = [Entry(name, "y" if name == "x" else None, True, {0: full(best)}, {0: full(best)}) for name, best in (("x", 2), ("y", 9))]
    assert line(ledger(entries, "mrr", resamples=200).frame, "x", "a", "control")["verdict"] == "helps"


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([JOINT], {}, "did you mean|use one of"),
        ([ALONE, ALONE], {}, "two entries are called 'alone'"),
        ([replace(ALONE, valid={})], {}, "without test or validation"),
        ([], {}, "0 entries"),
        ([replace(ALONE, against=("eas",)), EASE], {}, "did you mean 'ease'"),
        ([ALONE], {"level": 1.0}, "level"),
        ([ALONE], {"resamples": 10}, "resamples"),
    ],
)
def test_wrong_questions_are_refused(entries: list[Entry], options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ledger(entries, "auc", **options)  # type: ignore[arg-type]


# The arithmetic


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([])).shape == (0,)


def test_student_by_hand() -> None:
    low, high, p = student(2.0, np.array([0.5, 0.5]), np.array([10.0, 2.0]), 0.95)
    half = (2.228139 + 4.302653) / 2  # the tables' 97.5 % quantiles for 10 and 2 degrees of freedom, weighted alike
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert (stats.t.isf(p / 2, 10) + stats.t.isf(p / 2, 2)) / 2 == pytest.approx(2.0)
    assert student(2.0, np.array([1.0, 0.0]), np.array([10.0, 2.0]), 0.95)[2] == pytest.approx(2 * stats.t.sf(2, 10))
    assert student(0.0, np.array([1.0]), np.array([10.0]), 0.95)[2] == pytest.approx(1)


def test_seed_variance_by_hand() -> None:
    assert seed_variance({0: 1.0, 1: 3.0}, {0: 1.0, 1: 1.0}) == pytest.approx((1.0, 1.0))
    assert seed_variance({0: 1.0, 1: 3.0, 2: 5.0}, {0: 9.0}) == pytest.approx((4 / 3, 2.0))
    assert seed_variance({0: 1.0}, {0: 9.0}) == (0.0, 0.0)
    both = seed_variance({0: 1.0, 1: 3.0}, {5: 1.0, 6: 3.0, 7: 5.0})
    assert both == pytest.approx((1 + 4 / 3, (1 + 4 / 3) ** 2 / (1 + (4 / 3) ** 2 / 2)))
