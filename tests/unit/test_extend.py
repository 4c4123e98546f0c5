"""A data set that extends another: what was trained keeps its codes, and what the new events do not say is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from isthmus.data import split as splits
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.split import Candidates
from isthmus.errors import ConfigError, SplitError

# user, item, domain, time, rating, behaviour, category, number, tags, part
OLD = [
    ("ann", "i1", "b", 1, 3.0, "view", "p", 1.0, ["s"], "train"),
    ("ann", "i2", "c", 2, 4.0, "buy", "q", 3.0, ["t", "s"], "train"),
    ("bob", "i1", "b", 3, 2.0, "view", "p", None, [], "train"),
    ("cem", "i3", "b", 4, 5.0, "view", "r", 9.0, ["u"], "test"),
]
NEW = [
    ("dot", "i9", "a", 5, 1.0, "share", "r", 5.0, ["u", "u"], "train"),
    ("dot", "i3", "a", 6, 2.0, "view", "r", 1.0, ["s"], "train"),
    ("eve", "i9", "a", 7, 4.0, "buy", "p", 1.0, ["v"], "train"),
    ("ann", "i3", "a", 8, 3.0, "view", "z", 1.0, [], "train"),
    ("fay", "i2", "a", 9, 3.0, "view", "p", 1.0, [], "test"),
]
USERS = {"u": ["ann", "bob", "cem"], "age": [10.0, 30.0, None], "town": ["x", "y", "only cem"]}
ITEMS = {"i": ["i1", "i2", "i3"], "words": [["k"], ["k", "l"], ["m"]]}


def make(rows: Sequence[tuple[Any, ...]], users: dict[str, Any] = USERS, items: dict[str, Any] = ITEMS, **options: Any) -> Events:
    names = ["u", "i", "d", "t", "y", "b", "cat", "num", "tags", "part"]
    frame = pl.DataFrame(list(rows), names, orient="row", schema_overrides={"num": pl.Float32, "tags": pl.List(pl.String)})
    given: dict[str, Any] = {"time": "t", "label": "y", "behaviour": "b", "context": ("cat", "num", "tags")} | options
    return read_events(frame, user="u", item="i", domain="d", users=pl.DataFrame(users), items=pl.DataFrame(items), **given)


def parts(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    return [row[-1] for row in rows]


@pytest.fixture
def base(tmp_path: Path) -> Dataset:
    events = make(OLD, label_kind="rating", behaviours=("view", "buy"))
    return encode(events, splits.given(events, parts(OLD)), tmp_path / "base")


NEW_USERS = {"u": ["dot", "ann"], "age": [20.0, 50.0], "town": ["z", "y"]}
NEW_ITEMS = {"i": ["i9", "i3"], "words": [["m", "n"], ["m"]]}


@pytest.fixture
def grown(base: Dataset, tmp_path: Path) -> Dataset:
    events = make(NEW, NEW_USERS, NEW_ITEMS, label_kind="rating")
    return encode(events, splits.given(events, parts(NEW)), tmp_path / "grown", base=base)


def test_codes_of_the_base_stay(base: Dataset, grown: Dataset) -> None:
    assert base.user_vocabulary.ids.to_list() == ["ann", "bob", "cem"]
    assert grown.user_vocabulary.ids.to_list() == ["ann", "bob", "dot", "eve", "cem", "fay"]
    assert (base.schema.user.trained, grown.schema.user.trained, grown.schema.user.size) == (4, 6, 8)
    assert grown.item_vocabulary.ids.to_list() == ["i1", "i2", "i3", "i9"], "i3 is trained now: as often as i9, and before it"
    assert (base.schema.item.trained, grown.schema.item.trained) == (4, 6)
    assert grown.schema.domain_names == ("b", "c", "a")
    assert grown.schema.behaviours == ("view", "buy", "share")
    assert grown.schema.rating_range == (1.0, 4.0)
    assert grown.manifest["base"] == base.schema.fingerprint()
    assert "base" not in base.manifest
    assert Dataset.load(grown.path).schema == grown.schema


def test_rows_are_in_the_new_terms(grown: Dataset) -> None:
    rows = grown.part("train")
    assert rows.offsets.tolist() == [0, 0, 0, 4]
    assert grown.user_vocabulary.decode(rows.user).to_list() == ["dot", "dot", "eve", "ann"]
    assert grown.item_vocabulary.decode(rows.item).to_list() == ["i9", "i3", "i9", "i3"]
    assert rows.behaviour is not None
    assert rows.behaviour.tolist() == [3, 1, 2, 1]
    assert grown.field_vocabulary("context", "cat").ids.to_list() == ["p", "q", "r", "z"], "r was not in the base's training"
    assert rows.context["cat"].tolist() == [4, 4, 2, 5]
    assert grown.scaler("context", "num") == (2.0, 1.0)
    assert rows.context["num"].tolist() == [3.0, -1.0, -1.0, -1.0]
    assert grown.field_vocabulary("context", "tags").ids.to_list() == ["s", "t", "u", "v"]


def test_tables_keep_what_the_new_ones_do_not_say(base: Dataset, grown: Dataset) -> None:
    assert base.scaler("user", "age") == grown.scaler("user", "age") == (20.0, 10.0)
    assert base.field_vocabulary("user", "town").ids.to_list() == ["x", "y"]
    assert grown.field_vocabulary("user", "town").ids.to_list() == ["x", "y", "z"]
    # padding, unknown, ann (moved, older), bob (as before), dot, eve (in no table), cem (as before), fay
    assert grown.user_table.categorical[:, 0].tolist() == [0, 1, 3, 3, 4, 0, 1, 0]
    expected = [np.nan, np.nan, 3.0, 1.0, 0.0, np.nan, np.nan, np.nan]
    assert grown.user_table.numeric[:, 0].tolist() == pytest.approx(expected, nan_ok=True)
    assert grown.field_vocabulary("item", "words").ids.to_list() == ["k", "l", "m", "n"]
    offsets, flat = grown.item_table.multi["words"]
    lists = [flat[a:b].tolist() for a, b in pairwise(offsets)]
    assert lists == [[], [1], [2], [2, 3], [4], [4, 5]]  # padding, unknown, i1 and i2 (as before), i3, i9


def test_a_domain_without_events_keeps_its_catalogue(base: Dataset, grown: Dataset) -> None:
    for d, name in enumerate(("b", "c")):
        for part in ("train", "valid", "test"):
            before = base.item_vocabulary.decode(base.catalogue(d, part)).to_list()
            assert sorted(grown.item_vocabulary.decode(grown.catalogue(d, part)).to_list()) == sorted(before), (name, part)
    assert grown.item_vocabulary.decode(grown.catalogue(2)).to_list() == ["i3", "i9"]


def test_domains_of_lists_and_of_what_is_shown_move_too(base: Dataset, tmp_path: Path) -> None:
    rows = [*OLD, *NEW]
    events = make(rows, label_kind="rating", shows={"a": ["i9", "i7"], "b": ["i1"], "c": ["i8"]})
    assert events.schema.domain_names == ("a", "b", "c")
    place = {one: n for n, one in enumerate(events.item_ids)}
    lists = Candidates(np.array([0]), np.array([0]), np.array([0, 2]), np.array([place["i1"], place["i9"]]), np.array([0, 1]), "lists")
    split = splits.given(events, parts(rows), {"test": lists})
    data = encode(events, split, tmp_path / "all", base=base)
    assert data.part("train").offsets.tolist() == [0, 2, 3, 7]
    found = data.candidates("test")
    assert found is not None
    assert (found.domain.tolist(), data.item_vocabulary.decode(found.item).to_list()) == ([2], ["i1", "i9"])
    shown = [set(data.item_vocabulary.decode(data.catalogue(d))) for d in range(3)]
    assert shown == [{"i1"}, {"i2", "i8"}, {"i3", "i7", "i9"}]
    assert data.history.cut(np.array([2]), np.array([99]), np.array([1]), None)["item"].tolist() == [[3]]


def test_extending_by_nothing_changes_no_code(base: Dataset, tmp_path: Path) -> None:
    events = make(OLD, label_kind="rating")  # behaviours in another order: buy, view
    same = encode(events, splits.given(events, parts(OLD)), tmp_path / "same", base=base)
    assert same.schema == base.schema
    for name in ("user.ids.arrow", "item.ids.arrow", "train/behaviour.arrow", "user/0.values.arrow", "train/context.0.values.arrow"):
        assert (same.path / name).read_bytes() == (base.path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_kind": "implicit", "label": None}, "labels of kind implicit"),
        ({"time": None}, "times: none"),
        ({"time_unit": "ms"}, "times in ms"),
        ({"behaviour": None}, "behaviours: none"),
        ({"context": ("cat", "num")}, "context fields"),
        ({"users": {"u": ["dot"], "age": [1.0]}}, "user fields"),
        ({"items": {"i": ["i9"], "words": ["m"]}}, "item fields"),
    ],
)
def test_what_cannot_be_kept_is_refused(base: Dataset, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    events = make(NEW, **{"label_kind": "rating", **change})
    with pytest.raises(ConfigError, match=message):
        encode(events, splits.given(events, parts(NEW)), tmp_path / "no", base=base)
    assert not (tmp_path / "no").exists()


def test_a_new_domain_must_have_training_events(base: Dataset, tmp_path: Path) -> None:
    events = make(NEW, label_kind="rating")
    unused = replace(splits.given(events, parts(NEW)), part=np.full(len(events), splits.TEST))
    with pytest.raises(SplitError, match=r"\['a'\] have no training events"):
        encode(events, unused, tmp_path / "no", base=base)


def test_ids_of_another_type_are_refused(base: Dataset, tmp_path: Path) -> None:
    rows = [(n, *row[1:]) for n, row in enumerate(NEW)]
    events = make(rows, {**NEW_USERS, "u": [0, 1]}, NEW_ITEMS, label_kind="rating")
    with pytest.raises(ConfigError, match="ids of type Int64"):
        encode(events, splits.given(events, parts(NEW)), tmp_path / "no", base=base)
