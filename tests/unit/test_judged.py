"""Judged tables: cut, ranked and resampled once for all, they say what each slice alone would; kept ones are used only when they answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import metrics
from isthmus.errors import ConfigError, SourceError
from isthmus.estimates import estimate
from isthmus.judged import Asked, Judged, judge, judged, judged_file
from isthmus.ledger import Entry, ledger
from isthmus.measure import measure
from isthmus.metrics import Table
from isthmus.metrics._bootstrap import user_weights
from isthmus.metrics._table import COMPARED, Blocks, _compared, _sorted
from isthmus.scores import Scores
from isthmus.slices import cut, dense

NAMES = ("auc", "gauc", "recall@2", "ndcg@3", "ndcg", "mrr", "hit_rate@1", "logloss")


def rows(
    seed: int, *, mixed: bool = False, levels: int = 6, n: int = 240, texts: bool = False, order: tuple[str, ...] = ("b", "a")
) -> pl.DataFrame:
    """Clicks with many ties; ``mixed``: the states of a group differ; ``texts``: ids are names."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 20, n)
    domain = rng.choice(order, n)
    state = rng.choice(["new", "few", "many"], n) if mixed else np.array(["new", "few", "many"])[user % 3]
    frame = pl.DataFrame({"group": user * 2 + (domain == "a"), "user": user * 1000 - 7, "item": rng.integers(0, 50, n), "domain": domain})
    label, score = (rng.random(n) < 0.4).astype(np.float64), rng.integers(0, levels, n).astype(np.float64)
    frame = frame.with_columns(label=label, score=score, state=state)
    return frame.with_columns(pl.col("user", "group").cast(pl.String)) if texts else frame


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), mixed=st.booleans(), texts=st.booleans(), together=st.booleans(), levels=st.sampled_from([2, 6, 10**6]))
def test_every_slice_is_judged_as_if_it_were_alone(seed: int, mixed: bool, texts: bool, together: bool, levels: int) -> None:
    frame = rows(seed, mixed=mixed, texts=texts, levels=levels)
    frame = frame.sort("domain") if together else frame
    slices, users = cut(Scores(frame, "rows"), states=True)
    judges = [metrics.get(name) for name in NAMES]
    found = estimate(slices, judges, users, 40, 3)
    weight = np.concatenate([w for _, w in user_weights(users, 40, 3)], axis=1)
    codes = dict(zip(sorted(frame["user"].unique()), range(users), strict=True))
    assert [s.domain for s in slices[::4]] == frame["domain"].unique(maintain_order=True).to_list()
    for s in slices:
        mine = frame.filter((pl.col("domain") == s.domain) & ((pl.col("state") == s.state) | (s.state == "all")))
        alone = Table.of(mine["label"], mine["score"], mine["group"], mine["user"])
        assert s.users.tolist() == [codes[u] for u in sorted(mine["user"].unique())]
        assert (s.groups, s.rows) == (alone.groups, mine.height) == (s.table.groups, len(s.table))
        for judging in judges:
            expected, got = judging.statistic(alone), found[judging.name, s.domain, s.state]
            assert got.value == pytest.approx(expected.value, nan_ok=True, abs=1e-14)
            assert (got.note, got.dof) == (expected.note, expected.users - 1)
            assert got.replicates == pytest.approx(expected.resampled(weight[s.users]), nan_ok=True, rel=1e-12, abs=1e-12)


def test_a_domain_is_ranked_once_for_all_states() -> None:
    slices, _ = cut(Scores(rows(0), "rows"), states=True)
    assert all(s.whole is slices[n // 4 * 4].whole for n, s in enumerate(slices))
    assert sum(s.rows for s in slices[1:4]) == slices[0].rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-2, 4)), min_size=1, max_size=40))
def test_comparing_and_sorting_place_positives_alike(lines: list[tuple[int, int, int]]) -> None:
    group, label, score = (np.array(column) for column in zip(*lines, strict=True))
    table = Table.of(label, score, group)
    blocks = Blocks.ranked(table)
    nth = np.arange(len(blocks.group)) - np.searchsorted(blocks.group, blocks.group)
    places = dict.fromkeys(zip(table.group[label > 0], score[label > 0], strict=True))
    keys = sorted(places, key=lambda k: (k[0], -k[1]))
    worth = np.array([s for _, s in keys], np.float64)
    for place in (_compared, _sorted):
        above, size = place(table, blocks.group, worth, nth)
        for (g, s), before, tied in zip(keys, above, size, strict=True):
            own = score[table.group == g]
            assert (before, tied) == (np.sum(own > s), np.sum(own == s))
    assert COMPARED >= 1


@pytest.mark.parametrize("ids", [[5, 3, 3, 9], [-(2**40), 7, 7, 2**40], ["b", "a", "a", "c"]])
def test_dense_codes_follow_the_order_of_the_ids(ids: list[object]) -> None:
    assert dense(pl.Series(ids)).tolist() == ([1, 0, 0, 2] if ids[1] != 7 else [0, 1, 1, 2])


ASKED = Asked(("auc", "ndcg@3"), 60, ("auc",), 200)


def test_one_judging_gives_what_measure_and_the_ledger_give() -> None:
    truth = rows(1)
    rng = np.random.default_rng(0)

    def scored(skill: float) -> Scores:
        return Scores(truth.with_columns(score=skill * truth["label"].to_numpy() + rng.normal(size=truth.height)), "rows")

    tables = {name: {s: scored(skill) for s in (0, 1)} for name, skill in (("x", 1.0), ("y", 0.1))}
    for scores in tables["x"].values():
        assert judge(scores, ASKED).measures.equals(measure(scores, ASKED.metrics, resamples=60))
    plain = [Entry(name, "y" if name == "x" else None, name == "y", by, by) for name, by in tables.items()]
    known = {name: {s: judge(scores, ASKED) for s, scores in by.items()} for name, by in tables.items()}
    values = {name: {s: judge(scores, Asked(compared=("auc",))) for s, scores in by.items()} for name, by in tables.items()}
    book, again = (
        ledger(entries, "auc", resamples=200)
        for entries in (plain, [replace(e, test=known[e.model], valid=values[e.model]) for e in plain])
    )
    assert book.frame.height == 6
    for name in ("frame", "left_out", "validation"):
        assert getattr(book, name).equals(getattr(again, name))
    with pytest.raises(ConfigError, match="judged by"):
        judged(known["x"][0], "auc", 300, 0)
    with pytest.raises(ConfigError, match="judged by"):
        judged(known["x"][0], "gauc", 200, 0)


def test_the_rows_judged_are_told_apart() -> None:
    frame = rows(2)
    asked = Asked(compared=("auc",))

    def digest(changed: pl.DataFrame, kind: str = "rows") -> str:
        return judge(Scores(changed, kind), asked).rows.digest  # type: ignore[arg-type]

    same = digest(frame)
    assert digest(frame.sample(fraction=1.0, shuffle=True, seed=1).with_columns(pl.col("score") + 1)) == same
    first = pl.int_range(frame.height) == 0
    for column, value in (("item", 77), ("label", 1 - frame["label"][0]), ("user", -7 + 1000 * 19)):
        other = frame.with_columns(pl.when(first).then(pl.lit(value)).otherwise(pl.col(column)).cast(frame.schema[column]).alias(column))
        assert (digest(other) == same) == other.equals(frame)
    assert digest(frame.slice(1)) != same
    sizes = judge(Scores(frame, "rows"), asked).rows.sizes
    assert sizes == tuple((d, frame.filter(domain=d)["user"].n_unique(), frame.filter(domain=d).height) for d in ("a", "b"))


def test_of_full_rankings_only_the_positives_must_agree() -> None:
    columns = {"group": [0, 0, 0], "user": [4, 4, 4], "item": [1, 2, 3], "domain": ["a"] * 3, "label": [1.0, 0.0, 0.0]}
    frame = pl.DataFrame(columns | {"score": [3.0, 2.0, 1.0], "rank": [1.0, 2.0, 3.0], "relevant": [1, 1, 1]})
    asked = Asked(compared=("mrr",))
    fewer, other = frame.head(2), frame.with_columns(item=pl.Series([9, 2, 3]))
    digests = [judge(Scores(f, "full"), asked).rows.digest for f in (frame, fewer, other)]
    assert digests[0] == digests[1] != digests[2]


def equal(first: Judged, second: Judged) -> bool:
    """Bit for bit."""

    def plain(found: Judged) -> list[tuple[object, ...]]:
        return [
            (metric, domain, repr(e.value), float(e.dof), e.note, e.replicates.tobytes())
            for metric, by_domain in found.estimates.items()
            for domain, e in by_domain.items()
        ]

    heads = [(found.rows, found.users, found.asked, plain(found)) for found in (first, second)]
    return heads[0] == heads[1] and first.measures.equals(second.measures)


@pytest.mark.parametrize("resamples", [0, 200])
def test_what_is_kept_beside_the_scores_is_the_same_bit_for_bit(tmp_path: Path, resamples: int) -> None:
    one_class = rows(3).with_columns(pl.when(pl.col("domain") == "a").then(0.0).otherwise(pl.col("label")).alias("label"))
    path, asked = tmp_path / "test.parquet", replace(ASKED, resamples=resamples)
    Scores(one_class, "rows").save(path)
    made = judged_file(path, asked)
    beside = tmp_path / "test.judged.parquet"
    before = beside.stat().st_mtime_ns
    assert equal(made, judge(Scores.load(path), asked))
    assert equal(judged_file(path, asked), made)
    assert beside.stat().st_mtime_ns == before  # read, not made again


def test_what_is_kept_is_judged_again_when_it_answers_something_else(tmp_path: Path) -> None:
    path, beside = tmp_path / "test.parquet", tmp_path / "test.judged.parquet"
    Scores(rows(4), "rows").save(path)
    first = judged_file(path, ASKED)
    for asked in (replace(ASKED, metrics=("auc",)), replace(ASKED, resamples=100), replace(ASKED, compared=("ndcg@3",)), ASKED):
        assert equal(judged_file(path, asked), judge(Scores.load(path), asked))
    Scores(rows(5), "rows").save(path)  # other scores under the same name
    second = judged_file(path, ASKED)
    assert not equal(second, first)
    whole = beside.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no parquet"):
        beside.write_bytes(damaged)
        assert equal(judged_file(path, ASKED), second)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cannot be read"):
        judged_file(path, ASKED)
    path.unlink()
    with pytest.raises(SourceError, match="missing"):
        judged_file(path, ASKED)
