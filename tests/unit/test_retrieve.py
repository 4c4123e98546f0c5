"""Retrieval against brute force over ids, for dot products, other models and indexes; lists on disk and from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus import Recommender
from isthmus.batch import Batch, Needs, Output
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError, DataError
from isthmus.how import How
from isthmus.layers import topk
from isthmus.lists import write_lists
from isthmus.model import Model, Retriever
from isthmus.retrieve import build_index, retrieve
from isthmus.schema import Schema


class Dot(Retriever):
    """Fixed random vectors, rounded so that scores tie."""

    def __init__(self, schema: Schema, *, levels: int = 2, seed: int = 5) -> None:
        super().__init__(schema)
        rng = torch.Generator().manual_seed(seed)
        self.user = torch.randint(-levels, levels + 1, (schema.user.size, 4), generator=rng).float()
        self.item = torch.randint(-levels, levels + 1, (schema.item.size, 4), generator=rng).float()

    def user_vector(self, batch: Batch) -> Tensor:
        assert not self.training
        return self.user[batch.user]

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        return self.item[item] * (1 + domain[..., None])


class Plain(Model):
    """The same scores without the dot product in sight."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.dot = Dot(schema)

    def forward(self, batch: Batch) -> Output:
        return self.dot(batch)


class Reads(Model):
    """Scores that show what was read: events in the own and the other histories, and a context field."""

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, context=True)

    def forward(self, batch: Batch) -> Output:
        assert batch.history is not None
        assert batch.cross_history is not None
        read = (batch.history > 0).sum(1) + 100 * (batch.cross_history > 0).sum(1) + 10_000 * batch.context["place"]
        return Output(read[:, None].float().expand(batch.item.shape))


def frame(rows: int = 900, users: int = 25, items: int = 90) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in rng.integers(0, users, rows)],
            "item": [f"i{n}" for n in rng.integers(0, items, rows)],
            "domain": rng.choice(["x", "y"], rows, p=[0.7, 0.3]),
            "time": rng.permutation(rows),
            "place": rng.choice(["home", "away"], rows),
        }
    ).sort("time")


def encoded(folder: Path, *, timed: bool) -> Dataset:
    columns = {"user": "user", "item": "item", "domain": "domain"} | ({"time": "time"} if timed else {})
    events = read_events(frame(), **columns, context=["place"] if timed else [])
    return encode(events, split.given(events, ["train"] * 600 + ["valid"] * 100 + ["test"] * 200), folder / "data")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return encoded(tmp_path_factory.mktemp("timed"), timed=True)


@pytest.fixture(scope="module")
def untimed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return encoded(tmp_path_factory.mktemp("untimed"), timed=False)


def brute(
    model: Dot, data: Dataset, user: int, domain: int, k: int, shown: pl.DataFrame, seen: pl.DataFrame | None
) -> list[tuple[int, float]]:
    """From the ids alone: ``shown`` are the rows that the catalogue knows, ``seen`` those that the user is kept from."""
    name = data.schema.domain_names[domain]
    code = {i: int(c) for i, c in zip(shown["item"], data.item_vocabulary.encode(shown["item"]), strict=True)}
    allowed = set(shown.filter(pl.col("domain") == name)["item"])
    if seen is not None:
        who = data.user_vocabulary.decode([user])[0] or "nobody"
        allowed -= set(seen.filter((pl.col("domain") == name) & (pl.col("user") == who))["item"])
    score = {code[i]: float(model.user[user] @ model.item[code[i]]) * (1 + domain) for i in allowed}
    return sorted(score.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def agree(found: tuple[np.ndarray, np.ndarray], expected: list[list[tuple[int, float]]], k: int) -> None:
    for item, score, right in zip(*found, expected, strict=True):
        assert item.tolist() == [i for i, _ in right] + [0] * (k - len(right))
        assert score.tolist() == [s for _, s in right] + [-np.inf] * (k - len(right))


@settings(max_examples=25, deadline=None)
@given(
    plain=st.booleans(),
    domain=st.integers(0, 1),
    k=st.sampled_from([1, 7, 200]),
    moment=st.sampled_from([None, 0, 350, 800, "each"]),
    exclude=st.booleans(),
    catalogue=st.sampled_from(["train", "valid", "test"]),
    blocks=st.sampled_from([(256, 1 << 15), (3, 8), (1, 1000)]),
)
def test_retrieval_equals_brute_force(
    data: Dataset, plain: bool, domain: int, k: int, moment: int | str | None, exclude: bool, catalogue: str, blocks: tuple[int, int]
) -> None:
    events = frame()
    user = np.random.default_rng(k).integers(1, data.schema.user.size, 30)  # repeated ones, and the unknown user
    time = np.random.default_rng(1).integers(0, 900, 30) if moment == "each" else moment
    until = np.broadcast_to(10**9 if time is None else time, 30)
    known = {"train": 600, "valid": 700, "test": 900}[catalogue]
    model = Plain(data.schema) if plain else Dot(data.schema)
    before, topk.ROWS, topk.COLUMNS = (topk.ROWS, topk.COLUMNS), *blocks
    try:
        found = retrieve(model, data, user, domain, k=k, time=time, exclude_seen=exclude, catalogue=catalogue)  # type: ignore[arg-type]
    finally:
        topk.ROWS, topk.COLUMNS = before
    dot = model.dot if isinstance(model, Plain) else model
    seen = [events.filter(pl.col("time") < t) if exclude else None for t in until]
    expected = [brute(dot, data, int(u), domain, k, events[:known], s) for u, s in zip(user, seen, strict=True)]
    agree((found.item, found.score), expected, k)
    assert (found.item.dtype, found.score.dtype, len(found)) == (np.int64, np.float32, 30)


def test_without_times_the_training_positives_are_left_out(untimed: Dataset) -> None:
    model, user = Dot(untimed.schema), np.arange(2, untimed.schema.user.size)
    found = retrieve(model, untimed, user, 0, k=100)
    agree((found.item, found.score), [brute(model, untimed, int(u), 0, 100, frame(), frame()[:600]) for u in user], 100)


def test_users_come_in_blocks_too(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, user = Dot(data.schema), np.random.default_rng(0).integers(1, data.schema.user.size, 50)
    whole = retrieve(model, data, user, 0, k=9, time=np.arange(50) * 20)
    monkeypatch.setattr("isthmus.retrieve.USERS", 7)
    monkeypatch.setattr("isthmus.retrieve.BATCH", 3)
    monkeypatch.setattr("isthmus.retrieve.PAIRS", 20)
    for other in (model, Plain(data.schema)):
        parts = retrieve(other, data, user, 0, k=9, time=np.arange(50) * 20)
        assert parts.item.tolist() == whole.item.tolist()
        assert parts.score.tolist() == whole.score.tolist()
    assert retrieve(model, data, user[:0], 0, k=9).item.shape == (0, 9)


def test_the_mode_of_the_model_comes_back(data: Dataset) -> None:
    model = Dot(data.schema).train()
    retrieve(model, data, np.array([2]), 0)
    assert model.training


def test_histories_and_context_are_those_of_the_moment(data: Dataset) -> None:
    events, user = frame(), np.array([2, 3, 4])
    model, ids = Reads(data.schema), data.user_vocabulary.decode([2, 3, 4])
    place = data.field_vocabulary("context", "place").encode(["home", "away", "home"])
    until = np.array([100, 400, 900])

    def read(how: How, context: dict[str, np.ndarray] | None) -> list[float]:
        return retrieve(model, data, user, 0, k=1, time=until, how=how, context=context).score[:, 0].tolist()

    counts = [events.filter((pl.col("user") == u) & (pl.col("time") < t)) for u, t in zip(ids, until, strict=True)]
    own = np.array([c.filter(pl.col("domain") == "x").height for c in counts])
    other = np.array([c.height for c in counts]) - own
    assert read(How(), {"place": place}) == (own + 100 * other + 10_000 * place).tolist()
    assert read(How(history_length=3), {"place": place}) == (np.minimum(own, 3) + 100 * np.minimum(other, 3) + 10_000 * place).tolist()
    assert read(How(domains=(0,)), {"place": place}) == (own + 10_000 * place).tolist()  # trained on one domain: sees no other
    assert read(How(), None) == (own + 100 * other + 10_000).tolist()  # an unknown place


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_an_index_answers_as_the_model_does(data: Dataset, kind: str) -> None:
    model, user = Dot(data.schema, levels=40), np.arange(1, data.schema.user.size)
    index = build_index(model, data, 0, kind, k=20, target_recall=0.2)  # type: ignore[arg-type]
    if kind == "hnsw":
        assert index.kind == kind, index.note
    found, right = retrieve(model, data, user, 0, k=20, index=index), retrieve(model, data, user, 0, k=20)
    share = np.mean([len(set(a[a > 0]) & set(b[b > 0])) / (b > 0).sum() for a, b in zip(found.item, right.item, strict=True)])
    assert share == 1 if index.kind == "exact" else share >= 0.9 * index.recall
    full = retrieve(model, data, user, 0, k=200)
    for row in range(len(user)):
        assert set(found.item[row]) <= set(full.item[row])  # nothing seen, nothing from elsewhere


def test_an_index_of_something_else_is_refused(data: Dataset, untimed: Dataset) -> None:
    model, user = Dot(data.schema), np.array([2, 3])
    index = build_index(model, data, 0)
    with pytest.raises(ConfigError, match="index of domain 'x'"):
        retrieve(model, data, user, 1, index=index)
    with pytest.raises(ConfigError, match="index of schema"):
        retrieve(Dot(untimed.schema), untimed, user, 0, index=index)
    with pytest.raises(ConfigError, match="other item vectors"):
        retrieve(Dot(data.schema, seed=6), data, user, 0, index=index)
    with pytest.raises(ConfigError, match="Plain, whose score is no dot product"):
        retrieve(Plain(data.schema), data, user, 0, index=index)
    with pytest.raises(ConfigError, match="Plain, whose score is no dot product"):
        build_index(Plain(data.schema), data, 0)


def test_wrong_use(data: Dataset) -> None:
    model, user = Dot(data.schema), np.array([2, 3])
    for options, message in (({"k": 0}, "k = 0"), ({"domain": 2}, "domain index 2"), ({"catalogue": "tset"}, "did you mean 'test'")):
        with pytest.raises(ConfigError, match=message):
            retrieve(model, data, user, **{"domain": 0, **options})  # type: ignore[arg-type]
    for bad in ([-1], [data.schema.user.size], [[2]]):
        with pytest.raises(ConfigError, match="codes"):
            retrieve(model, data, np.array(bad), 0)
    model.item[:] = float("nan")
    with pytest.raises(DataError, match="not numbers"):
        retrieve(model, data, user, 0)


@pytest.mark.parametrize("model", [Dot, Plain])
def test_lists_on_disk(data: Dataset, tmp_path: Path, model: type[Dot] | type[Plain], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.lists.BLOCK", 4)
    fitted, path = model(data.schema), tmp_path / "top.parquet"
    rows, note = write_lists(path, fitted, data, "y", k=8)
    found = pl.read_parquet(path)
    assert found.columns == ["user", "domain", "item", "rank", "score"]
    assert found.height == rows
    assert note.startswith("exact" if model is Dot else "every item")
    assert set(found["user"]) == set(frame().filter(pl.col("domain") == "y")["user"])
    for (user,), mine in found.group_by("user"):
        code = data.user_vocabulary.encode([user])
        right = retrieve(fitted, data, code, 1, k=8)
        assert mine["item"].to_list() == data.item_vocabulary.decode(right.item[0][right.item[0] > 0]).to_list()
        assert mine["rank"].to_list() == list(range(1, mine.height + 1))
        assert mine["score"].to_list() == right.score[0][: mine.height].tolist()
    write_lists(path, fitted, data, "y", ["u3", "a stranger"], k=8)
    assert pl.read_parquet(path)["user"].unique(maintain_order=True).to_list() == ["u3", "a stranger"]
    assert [p.name for p in tmp_path.iterdir()] == ["top.parquet"]
    with pytest.raises(ConfigError, match="did you mean"):
        write_lists(path, fitted, data, "yy")
    with pytest.raises(ConfigError, match="no users"):
        write_lists(path, fitted, data, "y", [])


def test_recommendations_come_from_the_same_place() -> None:
    events = frame().drop("place")
    rec = Recommender("mf", dim=4, fit={"progress": False}).fit(events, user="user", item="item", domain="domain", time="time")
    found = rec.recommend("u3", "x", k=500)
    seen = events.filter((pl.col("user") == "u3") & (pl.col("domain") == "x"))["item"]
    shown = events.filter(pl.col("domain") == "x")["item"]
    assert set(found["item"]) == set(shown) - set(seen)
    some = found["item"][:20].to_list()
    again = rec.recommend("u3", "x", k=20, items=some[::-1])
    assert dict(again.iter_rows()) == pytest.approx(dict(found[:20].iter_rows()), abs=1e-5)
    assert set(rec.recommend("u3", "x", k=500, exclude_seen=False)["item"]) == set(shown)


def test_what_happens_at_the_moment_is_not_seen_yet(data: Dataset) -> None:
    events = frame().filter(pl.col("domain") == "x")
    user, time = data.user_vocabulary.encode(events["user"]), events["time"].to_numpy()
    found = retrieve(Dot(data.schema), data, user, 0, k=200, time=time)
    code = data.item_vocabulary.encode(events["item"])
    before = events.select((pl.int_range(pl.len()).over("user", "item") > 0).alias("before"))["before"].to_numpy()
    assert ((found.item == code[:, None]).any(1) == ~before).all()
    assert before.any()
