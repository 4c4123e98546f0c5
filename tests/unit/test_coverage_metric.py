"""Coverage by hand, through score and measure, and what it refuses; recall, NDCG and MRR of full rankings against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.measure import measure
from isthmus.metrics import Table, get
from isthmus.model import Retriever
from isthmus.schema import Schema
from isthmus.score import score
from isthmus.scores import Scores
from isthmus.task import get_task

RETRIEVAL = get_task("retrieval")


class Dot(Retriever):
    """Fixed random vectors; scores hardly ever tie."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        rng = torch.Generator().manual_seed(3)
        self.user = torch.randn(schema.user.size, 4, generator=rng)
        self.item = torch.randn(schema.item.size, 4, generator=rng)

    def user_vector(self, batch: Batch) -> Tensor:
        return self.user[batch.user]

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        return self.item[item] * (1 + domain[..., None])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two domains, 60 users, 1,300 items of which each domain shows about 1,200."""
    rng = np.random.default_rng(0)
    n = 8000
    frame = pl.DataFrame(
        {"user": rng.integers(0, 60, n).astype(str), "item": rng.integers(0, 1300, n).astype(str), "domain": rng.choice(["x", "y"], n)}
    )
    events = read_events(frame, user="user", item="item", domain="domain")
    part = rng.choice(["train", "valid", "test"], n, p=[0.8, 0.1, 0.1]).tolist()
    return encode(events, split.given(events, part), tmp_path_factory.mktemp("coverage") / "data")


def one(frame: pl.DataFrame, metric: str, domain: str = "x", state: str = "all") -> dict[str, object]:
    return frame.row(by_predicate=(pl.col("metric") == metric) & (pl.col("domain") == domain) & (pl.col("state") == state), named=True)


def test_by_hand() -> None:
    group = [0, 0, 0, 1, 1, 1, 2]
    table = Table.of(
        [1, 0, 0, 0, 0, 1, 1],
        [9, 8, 7, 9, 8, 1, 0],
        group,
        rank=[1, 2, 3, 1, 2, 40, math.inf],
        item=list("abcadef"),
        catalogue=10,
        places=3,
    )
    assert get("coverage@1").value(table) == 0.1  # a and a
    assert get("coverage@2").value(table) == pytest.approx(0.3)  # a b, a d
    assert get("coverage@3").value(table) == pytest.approx(0.4)  # and c; e stands at 40, f is outside the catalogue
    ties = Table.of([0, 0, 0], [1, 1, 1], rank=[2.0, 2.0, 2.0], item=[1, 2, 3], catalogue=4)
    assert get("coverage@1").value(ties) == pytest.approx(0.25)  # one of three tied items
    assert get("coverage@2").value(ties) == pytest.approx(0.5)
    # Of three queries each shows one of a and b at random: each is missed with probability 1/8.
    coins = Table.of([0] * 6, [1] * 6, [0, 0, 1, 1, 2, 2], rank=[1.5] * 6, tied=[2] * 6, item=list("ababab"), catalogue=4)
    assert get("coverage@1").value(coins) == pytest.approx(2 * (7 / 8) / 4)
    assert get("coverage@2").value(coins) == pytest.approx(0.5)


def test_ties_beyond_the_stored_places_are_counted_among_the_stored_and_noted() -> None:
    """Fifty tied items, of which two are stored: they are what the ranking shows."""
    table = Table.of([0, 0, 0], [9, 1, 1], rank=[1, 26.5, 26.5], tied=[1, 50, 50], item=[1, 2, 3], catalogue=100, places=3)
    values = [get(f"coverage@{k}").statistic(table) for k in (1, 2, 3)]
    assert [found.value for found in values] == pytest.approx([0.01, 0.02, 0.03])
    assert ["beyond the stored places" in (found.note or "") for found in values] == [False, True, True]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_count_in_expectation_over_all_orders(seed: int, k: int) -> None:
    level = np.random.default_rng(seed).integers(0, 2, (2, 4))  # two queries rank four items
    shown = [
        {frozenset(order[:k]) for order in itertools.permutations(range(4)) if list(score[list(order)]) == sorted(score, reverse=True)}
        for score in level
    ]  # by symmetry every set of first places is equally likely
    expected = np.mean([len(one | other) for one in shown[0] for other in shown[1]]) / 4
    rank = (level[:, None] > level[..., None]).sum(2) + ((level[:, None] == level[..., None]).sum(2) + 1) / 2
    item, group = np.tile(np.arange(4), 2), np.repeat([0, 1], 4)
    table = Table.of(np.zeros(8), level.ravel(), group, rank=rank.ravel(), item=item, catalogue=4)
    assert get(f"coverage@{k}").value(table) == pytest.approx(expected)


def test_what_cannot_be_told_is_not() -> None:
    table = Table.of([1, 0], [2, 1], rank=[1, 2], item=[1, 2], catalogue=9, places=2)
    assert get("coverage@2").value(table) == pytest.approx(2 / 9)
    short = get("coverage@3").statistic(table)
    assert math.isnan(short.value)
    assert short.note == "only the first 2 places are kept: score with k=3 or more"
    assert get("coverage@3").value(replace(table, catalogue=2)) == 1.0  # there are no more places
    assert "not known" in (get("coverage@1").statistic(replace(table, catalogue=None)).note or "")
    assert math.isnan(get("coverage@1").value(Table.of([], [])))


@pytest.mark.parametrize("k", [1, 10, 100])
def test_through_score_and_measure_equals_brute_force(data: Dataset, tmp_path: Path, k: int) -> None:
    model = Dot(data.schema)
    scores = score(model, data, "test", task=RETRIEVAL)
    scores.save(tmp_path / "scores.parquet")
    loaded = Scores.load(tmp_path / "scores.parquet")
    assert (loaded.catalogue, loaded.places) == (scores.catalogue, 100)
    frame = measure(loaded, [f"coverage@{k}"], resamples=50)
    expected = []
    for d, name in enumerate(data.schema.domain_names):
        catalogue = data.catalogue(d, "test").astype(int)
        shown: set[int] = set()
        for user in scores.frame.filter(pl.col("domain") == name)["user"].unique():
            seen, relevant = set(), set()
            for part in ("train", "valid", "test"):
                rows = data.part(part)
                own = rows.of(d)
                (relevant if part == "test" else seen).update(rows.item[own][rows.user[own] == user].tolist())
            allowed = np.array([i for i in catalogue if i in relevant or i not in seen])
            value = (model.item[allowed] @ model.user[user]).numpy()
            shown.update(allowed[np.argsort(-value)[:k]].tolist())
        expected.append(len(shown) / len(catalogue))
        row = one(frame, f"coverage@{k}", name)
        assert row["value"] == pytest.approx(expected[-1])
        assert row["low"] is row["high"] is None
        assert "grows with their number" in str(row["note"])
    assert one(frame, f"coverage@{k}", "all")["value"] == pytest.approx(np.mean(expected))
    assert one(frame, f"coverage@{k}", "all")["note"] == "no interval"


def test_more_places_than_kept_are_not_guessed(data: Dataset) -> None:
    scores = score(Dot(data.schema), data, "test", task=RETRIEVAL, k=20)
    row = one(measure(scores, ["coverage@50"], resamples=0), "coverage@50")
    assert row["value"] is None
    assert "score with k=50" in str(row["note"])


def test_joined_scores_keep_the_catalogues(data: Dataset) -> None:
    both = score(Dot(data.schema), data, "test", task=RETRIEVAL)
    single = [score(Dot(data.schema), data, "test", task=RETRIEVAL, domains=(d,)) for d in (0, 1)]
    joined = Scores.concat(single)
    assert joined.catalogue == both.catalogue == {name: len(data.catalogue(d, "test")) for d, name in enumerate(data.schema.domain_names)}
    with pytest.raises(ConfigError, match="to be joined"):
        Scores.concat([single[0], score(Dot(data.schema), data, "test", task=RETRIEVAL, domains=(1,), k=7)])


def test_only_full_rankings_have_a_coverage(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="coverage@10"):
        measure(score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates="sampled"), ["coverage@10"])


def test_scores_from_before_the_catalogue_was_kept(data: Dataset) -> None:
    scores = replace(score(Dot(data.schema), data, "test", task=RETRIEVAL), catalogue=None, places=None)
    row = one(measure(scores, ["coverage@10"], resamples=0), "coverage@10")
    assert (row["value"], row["note"]) == (None, "the size of the catalogue is not known")


@pytest.mark.parametrize("k", [10, 50, 100, 500, 1000])
def test_deep_cutoffs_are_exact_though_a_hundred_places_are_kept(data: Dataset, k: int) -> None:
    model = Dot(data.schema)
    scores = score(model, data, "test", task=RETRIEVAL, domains=(0,))
    found = measure(scores, [f"recall@{k}", f"ndcg@{k}", "mrr"], resamples=0)
    recall, ndcg, mrr = [], [], []
    for user in scores.frame["user"].unique():
        seen, relevant = set(), set()
        for part in ("train", "valid", "test"):
            rows = data.part(part)
            own = rows.of(0)
            (relevant if part == "test" else seen).update(rows.item[own][rows.user[own] == user].tolist())
        allowed = np.array([i for i in data.catalogue(0, "test").astype(int) if i in relevant or i not in seen])
        order = allowed[np.argsort(-(model.item[allowed] @ model.user[user]).numpy())]
        place = np.flatnonzero(np.isin(order, list(relevant))) + 1
        recall.append((place <= k).sum() / len(relevant))
        ideal = (1 / np.log2(np.arange(min(k, len(relevant))) + 2)).sum()
        ndcg.append((1 / np.log2(place[place <= k] + 1)).sum() / ideal)
        mrr.append(1 / place[0])
    for metric, values in ((f"recall@{k}", recall), (f"ndcg@{k}", ndcg), ("mrr", mrr)):
        assert one(found, metric)["value"] == pytest.approx(np.mean(values)), metric
    assert 0 < np.mean(recall) < 1
