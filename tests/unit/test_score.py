"""Scoring against brute force, and the table of scores on disk."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.split import Candidates
from isthmus.errors import ColumnError, ConfigError, DataError, SourceError
from isthmus.how import How
from isthmus.layers.ranking import best, ranks
from isthmus.measure import measure
from isthmus.model import Model, Retriever
from isthmus.schema import Schema
from isthmus.score import Scores, score
from isthmus.task import get_task

RETRIEVAL, NEXT = get_task("retrieval"), get_task("next_item")


class Dot(Retriever):
    """Fixed random vectors, rounded so that scores tie."""

    def __init__(self, schema: Schema, *, levels: int = 3) -> None:
        super().__init__(schema)
        rng = torch.Generator().manual_seed(5)
        self.user = torch.randint(-levels, levels + 1, (schema.user.size, 3), generator=rng).float()
        self.item = torch.randint(-levels, levels + 1, (schema.item.size, 3), generator=rng).float()

    def user_vector(self, batch: Batch) -> Tensor:
        return self.user[batch.user]

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        return self.item[item] * (1 + domain[..., None])


class Plain(Model):
    """The same scores without the dot product in sight; remembers what it was asked."""

    def __init__(self, schema: Schema, *, levels: int = 3) -> None:
        super().__init__(schema)
        self.dot = Dot(schema, levels=levels)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[int, ...]] = []

    def forward(self, batch: Batch) -> Output:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.asked.append(tuple(batch.item.shape))
        return self.dot(batch)


class Watched(Retriever):
    """Random vectors; remembers which thread made how many, and which multiplied them, with how many of torch's threads."""

    def __init__(self, schema: Schema, *, together: int = 1) -> None:
        super().__init__(schema)
        self.weight = torch.nn.Parameter(torch.randn(schema.user.size + schema.item.size, 8))
        self.made, self.multiplied = list[tuple[int, int]](), list[tuple[int, int]]()
        met, waiting = Barrier(together), iter(range(together))

        class User(Tensor):
            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found: Any = super().__torch_function__(func, types, args, kwargs)
                if func is not Tensor.matmul:
                    return found
                self.multiplied.append((get_ident(), torch.get_num_threads()))
                if next(waiting, None) is not None:  # the first products wait for each other
                    met.wait(60)
                return found.as_subclass(Tensor)

        self.kind = User

    def user_vector(self, batch: Batch) -> Tensor:
        self.made.append((get_ident(), len(batch)))
        return self.weight[batch.user].as_subclass(self.kind)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        self.made.append((get_ident(), len(item)))
        return self.weight[self.schema.user.size + item]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Recent(Model):
    """How many of the candidate's own code, and of all codes, the histories hold."""

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True)

    def forward(self, batch: Batch) -> Output:
        assert batch.history is not None
        assert batch.cross_history is not None
        own = (batch.history > 0).sum(1) + 100 * (batch.cross_history > 0).sum(1)
        return Output(own[:, None].float().expand(batch.item.shape))


def log(rows: Sequence[tuple[Any, ...]], *names: str, **options: Any) -> Events:
    frame = pl.DataFrame(rows, schema=["user", "item", "domain", *names], orient="row")
    known = {name: name for name in names if name in ("time", "label")}
    return read_events(frame, user="user", item="item", domain="domain", **known, **options)


def random_log(seed: int, domains: str = "xy", items: int = 12) -> tuple[Events, list[str]]:
    """Users and items shared between domains, repeats included; every domain has rows of each part."""
    rng = np.random.default_rng(seed)
    rows, part = [], []
    for domain in domains:
        for user in range(9):
            for number, item in enumerate(rng.integers(0, items, rng.integers(1, 8))):
                rows.append((f"u{user}", f"i{item:02}", domain))
                part.append("train" if number < 2 else str(rng.choice(["train", "valid", "test"])))
        for kept in ("train", "valid", "test"):
            rows.append(("last", f"i{rng.integers(0, items):02}", domain))
            part.append(kept)
    return log(rows), part


def made(events: Events, part: Sequence[str], path: Path, candidates: dict[str, Candidates] | None = None) -> Dataset:
    return encode(events, split.given(events, part, candidates), path / "data")


def named(scores: Scores, data: Dataset) -> pl.DataFrame:
    """With the ids back."""
    users, items = data.user_vocabulary.decode(scores.frame["user"]), data.item_vocabulary.decode(scores.frame["item"])
    return scores.frame.with_columns(users.alias("user"), items.alias("item"))


def brute_force(model: Dot, data: Dataset, events: Events, part: list[str], asked: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """Score of all that is ranked for every (domain, user, relevant item), from the ids alone."""
    before = {"train": [], "valid": ["train"], "test": ["train", "valid"]}[asked]
    rows = list(zip(events.frame().select("user", "item", "domain").iter_rows(), part, strict=True))
    code = {
        "user": dict(zip(events.user_ids, data.user_vocabulary.encode(events.user_ids), strict=True)),
        "item": dict(zip(events.item_ids, data.item_vocabulary.encode(events.item_ids), strict=True)),
    }
    out = {}
    for d, domain in enumerate(events.schema.domain_names):
        shown = {item for (_, item, where), p in rows if where == domain and p in (*before, asked)}
        for user in {user for (user, _, where), p in rows if where == domain and p == asked}:
            relevant = {i for (u, i, where), p in rows if (u, where, p) == (user, domain, asked)}
            seen = {i for (u, i, where), p in rows if (u, where) == (user, domain) and p in before}
            value = {i: float(model.user[code["user"][user]] @ model.item[code["item"][i]]) * (1 + d) for i in shown}
            ranked = {i: value[i] for i in sorted(shown) if i in relevant or i not in seen}
            out |= {(domain, user, item): ranked for item in relevant}
    return out


class TestFullRanking:
    @settings(max_examples=12, deadline=None)
    @forall(seed=st.integers(0, 10**6), asked=st.sampled_from(["train", "valid", "test"]), k=st.sampled_from([0, 1, 4, 100]))
    def test_ranks_equal_brute_force(self, tmp_path_factory: pytest.TempPathFactory, seed: int, asked: str, k: int) -> None:
        events, part = random_log(seed)
        data = made(events, part, tmp_path_factory.mktemp("world"))
        model = Dot(data.schema)
        scores = score(model, data, asked, task=RETRIEVAL, candidates="full", k=k)
        assert scores.kind == "full"
        relevant = named(scores, data).filter(pl.col("label") == 1)
        found = {(r["domain"], r["user"], r["item"]): (r["rank"], r["tied"]) for r in relevant.iter_rows(named=True)}
        expected = {}
        for key, ranked in brute_force(model, data, events, part, asked).items():
            above, equal = (sum(compare(v, ranked[key[2]]) for v in ranked.values()) for compare in (operator.gt, operator.eq))
            expected[key] = (above + (equal + 1) / 2, equal)
        assert found == expected
        assert len(relevant) == len(found)
        at = relevant["row"].to_list()
        assert [events.frame()["item"][row] for row in at] == relevant["item"].to_list()
        assert {part[row] for row in at} == {asked}
        number = relevant.group_by("group").len().join(relevant.select("group", "relevant").unique(), on="group")
        assert number["len"].to_list() == number["relevant"].to_list()

    @settings(max_examples=12, deadline=None)
    @forall(seed=st.integers(0, 10**6), levels=st.sampled_from([0, 1, 2]), k=st.sampled_from([0, 1, 4, 100]))
    def test_metrics_are_those_of_the_whole_lists(self, tmp_path_factory: pytest.TempPathFactory, seed: int, levels: int, k: int) -> None:
        """However many places are kept and however many items tie: the same values as every item's score in a given list."""
        events, part = random_log(seed, items=25)
        data = made(events, part, tmp_path_factory.mktemp("world"))
        model = Dot(data.schema, levels=levels)
        by_query: dict[tuple[str, str], tuple[dict[str, float], set[str]]] = {}
        for (domain, user, item), ranked in brute_force(model, data, events, part, "test").items():
            by_query.setdefault((domain, user), (ranked, set()))[1].add(item)
        rows = [(user, i, d, float(i in right), v) for (d, user), (ranked, right) in by_query.items() for i, v in ranked.items()]
        lists = Scores.from_frame(pl.DataFrame(rows, ["user", "item", "domain", "label", "score"], orient="row"), "lists")
        names = ["ndcg", "mrr", *(f"{base}@{cut}" for base in ("recall", "ndcg", "hit_rate", "mrr") for cut in (1, 2, 3, 5, 9, 14, 25, 40))]
        columns = ("metric", "domain", "value")
        full, whole = (
            measure(scores, names, resamples=0).filter(pl.col("state") == "all").select(columns).sort(columns[:2])
            for scores in (score(model, data, "test", task=RETRIEVAL, candidates="full", k=k), lists)
        )
        assert full.select("metric", "domain").equals(whole.select("metric", "domain"))
        assert full["value"].to_list() == pytest.approx(whole["value"].to_list())

    @pytest.mark.parametrize("small", [False, True])
    def test_other_models_rank_as_retrievers_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
        events, part = random_log(1)
        data = made(events, part, tmp_path)
        expected = score(Dot(data.schema), data, "test", task=RETRIEVAL, k=4).frame
        if small:  # blocks of few queries, calls with few candidates
            monkeypatch.setattr("isthmus.score.PAIRS", 5)
            monkeypatch.setattr("isthmus.score.CELLS", 30)
            monkeypatch.setattr("isthmus.layers.ranking.WORKING_SET", 7)
        model = Plain(data.schema)
        assert score(model, data, "test", task=RETRIEVAL, k=4).frame.sort("group", "item").equals(expected.sort("group", "item"))
        assert model.training
        if small:
            assert max(b * c for b, c in model.asked) <= 5

    @pytest.mark.usefixtures("three_threads")
    def test_each_thread_multiplies_blocks_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = made(*random_log(1), tmp_path)
        monkeypatch.setattr("isthmus.score.ROWS", 1)
        model = Watched(data.schema, together=3)
        score(model, data, "test", task=RETRIEVAL, domains=(0,))
        assert {thread for thread, _ in model.made} == {get_ident()}  # what may be an exchange with other processes
        assert len({thread for thread, _ in model.multiplied}) == 3
        assert get_ident() not in {thread for thread, _ in model.multiplied}
        assert {number for _, number in model.multiplied} == {1}
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3

    @pytest.mark.usefixtures("three_threads")
    def test_the_number_of_threads_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = made(*random_log(2, items=300), tmp_path)
        monkeypatch.setattr("isthmus.score.ROWS", 2)
        model, found = Watched(data.schema), list[pl.DataFrame]()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(score(model, data, "test", task=RETRIEVAL, k=20).frame)
        assert len(model.multiplied) > 3 * 4
        assert found[0].equals(found[1])
        assert found[0].equals(found[2])

    def test_vectors_are_made_for_more_queries_than_a_block_has(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = made(*random_log(3, "x"), tmp_path)
        model, most = Watched(data.schema), list[int]()
        monkeypatch.setattr("isthmus.score.USERS", 5)
        monkeypatch.setattr("isthmus.score.ITEMS", 4)
        for rows, batch_size in ((2, 100), (3, 100), (7, 100), (2, 3), (7, 1)):
            monkeypatch.setattr("isthmus.score.ROWS", rows)
            model.made.clear()
            score(model, data, "train", task=RETRIEVAL, how=How(batch_size=batch_size))
            sizes = [size for _, size in model.made]
            assert sizes[:3] == [4, 4, 3]  # of items
            assert sum(sizes[3:]) == 10
            most.append(max(sizes[3:]))
        assert most == [4, 3, 7, 2, 1]

    @pytest.mark.usefixtures("three_threads")
    def test_what_goes_wrong_in_a_thread_ends_them_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = made(*random_log(1), tmp_path)
        monkeypatch.setattr("isthmus.score.ROWS", 2)
        model = Watched(data.schema)
        with torch.no_grad():
            model.weight[5] = math.nan
        with pytest.raises(DataError, match="not numbers"):
            score(model, data, "test", task=RETRIEVAL)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("isthmus-ahead")]
        assert torch.get_num_threads() == 3

    def test_seen_items_are_hidden_and_kept_places_are_the_best(self, tmp_path: Path) -> None:
        events, part = random_log(2)
        data = made(events, part, tmp_path)
        whole = named(score(Dot(data.schema), data, "test", task=RETRIEVAL, k=1000), data)
        rows = list(zip(events.frame().select("user", "item", "domain").iter_rows(), part, strict=True))
        for (domain, user), query in whole.group_by("domain", "user"):
            shown = {i for (_, i, d), _ in rows if d == domain}
            seen = {i for (u, i, d), p in rows if (u, d) == (user, domain) and p != "test"}
            relevant = {i for (u, i, d), p in rows if (u, d) == (user, domain) and p == "test"}
            assert set(query["item"]) == (shown - seen) | relevant
            assert query["rank"].to_list() == pytest.approx(query["score"].rank("average", descending=True).to_list())
            assert query["tied"].to_list() == query.select(pl.len().over("score"))["len"].to_list()
            assert query["rank"].is_sorted()
            assert set(query.filter(pl.col("label") == 1)["item"]) == relevant
        top = score(Dot(data.schema), data, "test", task=RETRIEVAL, k=2).frame
        assert (top.group_by("group").len()["len"] >= 2).all()
        kept = top.join(whole.select("group", "rank", "score", "label"), on=["group", "rank", "score", "label"], how="semi")
        assert kept.height == top.height

    def test_a_relevant_item_outside_the_catalogue_is_a_miss(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x"), ("q", "b", "x"), ("p", "c", "x"), ("q", "a", "x"), ("q", "z", "x")]
        events = log(rows, shows={"x": ["a", "b", "c"]})
        data = made(events, ["train", "train", "valid", "test", "test"], tmp_path)
        scores = score(Dot(data.schema), data, "test", task=RETRIEVAL, catalogue="train")
        found = named(scores, data)
        assert found.filter(pl.col("item") == "z").select("rank", "tied", "label", "relevant", "row").row(0) == (math.inf, 1, 1.0, 2, 4)
        assert found["score"].is_finite().all()
        recall = measure(scores, ["recall@10", "mrr"], resamples=0).filter(pl.col("state") == "all", pl.col("domain") == "x")
        assert recall["value"][0] == 0.5

    def test_users_without_training_events_are_new(self, tmp_path: Path) -> None:
        rows = [("p", f"i{n}", "x") for n in range(6)] + [("q", "i0", "x"), ("p", "i0", "y"), ("v", "i1", "x")]
        rows += [("p", "i6", "x"), ("q", "i1", "x"), ("new", "i2", "x"), ("p", "i1", "y"), ("q", "i0", "y")]
        data = made(log(rows), ["train"] * 8 + ["valid"] + ["test"] * 5, tmp_path)
        found = named(score(Dot(data.schema), data, "test", task=RETRIEVAL), data).filter(pl.col("label") == 1)
        states = {(r["user"], r["domain"]): r["state"] for r in found.iter_rows(named=True)}
        assert states == {("p", "x"): "many", ("q", "x"): "few", ("new", "x"): "new", ("p", "y"): "few", ("q", "y"): "new"}

    def test_users_held_out_of_a_domain_are_told_apart_by_their_events_in_the_others(self, tmp_path: Path) -> None:
        counts = {"a": (4, 0), "b": (3, 2), "c": (19, 0), "d": (0, 20), "e": (6, 0)}  # training events in x and in z
        rows = [(u, f"i{n}", d) for u, both in counts.items() for d, size in zip("xz", both, strict=True) for n in range(size)]
        trained = len(rows) + 7
        rows += [("e", f"i{n}", "y") for n in range(7)] + [(u, "i0", "y") for u in "abcd"]
        events, parts = log(rows), ["train"] * trained + ["test"] * 4
        found = {}
        for rule in ("cold_users", "given"):
            data = encode(events, replace(split.given(events, parts), rule=rule), tmp_path / rule)
            for part in ("test", "train"):
                states = named(score(Dot(data.schema), data, part, task=RETRIEVAL), data).filter(pl.col("label") == 1)
                found[rule, part] = {(r["user"], r["domain"]): r["state"] for r in states.iter_rows(named=True)}
        of_y = {(u, "y"): state for u, state in zip("abcd", ("source <5", "source 5-19", "source 5-19", "source 20+"), strict=True)}
        assert found["cold_users", "test"] == of_y
        assert found["cold_users", "train"]["e", "x"] == "source 5-19"  # seven in y
        assert found["cold_users", "train"]["c", "x"] == "source <5"  # her own nineteen do not count
        assert set(found["given", "test"].values()) == {"new"}

    def test_queries_have_the_same_groups_in_every_scoring(self, tmp_path: Path) -> None:
        data = made(*random_log(3), tmp_path)
        model = Dot(data.schema)
        both = score(model, data, "test", task=RETRIEVAL, k=3)
        single = [score(model, data, "test", task=RETRIEVAL, k=3, domains=(d,)) for d in (0, 1)]
        assert Scores.concat(single).frame.equals(both.frame)
        limited = score(model, data, "test", task=RETRIEVAL, k=3, limit=2)
        assert limited.frame.select("domain", "group").unique().group_by("domain").len()["len"].to_list() == [2, 2]
        assert limited.frame.join(both.frame, on=both.frame.columns, how="semi").height == limited.frame.height
        assert limited.frame.equals(score(model, data, "test", task=RETRIEVAL, k=3, limit=2).frame)


class TestMoments:
    ROWS = (
        ("p", "a", "x", 1),
        ("p", "b", "x", 2),
        ("q", "a", "y", 2),
        ("q", "c", "x", 3),
        ("p", "c", "y", 4),
        ("p", "d", "x", 5),  # valid
        ("p", "e", "x", 6),  # test: asked about here, as of time 6
        ("p", "a", "x", 8),
        ("q", "b", "x", 7),
    )
    PARTS = ("train",) * 5 + ("valid",) + ("test",) * 3

    def test_histories_end_at_the_first_event_of_the_part(self, tmp_path: Path) -> None:
        data = made(log(self.ROWS, "time"), self.PARTS, tmp_path)
        found = named(score(Recent(data.schema), data, "test", task=RETRIEVAL), data)
        assert dict(found.select("user", "score").unique().iter_rows()) == {"p": 103.0, "q": 101.0}  # own a b d + c; own c + a

    def test_a_model_of_one_domain_sees_no_other(self, tmp_path: Path) -> None:
        data = made(log(self.ROWS, "time"), self.PARTS, tmp_path)
        found = named(score(Recent(data.schema), data, "test", task=RETRIEVAL, how=How(domains=(0,)), domains=(0,)), data)
        assert dict(found.select("user", "score").unique().iter_rows()) == {"p": 3.0, "q": 1.0}

    def test_history_length_is_that_of_training(self, tmp_path: Path) -> None:
        data = made(log(self.ROWS, "time"), self.PARTS, tmp_path)
        found = named(score(Recent(data.schema), data, "test", task=RETRIEVAL, how=How(history_length=2)), data)
        assert found.filter(pl.col("user") == "p")["score"].unique().to_list() == [102.0]


class TestEveryEvent:
    """The task ``next_item``: a question for every event, as of its own moment."""

    @settings(max_examples=12, deadline=None)
    @forall(seed=st.integers(0, 10**6), asked=st.sampled_from(["valid", "test"]))
    def test_ranks_equal_brute_force(self, tmp_path_factory: pytest.TempPathFactory, seed: int, asked: str) -> None:
        events, part = random_log(seed)
        time = np.random.default_rng(seed).integers(0, 9, len(part)) + 10 * np.array([("train", "valid", "test").index(p) for p in part])
        frame = events.frame().with_columns(time=time)
        events = read_events(frame, user="user", item="item", domain="domain", time="time")
        data = made(events, part, tmp_path_factory.mktemp("world"))
        model = Dot(data.schema)
        scores = score(model, data, asked, task=NEXT, k=4)
        rows = list(zip(events.frame().select("user", "item", "domain", "time").iter_rows(), part, strict=True))
        code = {name: getattr(data, f"{name}_vocabulary") for name in ("user", "item")}
        vector = {name: lambda one, name=name: getattr(model, name)[int(code[name].encode(pl.Series([one]))[0])] for name in code}
        before = {"valid": ["train"], "test": ["train", "valid"]}[asked]
        expected = {}
        for row, ((user, item, domain, when), p) in enumerate(rows):
            if p != asked:
                continue
            mine = [(i, t, q) for (u, i, d, t), q in rows if (u, d) == (user, domain)]
            hidden = {i for i, t, q in mine if q in before or (q == asked and t < when)} - {item}
            shown = {i for (_, i, d, _), q in rows if d == domain and q in (*before, asked)} - hidden
            value = {i: float(vector["user"](user) @ vector["item"](i)) * (1 + (domain == "y")) for i in shown}
            above, equal = (sum(compare(v, value[item]) for v in value.values()) for compare in (operator.gt, operator.eq))
            expected[row] = (item, above + (equal + 1) / 2, equal, 1)
        relevant = named(scores, data).filter(pl.col("label") == 1)
        assert {r["row"]: (r["item"], r["rank"], r["tied"], r["relevant"]) for r in relevant.iter_rows(named=True)} == expected
        assert relevant["group"].to_list() == relevant["row"].to_list()

    def test_histories_end_at_each_event(self, tmp_path: Path) -> None:
        data = made(log(TestMoments.ROWS, "time"), TestMoments.PARTS, tmp_path)
        found = named(score(Recent(data.schema), data, "test", task=NEXT), data).filter(pl.col("label") == 1)
        assert dict(found.select("item", "score").iter_rows()) == {"e": 103.0, "a": 104.0, "b": 101.0}

    def test_lists_find_their_events(self, tmp_path: Path) -> None:
        events = log(TestMoments.ROWS, "time")
        given = {("p", "x"): ("cae", "a"), ("q", "x"): ("bd", "b")}
        lists = TestLists().lists(events, given)
        data = made(events, TestMoments.PARTS, tmp_path, {"test": lists})
        found = named(score(Recent(data.schema), data, "test", task=NEXT), data)
        assert found.select("user", "item", "label", "row", "score").rows() == [
            *(("p", "c", 0, -1, 104.0), ("p", "a", 1, 7, 104.0), ("p", "e", 0, -1, 104.0)),
            *(("q", "b", 1, 8, 101.0), ("q", "d", 0, -1, 101.0)),
        ]
        wrong = made(events, TestMoments.PARTS, tmp_path / "wrong", {"test": TestLists().lists(events, {("p", "x"): ("ca", "c")})})
        with pytest.raises(DataError, match="1 lists in 'x' for choices that are no events"):
            score(Recent(wrong.schema), wrong, "test", task=NEXT)

    def test_sampled_lists_are_an_events_own(self, tmp_path: Path) -> None:
        events, part = random_log(4)
        data = made(events, part, tmp_path)
        found = named(score(Dot(data.schema), data, "test", task=NEXT, candidates="sampled", sampled=2), data)
        assert found["group"].n_unique() == part.count("test")
        for _, query in found.group_by("group"):
            assert query["label"].to_list().count(1) == 1
            assert query["item"].n_unique() == 3

    def test_a_limit_takes_events(self, tmp_path: Path) -> None:
        data = made(*random_log(3), tmp_path)
        both = score(Dot(data.schema), data, "test", task=NEXT, k=3)
        limited = score(Dot(data.schema), data, "test", task=NEXT, k=3, limit=2)
        assert limited.frame.select("domain", "group").unique().group_by("domain").len()["len"].to_list() == [2, 2]
        assert limited.frame.join(both.frame, on=both.frame.columns, how="semi").height == limited.frame.height


class TestLists:
    def lists(self, events: Events, given: dict[tuple[str, str], tuple[str, str]]) -> Candidates:
        """(user, domain) -> one-letter items and which of them are relevant."""
        users, items = list(events.user_ids), list(events.item_ids)
        flat = [(items.index(i), i in right) for text, right in given.values() for i in text]
        return Candidates(
            np.array([users.index(user) for user, _ in given]),
            np.array([events.schema.domain_index(domain) for _, domain in given]),
            np.cumsum([0, *(len(text) for text, _ in given.values())]),
            np.array([i for i, _ in flat]),
            np.array([right for _, right in flat]),
            "lists of the test",
            {"y": "other lists"},
        )

    @pytest.fixture
    def events(self) -> Events:
        rows = [("p", "a", "x"), ("q", "b", "x"), ("p", "d", "y"), ("q", "c", "x"), ("p", "b", "x"), ("p", "c", "x"), ("q", "a", "y")]
        return log([*rows, ("q", "d", "x")], extra_items=["e"])

    PARTS = ("train",) * 3 + ("valid",) + ("test",) * 4

    def test_exactly_as_given(self, events: Events, tmp_path: Path) -> None:
        given = {("q", "y"): ("eda", "a"), ("p", "x"): ("cebaa", "bc"), ("q", "x"): ("ba", "d")}
        data = made(events, self.PARTS, tmp_path, {"test": self.lists(events, given)})
        model = Dot(data.schema)
        scores = score(model, data, "test", task=RETRIEVAL)
        found = named(scores, data)
        by_query = {key: "".join(q["item"]) for key, q in found.group_by("user", "domain", maintain_order=True)}
        assert by_query == {("p", "x"): "cebaa", ("q", "x"): "ba", ("q", "y"): "eda"}
        p = found.filter(pl.col("user") == "p")
        assert p["label"].to_list() == [1, 0, 1, 0, 0]
        assert p["row"].to_list() == [5, -1, 4, -1, -1]
        assert p["relevant"].unique().to_list() == [2]
        assert found.filter(pl.col("user") == "q", pl.col("domain") == "x")["relevant"].to_list() == [1, 1]  # d is not in the list
        expected = (model.user[scores.frame["user"].to_list()] * model.item[scores.frame["item"].to_list()]).sum(1)
        assert p["score"].to_list() == expected[: len(p)].tolist()
        assert (scores.kind, scores.lists) == ("lists", {"x": "lists of the test", "y": "other lists"})
        assert scores.name == "lists of the test, other lists"

    def test_padding_and_blocks_change_nothing(self, events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = {("q", "y"): ("eda", "a"), ("p", "x"): ("cebaa", "bc"), ("q", "x"): ("ba", "")}
        data = made(events, self.PARTS, tmp_path, {"test": self.lists(events, given)})
        whole = score(Plain(data.schema), data, "test", task=RETRIEVAL).frame
        monkeypatch.setattr("isthmus.score.PAIRS", 1)
        assert score(Plain(data.schema), data, "test", task=RETRIEVAL).frame.equals(whole)

    def test_the_full_catalogue_can_be_asked_for(self, events: Events, tmp_path: Path) -> None:
        data = made(events, self.PARTS, tmp_path, {"test": self.lists(events, {("p", "x"): ("cb", "bc")})})
        assert score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates="full").kind == "full"
        with pytest.raises(DataError, match="no lists for part 'valid'"):
            score(Dot(data.schema), data, "valid", task=RETRIEVAL, candidates="lists")

    def test_lists_of_users_without_events_are_refused(self, events: Events, tmp_path: Path) -> None:
        data = made(events, self.PARTS, tmp_path, {"test": self.lists(events, {("p", "y"): ("cb", "")})})
        with pytest.raises(DataError, match="1 lists in 'y' for users without events"):
            score(Dot(data.schema), data, "test", task=RETRIEVAL)

    def test_sampled_lists(self, tmp_path: Path) -> None:
        events, part = random_log(4)
        data = made(events, part, tmp_path)
        scores = score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates="sampled", sampled=2)
        assert scores.kind == "sampled"
        assert scores.name == "2 sampled items"
        rows = list(zip(events.frame().select("user", "item", "domain").iter_rows(), part, strict=True))
        for (domain, user), query in named(scores, data).group_by("domain", "user"):
            relevant = {i for (u, i, d), p in rows if (u, d) == (user, domain) and p == "test"}
            seen = {i for (u, i, d), p in rows if (u, d) == (user, domain) and p != "test"}
            others = query.filter(pl.col("label") == 0)["item"].to_list()
            assert set(query.filter(pl.col("label") == 1)["item"]) == relevant
            assert len(others) == len(set(others)) == 2
            assert not set(others) & (relevant | seen)
            assert set(others) <= {i for (_, i, d), _ in rows if d == domain}
        again = score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates="sampled", sampled=2, domains=(1,))
        assert again.frame.equals(scores.frame.filter(pl.col("domain") == "y"))

    def test_more_samples_than_items_are_refused(self, tmp_path: Path) -> None:
        data = made(*random_log(4), tmp_path)
        with pytest.raises(ConfigError, match="40 sampled items"):
            score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates="sampled", sampled=40)


class TestRows:
    ROWS = tuple((f"u{n % 5}", f"i{n % 7}", "xy"[n % 2], n, float(n % 3 == 0)) for n in range(60))
    PARTS = ("train",) * 30 + ("valid",) * 10 + ("test",) * 20

    def data(self, path: Path) -> tuple[Events, Dataset]:
        events = log(self.ROWS, "time", "label")
        return events, made(events, self.PARTS, path)

    def test_every_row_once_with_its_own_score(self, tmp_path: Path) -> None:
        events, data = self.data(tmp_path)
        model = Dot(data.schema)
        scores = score(model, data, "test", how=How(batch_size=7))
        assert (scores.kind, scores.task, scores.part) == ("rows", "ctr", "test")
        found = named(scores, data).sort("row")
        original = events.frame()[40:]
        assert found["row"].to_list() == list(range(40, 60))
        assert found.select("user", "item", "domain").equals(original.select("user", "item", "domain"))
        assert found["label"].to_list() == original["label"].to_list()
        codes = scores.frame.sort("row")
        dot = (model.user[codes["user"].to_list()] * model.item[codes["item"].to_list()]).sum(1).numpy()
        assert codes["score"].to_list() == (dot * np.where(codes["domain"] == "x", 1, 2)).tolist()
        assert codes["group"].to_list() == codes["user"].to_list()

    def test_a_limit_is_a_random_but_constant_choice(self, tmp_path: Path) -> None:
        _, data = self.data(tmp_path)
        model = Dot(data.schema)
        few = score(model, data, "test", limit=4, how=How(batch_size=3)).frame
        assert few.group_by("domain").len().sort("domain")["len"].to_list() == [4, 4]
        assert few["row"].n_unique() == 8
        assert sorted(few["row"]) != [*range(40, 48)]
        assert few.equals(score(model, data, "test", limit=4, how=How(batch_size=3)).frame)
        assert score(model, data, "test", limit=4, domains=(1,)).frame["domain"].unique().to_list() == ["y"]
        assert score(model, data, "test", limit=100).frame.height == 20

    def test_ranking_clicks_counts_clicks_alone_as_relevant(self, tmp_path: Path) -> None:
        events, data = self.data(tmp_path)
        scores = score(Dot(data.schema), data, "test", task=RETRIEVAL)
        clicked = events.frame()[40:].filter(pl.col("label") == 1).select("user", "item", "domain").unique()
        found = named(scores, data).filter(pl.col("label") == 1).select("user", "item", "domain")
        assert found.sort(pl.all()).equals(clicked.sort(pl.all()))

    def test_ratings_stay_within_the_range_of_training(self, tmp_path: Path) -> None:
        rows = tuple((f"u{n % 5}", f"i{n % 7}", "xy"[n % 2], n, float(n % 3 + 1) if n < 40 else 9.0) for n in range(60))
        data = made(log(rows, "time", "label"), self.PARTS, tmp_path)
        assert data.schema.rating_range == (1.0, 3.0)
        codes = score(model := Dot(data.schema), data, "test").frame
        dot = (model.user[codes["user"].to_list()] * model.item[codes["item"].to_list()]).sum(1).numpy()
        dot *= np.where(codes["domain"] == "x", 1, 2)
        assert {bool(v) for v in (dot < 1)} == {bool(v) for v in (dot > 3)} == {False, True}
        assert codes["score"].to_list() == np.clip(dot, 1, 3).tolist()
        ranked = score(model, data, "test", task=RETRIEVAL).frame["score"]
        assert float(ranked.max()) > 3  # type: ignore[arg-type]

    def test_what_does_not_exist_is_named(self, tmp_path: Path) -> None:
        _, data = self.data(tmp_path)
        for options, message in (
            ({"part": "tset"}, "did you mean 'test'"),
            ({"domains": (2,)}, "domain indices"),
            ({"candidates": "ful", "task": RETRIEVAL}, "did you mean 'full'"),
        ):
            with pytest.raises(ConfigError, match=message):
                score(Dot(data.schema), data, **options)


class TestRanking:
    @settings(max_examples=50, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 9))
    def test_ties_share_their_mean_rank_and_are_counted(self, seed: int, n: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        table = rng.integers(0, 4, (3, n)).astype(np.float32)
        table[rng.random(table.shape) < 0.2] = -np.inf
        expected = pl.DataFrame(table.T).select(pl.all().rank("average", descending=True)).to_numpy().T
        row, column = np.nonzero(table > -np.inf)
        found = ranks(torch.tensor(table), torch.tensor(row), torch.tensor(column))
        tied = (table[:, None] == table[..., None]).sum(2)
        assert found[0].tolist() == expected[row, column].tolist()
        assert found[1].tolist() == tied[row, column].tolist()
        row, column, value, rank, level = (t.numpy() for t in best(torch.tensor(table), min(k, n)))
        assert level.tolist() == tied[row, column].tolist()
        assert value.tolist() == table[row, column].tolist()
        assert rank.tolist() == expected[row, column].tolist()
        for r in range(3):
            kept = sorted(table[r][table[r] > -np.inf], reverse=True)[:k]
            assert value[row == r].tolist() == kept


class TestScores:
    FRAME = pl.DataFrame({"user": ["p", "p", "q"], "item": [1, 2, 1], "domain": ["x", "y", "x"], "label": [1, 0, 1], "score": [0.5, 2, 1]})

    def test_saved_scores_come_back(self, tmp_path: Path) -> None:
        data = made(*random_log(5), tmp_path)
        for kind in ("full", "sampled"):
            scores = score(Dot(data.schema), data, "test", task=RETRIEVAL, candidates=kind, sampled=1, k=2)
            scores.save(tmp_path / "s.parquet")
            loaded = Scores.load(tmp_path / "s.parquet")
            assert loaded.frame.equals(scores.frame)
            assert loaded.frame.schema == scores.frame.schema
            assert (loaded.kind, loaded.task, loaded.part, loaded.lists) == (scores.kind, "retrieval", "test", scores.lists)

    def test_another_librarys_scores(self, tmp_path: Path) -> None:
        for frame in (self.FRAME, self.FRAME.to_pandas(), self.FRAME.to_arrow()):
            scores = Scores.from_frame(frame, "lists", lists={"x": "theirs"})
            assert scores.frame["group"].n_unique() == 3
            assert scores.frame["row"].to_list() == [-1, -1, -1]
            assert scores.name == "theirs"
        assert Scores.from_frame(self.FRAME).frame["group"].to_list() == [0, 0, 1]
        pq.write_table(self.FRAME.to_arrow(), tmp_path / "foreign.parquet")
        assert Scores.load(tmp_path / "foreign.parquet").kind == "rows"
        table = measure(Scores.from_frame(self.FRAME), ["auc"], resamples=0)
        assert table.filter(pl.col("domain") == "y")["value"].to_list() == [None]

    def test_columns_are_checked(self) -> None:
        with pytest.raises(ColumnError, match="without \\['label'\\]"):
            Scores.from_frame(self.FRAME.drop("label"))
        with pytest.raises(ColumnError, match="rank"):
            Scores.from_frame(self.FRAME, "full")
        with pytest.raises(ColumnError, match="wrong type"):
            Scores.from_frame(self.FRAME.with_columns(pl.lit("high").alias("score")))
        for bad in (float("nan"), float("inf"), None):
            with pytest.raises(DataError, match="1 lines"):
                Scores.from_frame(self.FRAME.with_columns(pl.Series("score", [bad, 1.0, 2.0])))
        with pytest.raises(DataError, match="1 lines"):
            Scores.from_frame(pd.DataFrame({**self.FRAME.to_dict(as_series=False), "user": ["p", None, "q"]}))
        with pytest.raises(ConfigError, match="kind 'listed'"):
            Scores.from_frame(self.FRAME, "listed")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("rank", "tied", "lines"), [([1.5, 1.5], [2, 0], 1), ([1.0, 2.0], [1, None], 1), ([1.0, 1.5], [1, 3], 1), ([3.0, 3.0], [1, 1], 2)]
    )
    def test_ties_that_cannot_be_are_refused(self, rank: list[float], tied: list[int | None], lines: int) -> None:
        one = {"user": 0, "item": [1, 2], "domain": "x", "label": [0, 1], "score": [2.0, 1.0], "rank": rank, "tied": tied, "relevant": 1}
        with pytest.raises(DataError, match=f"(?s){lines} lines whose rank and tied cannot be.*at least 1.*leave tied out"):
            Scores.from_frame(pl.DataFrame(one), "full")

    def test_ties_of_another_library(self, tmp_path: Path) -> None:
        """Places 3 to 7 tied, one of two relevant items among them; one relevant item stands outside the catalogue."""
        one = {"user": 0, "item": [1, 2, 3], "domain": "x", "label": [0, 1, 1], "score": [2.0, 1.0, 0.0], "relevant": 2}
        frame = pl.DataFrame({**one, "rank": [1.0, 5.0, math.inf], "tied": [1, 5, 1]})
        frame.write_parquet(tmp_path / "theirs.parquet")
        for scores, expected in ((Scores.load(tmp_path / "theirs.parquet"), 1 / 5), (Scores.from_frame(frame.drop("tied"), "full"), 0)):
            found = measure(scores, ["recall@4"], resamples=0).filter(pl.col("domain") == "x", pl.col("state") == "all")
            assert found["value"].to_list() == pytest.approx([expected])

    def test_only_like_scores_are_joined(self) -> None:
        first = Scores.from_frame(self.FRAME, task="ctr")
        assert len(Scores.concat([first, first])) == 6
        with pytest.raises(ConfigError, match="to be joined"):
            Scores.concat([first, replace(first, part="test")])
        with pytest.raises(ConfigError, match="to be joined"):
            Scores.concat([])

    def test_files_that_are_no_scores(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is missing"):
            Scores.load(tmp_path / "none.parquet")
        Scores.from_frame(self.FRAME).save(tmp_path / "s.parquet")
        (tmp_path / "cut.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:-20])
        with pytest.raises(SourceError, match="cannot be read"):
            Scores.load(tmp_path / "cut.parquet")
