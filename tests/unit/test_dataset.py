"""Encoded data sets against brute force over the events; and whole or not at all, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import arrow
from isthmus.data import split as splits
from isthmus.data.by_domain import Shown
from isthmus.data.chunks import Growing
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.split import PARTS, Candidates, Split
from isthmus.errors import ConfigError, SourceError, SplitError, StorageError
from isthmus.schema import Field

LABELS = {"implicit": [1.0], "click": [0.0, 1.0], "rating": [0.0, 0.5, 2.0, 5.0]}
USERS, ITEMS, DOMAINS = ["ann", "bob", "cem", "dot", "eve", "flo"], [7, 3, 9, 1, 12, 40], ["x", "y", "z"]


def make_events(rows: list[tuple], label: str, timed: bool = True) -> Events:
    """Events of (user, item, domain, time, label, category, number, tags) tuples, with side tables of known content."""
    names = ["u", "i", "d", "t", "y", "cat", "num", "tags"]
    frame = pl.DataFrame(rows, names, orient="row", schema_overrides={"cat": pl.String, "num": pl.Float32, "tags": pl.List(pl.Int64)})
    users = pl.DataFrame({"u": ["eve", "ann", "gus", "bob"], "age": [10.0, None, 30.0, 40.0], "town": ["p", "q", "only gus", None]})
    items = pl.DataFrame({"i": [3, 50, 7], "words": [["v", "w", "v"], ["only 50"], None]}, schema_overrides={"words": pl.List(pl.String)})
    return read_events(
        frame,
        user="u",
        item="i",
        domain="d",
        time="t" if timed else None,
        label=None if label == "implicit" else "y",
        label_kind=label,  # type: ignore[arg-type]
        context=("cat", "num", "tags"),
        users=users,
        items=items,
    )


@st.composite
def cases(draw) -> tuple[Events, Split]:
    label = draw(st.sampled_from(sorted(LABELS)))
    row = st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from(DOMAINS),
        st.integers(0, 9),
        st.sampled_from(LABELS[label]),
        st.sampled_from([None, "p", "q", "r"]),
        st.sampled_from([None, 1.0, 2.5, -4.0]),
        st.lists(st.integers(1, 3), max_size=3),
    )
    rows = draw(st.lists(row, min_size=1, max_size=40))
    parts = draw(st.lists(st.sampled_from(PARTS), min_size=len(rows), max_size=len(rows)))
    for domain in DOMAINS:  # every domain has a training event, and a positive
        rows.append(("ann", 7, domain, 0, LABELS[label][-1], "p", 1.0, [1]))
        parts.append("train")
    events = make_events(rows, label, timed=draw(st.booleans()))
    return events, splits.given(events, parts)


def encoded(events: Events, split: Split, folder: Any) -> Dataset:
    return encode(events, split, Path(folder) / "data", overwrite=True)


def rows_of(events: Events, split: Split, part: str) -> pl.DataFrame:
    """The part's rows in stored order: by domain, then as they came."""
    frame = events.frame().with_columns(part=pl.Series([PARTS[p] for p in split.part]), row=np.arange(len(events)))
    order = {name: n for n, name in enumerate(events.schema.domain_names)}
    chosen = frame.filter(pl.col("part") == part)
    return chosen.with_columns(d=pl.col("domain").replace_strict(order)).sort("d", maintain_order=True)


def positives(events: Events, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("label") == 1) if events.schema.label == "click" else frame


@settings(deadline=None, max_examples=25)
@given(cases())
def test_codes_follow_frequency_in_training(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    train = rows_of(events, split, "train")
    for name, vocabulary, entity, known in (
        ("user", data.user_vocabulary, data.schema.user, events.user_ids),
        ("item", data.item_vocabulary, data.schema.item, events.item_ids),
    ):
        count = Counter(train[name])
        assert vocabulary.ids.to_list() == sorted(known, key=lambda one: (-count[one], one))
        assert entity.size == vocabulary.size == 2 + len(known)
        assert entity.trained == vocabulary.trained == 2 + len(count)
        for one in known:  # unseen in training: from `trained` on
            assert (vocabulary.encode([one])[0] < entity.trained) == (one in count)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_parts_hold_the_events(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    for part in ("train", "valid", "test"):
        rows, expected = data.part(part), rows_of(events, split, part)
        assert data.user_vocabulary.decode(rows.user).to_list() == expected["user"].to_list()
        assert data.item_vocabulary.decode(rows.item).to_list() == expected["item"].to_list()
        assert [DOMAINS[d] for d in rows.domain] == expected["domain"].to_list()
        assert rows.row.tolist() == expected["row"].to_list()
        assert rows.offsets.tolist() == [int((rows.domain < d).sum()) for d in range(4)]
        assert len(rows) == len(expected) == sum(data.manifest["rows"][part])
        for name in ("time", "label"):
            column = getattr(rows, name)
            assert column is None if name not in expected.columns else column.tolist() == expected[name].to_list()


@settings(deadline=None, max_examples=25)
@given(cases())
def test_fields_are_learnt_from_training_alone(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    train = rows_of(events, split, "train")
    trained = set(train["user"])
    assert events.users is not None
    users = dict(zip(events.users["id"], events.users.select("age", "town").rows(), strict=True))
    # numbers: mean and deviation over the users seen in training
    ages = np.array([users[u][0] for u in trained if u in users and users[u][0] is not None])
    mean, deviation = (ages.mean(), ages.std() or 1.0) if len(ages) else (0.0, 1.0)
    assert data.scaler("user", "age") == pytest.approx((mean, deviation))
    towns = Counter(users[u][1] for u in trained if u in users and users[u][1] is not None)
    ordered = sorted(towns, key=lambda town: (-towns[town], town))
    assert data.field_vocabulary("user", "town").ids.to_list() == ordered
    table = data.user_table
    assert table.numeric.shape == table.categorical.shape == (data.schema.user.size, 1)
    assert table.categorical[:2, 0].tolist() == [0, 1]
    for code, user in enumerate([None, None, *data.user_vocabulary.ids]):
        age, town = users.get(user, (None, None))
        expected = np.nan if age is None else (age - mean) / deviation
        assert table.numeric[code, 0] == pytest.approx(expected, abs=1e-5, nan_ok=True)
        if code > 1:
            assert table.categorical[code, 0] == (0 if town is None else 2 + ordered.index(town) if town in towns else 1)
    assert "only gus" not in ordered


@settings(deadline=None, max_examples=25)
@given(cases())
def test_lists_and_context_are_learnt_from_training_alone(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    train = rows_of(events, split, "train")
    words = {3: ["v", "w", "v"], 50: ["only 50"]}
    count = Counter(word for item in set(train["item"]) for word in words.get(item, []))
    ordered = sorted(count, key=lambda word: (-count[word], word))
    offsets, flat = data.item_table.multi["words"]
    assert data.field_vocabulary("item", "words").ids.to_list() == ordered
    assert flat[offsets[0] : offsets[2]].tolist() == [1]  # padding has none, unknown has the unknown word
    for code, item in enumerate(data.item_vocabulary.ids, start=2):
        expected = [2 + ordered.index(word) if word in count else 1 for word in words.get(item, [])]
        assert flat[offsets[code] : offsets[code + 1]].tolist() == expected
    numbers = train["num"].drop_nulls().to_numpy().astype(float)
    mean, deviation = (numbers.mean(), numbers.std() or 1.0) if len(numbers) else (0.0, 1.0)
    cats, tags = Counter(train["cat"].drop_nulls()), Counter(train["tags"].explode(empty_as_null=False))
    cat_order, tag_order = (sorted(c, key=lambda v: (-c[v], v)) for c in (cats, tags))
    assert [f.size for f in data.schema.context] == [2 + len(cats), 0, 2 + len(tags)]
    for part in ("train", "valid", "test"):
        rows, expected = data.part(part), rows_of(events, split, part)
        codes = [0 if c is None else 2 + cat_order.index(c) if c in cats else 1 for c in expected["cat"]]
        assert rows.context["cat"].tolist() == codes
        values = [np.nan if v is None else (v - mean) / deviation for v in expected["num"]]
        assert rows.context["num"] == pytest.approx(np.array(values), abs=1e-5, nan_ok=True)
        offsets, flat = rows.context["tags"]
        lists = [flat[a:b].tolist() for a, b in pairwise(offsets)]
        assert lists == [[2 + tag_order.index(t) if t in tags else 1 for t in own] for own in expected["tags"]]


@settings(deadline=None, max_examples=25)
@given(cases())
def test_counts_and_known_items(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    train = rows_of(events, split, "train")
    positive = positives(events, train)
    users, items = [None, None, *data.user_vocabulary.ids], [None, None, *data.item_vocabulary.ids]
    every_user, every_item = np.arange(len(users)), np.tile(np.arange(len(items)), (len(users), 1))
    whole = np.zeros((len(users), len(items)))
    for d, domain in enumerate(DOMAINS):
        own, pairs = train.filter(pl.col("domain") == domain), positive.filter(pl.col("domain") == domain)
        had, liked = Counter(own["user"]), Counter(pairs.select("user", "item").rows())
        assert data.events_of(every_user, d).tolist() == [had[u] for u in users]
        matrix = np.array([[liked[u, i] for i in items] for u in users])
        assert data.positives(d).toarray().tolist() == matrix.tolist()
        assert data.popularity(d).tolist() == matrix.sum(0).tolist()
        assert data.known(every_user, d, every_item).tolist() == (matrix > 0).tolist()
        whole += matrix
        seen: set[int] = set()
        for part in ("train", "valid", "test"):
            seen |= set(rows_of(events, split, part).filter(pl.col("domain") == domain)["item"])
            codes = data.catalogue(d, part)
            assert set(data.item_vocabulary.decode(codes)) == seen
            assert (np.diff(codes) > 0).all()
    assert data.positives().toarray().tolist() == whole.tolist()
    pairs = (
        data.user_vocabulary.encode(train["user"]) * len(DOMAINS) + train["domain"].replace_strict(DOMAINS, range(len(DOMAINS))).to_numpy()
    )
    found = [arrow.read(data.path / "counts" / f"{name}.arrow")["value"].tolist() for name in ("key", "count")]
    assert found == [values.tolist() for values in np.unique(pairs, return_counts=True)]
    if events.schema.label == "rating":
        mean = {key: rows["label"].mean() for key, rows in train.group_by("user", "item")}
        expected = [[mean.get((u, i), 0.0) for i in items] for u in users]
        assert data.matrix(kind="rating").toarray() == pytest.approx(np.array(expected))
        assert data.schema.rating_range == (train["label"].min(), train["label"].max())
        assert data.matrix(kind="rating").nnz == len(mean)  # a rating of 0 is an entry too
    else:
        assert data.schema.rating_range is None
        with pytest.raises(ConfigError, match="ratings"):
            data.matrix(kind="rating")


@settings(deadline=None, max_examples=25)
@given(cases())
def test_histories_hold_the_positive_events(tmp_path_factory, case):
    events, split = case
    data = encoded(events, split, tmp_path_factory.mktemp("d"))
    parts = ("train", "valid", "test", "known") if events.schema.timed else ("train",)
    rows = pl.concat([positives(events, rows_of(events, split, part)) for part in parts]).sort("row")
    for d, domain in enumerate(DOMAINS):
        for code, user in enumerate(data.user_vocabulary.ids, start=2):
            time = np.array([9]) if events.schema.timed else None
            own = rows.filter((pl.col("domain") == domain) & (pl.col("user") == user))
            found = data.history.cut(np.array([code]), time, np.array([d]), None)["item"]
            items = data.item_vocabulary.decode(found[0]).to_list()
            earlier = own.filter(pl.col("time") < 9).sort("time")["item"] if events.schema.timed else own["item"].unique()
            assert Counter(items) == Counter(earlier)


def test_nothing_later_than_training_changes_what_is_learnt(tmp_path: Path):
    rows = [(USERS[n % 5], ITEMS[n % 4], "x", n, 1.0, "p", float(n), [1]) for n in range(20)]
    later = [("flo", 12, "x", 30, 1.0, "r", 1e6, [3]), ("eve", 40, "x", 31, 1.0, "r", -1e6, [2])]
    found = []
    for more in ([], later):
        events = make_events([*rows, ("ann", 7, "x", 29, 1.0, "p", 0.0, [1]), *more], "implicit")
        data = encoded(events, splits.given(events, ["train"] * 20 + ["test"] * (1 + len(more))), tmp_path / str(len(more)))
        known = data.schema.user.trained, data.schema.item.trained
        learnt = (
            data.user_vocabulary.ids[: known[0] - 2],
            data.item_vocabulary.ids[: known[1] - 2],
            data.field_vocabulary("context", "cat").ids,
        )
        facts = [data.manifest["scalers"], [f.size for f in data.schema.context], data.popularity(0)[: known[1]].tolist()]
        found.append((known, [ids.to_list() for ids in learnt], facts))
    assert found[0] == found[1]


def simple(n: int = 300, **options: Any) -> Events:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"u": rng.integers(0, 30, n), "i": rng.integers(0, 20, n), "d": rng.choice(["x", "y"], n), "t": np.arange(n)})
    return read_events(frame, user="u", item="i", domain="d", time="t", **options)


def test_given_lists_and_shown_items(tmp_path: Path):
    events = simple(shows={"x": [0, 1, 90], "y": [91]}, extra_items=[92, 93])
    plain = splits.global_time(events)
    item = {one: n for n, one in enumerate(events.item_ids)}
    flat = [item[92], item[3], item[93], item[92]]
    user = int(events.user[0])
    lists = Candidates(np.array([user, user]), np.array([1, 0]), np.array([0, 3, 4]), np.array(flat), np.array([1, 0, 0, 1]), "real lists")
    data = encoded(events, replace(plain, candidates={"valid": lists}), tmp_path)
    read = data.candidates("valid")
    assert read is not None
    assert data.item_vocabulary.decode(read.item).to_list() == [92, 3, 93, 92]
    assert set(data.user_vocabulary.decode(read.user)) == {events.user_ids[user]}
    assert (read.domain.tolist(), read.offsets.tolist(), read.label.tolist(), read.name) == ([1, 0], [0, 3, 4], [1, 0, 0, 1], "real lists")
    assert data.candidates("test") is None

    def shown(domain: int, part: str) -> set[int]:
        return {one for one in data.item_vocabulary.decode(data.catalogue(domain, part)) if one >= 90}

    assert [shown(0, part) for part in ("train", "valid", "test")] == [{90}, {90, 92}, {90, 92}]
    assert [shown(1, part) for part in ("train", "valid", "test")] == [{91}, {91, 92, 93}, {91, 92, 93}]


def test_behaviours_have_codes_from_one(tmp_path: Path):
    frame = simple().frame().with_columns(b=pl.Series(["buy", "view", "view"] * 100))
    events = read_events(frame, user="user", item="item", domain="domain", time="time", behaviour="b", behaviours=("view", "buy"))
    rows = encoded(events, splits.global_time(events), tmp_path).part("train")
    assert rows.behaviour is not None
    assert rows.behaviour.tolist() == [2 if b == "buy" else 1 for b in frame["b"].gather(rows.row)]


AGAIN = """
import sys
import polars as pl
from isthmus.data import split
from isthmus.data.encode import encode
from isthmus.data.events import read_events

events = read_events(pl.scan_parquet(sys.argv[1]), user="user", item="item", domain="domain", time="time")
encode(events, split.global_time(events), sys.argv[2])
"""


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_same_events_give_the_same_bytes(tmp_path: Path):
    rows = [(USERS[n % 5], ITEMS[n * n % 6], DOMAINS[n % 3], n % 7, 1.0, "pqr"[n % 3], float(n), [n % 4]) for n in range(60)]
    for name in ("one", "two"):
        events = make_events(rows, "implicit")
        encode(events, splits.leave_last(events), tmp_path / name)
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    assert len(one) > 20
    simple().frame().write_parquet(tmp_path / "log")
    events = simple()
    encode(events, splits.global_time(events), tmp_path / "here")
    arguments = [sys.executable, "-c", AGAIN, str(tmp_path / "log"), str(tmp_path / "other")]
    subprocess.run(arguments, check=True, env=os.environ | {"POLARS_MAX_THREADS": "1", "PYTHONHASHSEED": "7"})
    assert content(tmp_path / "here") == content(tmp_path / "other")


@settings(max_examples=15)
@given(cases(), st.integers(1, 7), st.integers(1, 7), st.integers(0, 2), st.booleans())
def test_the_sizes_of_the_pieces_change_nothing(tmp_path_factory, case, chunk: int, block: int, threads: int, in_file: bool):
    """Pieces of events, blocks of users, threads, and columns in memory or in temporary files."""
    (events, split), folder = case, tmp_path_factory.mktemp("pieces")
    encode(events, split, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isthmus.data.chunks.CHUNK", chunk)
        patch.setattr("isthmus.data.by_user.BLOCK", block)
        patch.setattr("isthmus.data.by_user.THREADS", threads)
        patch.setattr("isthmus.data.encode.THREADS", threads)
        if in_file:
            patch.setattr("isthmus.data.chunks.memory", lambda: 0)
        again = replace(events, user=copied(events.user), item=copied(events.item), domain=copied(events.domain))
        encode(again, split, folder / "pieces")
    whole, pieces = content(folder / "whole"), content(folder / "pieces")
    scalers = [json.loads(found.pop("manifest.json")) for found in (whole, pieces)]
    assert {name for name in whole if whole[name] != pieces.get(name)} <= {
        f"{part}/context.1.values.arrow" for part in PARTS
    }  # sums of floats
    assert scalers[0]["scalers"]["context"]["num"] == pytest.approx(scalers[1]["scalers"]["context"]["num"])
    assert whole.keys() == pieces.keys()


@given(
    st.integers(1, 40),
    st.lists(st.lists(st.lists(st.lists(st.integers(0, 399), max_size=6), max_size=3), min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_a_domain_shows_what_one_of_its_parts_has_and_the_first_part_knows_it_first(size: int, domains: list[list[list[list[int]]]]):
    """Among few items and among many, where those of a small domain are put in order."""
    for items in (size, 400):
        shown = Shown(items)
        for by_part in domains:  # one after the other: nothing stays of the one before
            given_items = [[np.array(piece, np.int32) % items for piece in pieces] for pieces in by_part]
            wanted = dict[int, int]()
            for part, pieces in enumerate(given_items):
                for item in np.concatenate([np.zeros(0, np.int32), *pieces]).tolist():
                    wanted.setdefault(item, part)
            item, part = shown.find(given_items, sum(len(piece) for pieces in by_part for piece in pieces))
            assert (item.dtype, part.dtype) == (np.int32, np.int8)
            assert list(zip(item.tolist(), part.tolist(), strict=True)) == sorted(wanted.items())


@pytest.mark.parametrize("span", [1, 255, 256, 2**16, 2**32 - 1, 2**32, 2**62, 2**64 - 1])
@pytest.mark.parametrize("domains", [2, 255, 256])
def test_times_and_domains_stay_what_they_were_however_far_apart(tmp_path: Path, span: int, domains: int):
    """They pass through temporary files in the smallest types that hold them."""
    first = -(2**63) if span > 2**62 else -5
    user, domain, time = ["u"] * domains * 2, [f"{n:03}" for n in range(domains)] * 2, [first, first + span] * domains
    frame = pl.DataFrame({"u": user, "i": user, "d": domain, "t": pl.Series(time, dtype=pl.Int64)})
    events = read_events(frame, user="u", item="i", domain="d", time="t")
    encode(events, splits.given(events, ["train"] * len(frame)), tmp_path / "data")
    history = {name: arrow.read(tmp_path / "data" / "history" / f"{name}.arrow")["value"][1:].tolist() for name in ("time", "domain")}
    by_domain = frame.with_row_index().sort("d", "t", "index")
    assert history["time"] == by_domain["t"].to_list()
    assert history["domain"] == [int(name) for name in frame.with_row_index().sort("t", "index")["d"]]


def copied(column: np.ndarray) -> np.ndarray:
    found = Growing(column.dtype)
    found.append(column)
    return found.done()


def test_wrong_names(tmp_path: Path):
    events = simple()
    data = encoded(events, splits.global_time(events), tmp_path)
    for wrong in (data.part, data.candidates, lambda part: data.catalogue(0, part)):
        with pytest.raises(ConfigError, match="did you mean 'train'"):
            wrong("trian")
    with pytest.raises(ConfigError, match="'age'"):
        data.field_vocabulary("user", "age")
    with pytest.raises(ConfigError, match="'age'"):
        data.scaler("item", "age")
    assert "2 domains" in repr(data)


def test_a_split_of_other_events_is_refused(tmp_path: Path):
    events = simple()
    with pytest.raises(SplitError):
        encode(events, splits.global_time(simple(200)), tmp_path / "data")
    unused = Split(np.where(events.domain == 0, 0, 3), "by hand")
    with pytest.raises(SplitError, match=r"\['y'\] have no training events"):
        encode(events, unused, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path):
    events = simple()
    split = splits.global_time(events)
    first = encode(events, split, tmp_path / "data")
    with pytest.raises(StorageError, match="exists already"):
        encode(events, split, tmp_path / "data")
    before = first.part("train").user.tolist()
    second = encode(simple(100), splits.global_time(simple(100)), tmp_path / "data", overwrite=True)
    assert len(second.part("train")) == 80
    assert first.part("train").user.tolist() == before  # what is open stays open
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_every_damaged_file_is_noticed_on_loading(tmp_path: Path):
    rows = [(USERS[n % 5], ITEMS[n % 6], DOMAINS[n % 3], n, 1.0, "p", 1.0, [1]) for n in range(60)]
    events = make_events(rows, "implicit")
    folder = encode(events, splits.global_time(events), tmp_path / "data").path
    for file in sorted(folder.rglob("*.*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(SourceError, match=file.name):
            Dataset.load(folder)
        file.unlink()
        with pytest.raises(SourceError, match=f"{file.name} is missing"):
            Dataset.load(folder)
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        if file.name != "manifest.json":
            with pytest.raises(SourceError, match=f"{file.name} has been changed"):
                Dataset.load(folder)
        file.write_bytes(whole)
    Dataset.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [], "no object"),
        (lambda m: m | {"format": 99}, "format 99"),
        (lambda m: {k: v for k, v in m.items() if k != "files"}, "not whole"),
        (lambda m: m | {"files": [1]}, "not whole"),
        (lambda m: m | {"schema": {"user": 3}}, "not whole"),
        (lambda m: m | {"schema": m["schema"] | {"label": "clicks"}}, "not whole"),
    ],
)
def test_foreign_manifests(tmp_path: Path, change, message):
    events = simple()
    folder = encoded(events, splits.global_time(events), tmp_path).path
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(change(manifest)))
    with pytest.raises(SourceError, match=message):
        Dataset.load(folder)


def test_no_data_set_at_all(tmp_path: Path):
    with pytest.raises(SourceError, match="missing"):
        Dataset.load(tmp_path)
    with pytest.raises(SourceError, match="missing"):
        Dataset.load(tmp_path / "nowhere")


BIG = """
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a SIGINT that is ignored
import numpy as np
from isthmus.data import split
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.errors import StorageError
from isthmus.schema import Domain, Schema
import polars as pl

n, ids = int(sys.argv[2]), pl.Series("id", np.arange(50_000))
rng = np.random.default_rng(0)
schema = Schema(domains=(Domain("x"), Domain("y")), timed=True)
index = lambda high, dtype: rng.integers(0, high, n).astype(dtype)
events = Events(schema, index(50_000, np.int32), index(50_000, np.int32), index(2, np.int16), np.arange(n), None, None, {}, ids, ids)
parts = split.global_time(events)
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
print("ready", flush=True)
try:
    encode(events, parts, sys.argv[1])
except StorageError as error:
    print("refused:", error)
"""


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path):
    child = subprocess.Popen(
        [sys.executable, "-c", BIG, str(tmp_path / "data"), "3000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    while not any(file.suffix == ".arrow" for file in tmp_path.rglob("*")):  # mid-way: something is written
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert "KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_the_limit_leaves_nothing_behind(tmp_path: Path):
    arguments = [sys.executable, "-c", BIG, str(tmp_path / "data"), "100000", "300000"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "refused: the disk is full" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path):
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        result = subprocess.run([sys.executable, "-c", BIG, str(tmp_path / "data"), "100000"], capture_output=True, text=True, check=True)
        assert "refused: the disk is full" in result.stdout
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_fields_with_odd_names(tmp_path: Path):
    users = pl.DataFrame({"u": np.arange(30), "a/b": ["p", "q"] * 15, "..": np.arange(30.0)})
    events = simple(users=users, user_id="u")
    data = encoded(events, splits.global_time(events), tmp_path)
    assert data.schema.user.fields == (Field("a/b", size=4), Field("..", "numeric"))
    assert data.user_table.numeric.shape == (32, 1)
