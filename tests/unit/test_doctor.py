"""The doctor: hand-counted sizes and overlaps, and planted leaks that it must find."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from isthmus.data import split as splits
from isthmus.data.doctor import examine
from isthmus.data.events import Events, read_events
from isthmus.data.synthetic import make_world
from isthmus.errors import SplitError


def clicks(**columns: list) -> Events:
    frame = pl.DataFrame(columns)
    named = {name: name for name in ("time", "label") if name in columns}
    return read_events(frame, user="user", item="item", domain="domain", **named)


@pytest.fixture
def small() -> Events:
    """Two domains.  a: u1 u1 u1 u2, items x x y x; b: u2 u3, items x z."""
    return clicks(
        user=["u1", "u1", "u1", "u2", "u2", "u3"],
        item=["x", "x", "y", "x", "x", "z"],
        domain=["a", "a", "a", "a", "b", "b"],
        time=[1, 1, 2, 3, 4, 5],
        label=[1, 0, 0, 1, 1, 0],
    )


def kinds(events: Events, split: splits.Split | None = None) -> list[str]:
    return [finding.kind for finding in examine(events, split).findings]


def test_sizes_by_hand(small: Events) -> None:
    report = examine(small, splits.given(small, ["train", "train", "train", "train", "train", "train"]))
    a, b = report.domains
    assert (a.name, a.users, a.items, a.events, a.density) == ("a", 2, 2, 4, 1.0)
    assert (b.name, b.users, b.items, b.events, b.density) == ("b", 2, 2, 2, 0.5)
    assert (a.label_mean, b.label_mean) == (0.5, 0.5)
    assert (a.first, a.last, b.first, b.last) == (1, 3, 4, 5)
    assert (report.users, report.items, report.events) == (3, 3, 6)
    assert report.parts == {"train": 6, "valid": 0, "test": 0, "unused": 0, "known": 0}


def test_overlaps_by_hand(small: Events) -> None:
    (overlap,) = examine(small).overlaps
    assert overlap.domains == ("a", "b")
    assert (overlap.users, overlap.user_shares) == (1, (0.5, 0.5))
    assert (overlap.items, overlap.item_shares) == (1, (0.5, 0.5))


def test_duplicates_by_hand() -> None:
    events = clicks(
        user=["u", "u", "u", "u", "v"],
        item=["x", "x", "x", "y", "x"],
        domain=["a", "a", "a", "a", "b"],
        time=[1, 1, 2, 3, 1],
        label=[1, 1, 0, 0, 1],
    )
    a, b = examine(events).domains
    assert (a.duplicates, a.exact_duplicates) == (2, 1)
    assert (b.duplicates, b.exact_duplicates) == (0, 0)


def test_untimed_duplicates_are_exact() -> None:
    events = clicks(user=["u", "u", "v"], item=["x", "x", "x"], domain=["a", "a", "a"])
    assert (examine(events).domains[0].duplicates, examine(events).domains[0].exact_duplicates) == (1, 1)


def test_states_and_strangers_by_hand() -> None:
    """Test part: u (6 training events in a), v (1 in a, none in b), w (a stranger); item z is met in test only."""
    user = ["u"] * 6 + ["v"] + ["u", "v", "v", "w"] + ["u"]
    domain = ["a"] * 7 + ["a", "a", "b", "b"] + ["b"]
    item = ["x"] * 7 + ["x", "z", "x", "x"] + ["x"]
    part = ["train"] * 7 + ["test"] * 4 + ["train"]
    events = clicks(user=user, item=item, domain=domain)
    a, b = examine(events, splits.given(events, part)).domains
    assert a.test_users == {"new": 0, "few": 1, "many": 1}
    assert b.test_users == {"new": 2, "few": 0, "many": 0}
    assert (a.cold_users, a.cold_items) == (0.0, 0.5)
    assert (b.cold_users, b.cold_items) == (0.5, 0.0)


def test_the_default_split_is_used_and_named() -> None:
    assert examine(make_world(2, events=2000).events).split == "global_time"
    untimed = clicks(user=["u"] * 6, item=list("abcdef"), domain=["a"] * 6)
    assert examine(untimed).split == "leave_last"


def test_data_that_cannot_be_split_are_still_described() -> None:
    events = clicks(user=["u", "v"], item=["x", "y"], domain=["a", "b"], time=[1, 1])
    report = examine(events)
    assert report.split is None
    assert "no default split" in [finding.kind for finding in report.findings]
    assert report.domains[0].cold_users is None
    assert "no default split" in report.to_text()


def test_a_clean_world_has_no_findings() -> None:
    assert kinds(make_world(3, users=400, items=150, events=20_000, seed=1).events) == []


def with_context(leak: list | np.ndarray, label: np.ndarray) -> Events:
    rng = np.random.default_rng(0)
    n = len(label)
    frame = pl.DataFrame(
        {"user": rng.integers(0, 50, n), "item": rng.integers(0, 30, n), "domain": ["a"] * n, "label": label, "leak": leak}
    )
    return read_events(frame, user="user", item="item", domain="domain", label="label", context=("leak",))


LABEL = (np.random.default_rng(1).random(4000) < 0.3).astype(int)


@pytest.mark.parametrize(
    "leak",
    [
        LABEL * 1.0 + np.random.default_rng(2).normal(0, 0.2, 4000),
        -LABEL * 1.0,
        [f"page{x}" for x in np.where(np.random.default_rng(2).random(4000) < 0.02, 1 - LABEL, LABEL)],
        [1.0 if x else None for x in LABEL],
        [None if x else float(i % 7) for i, x in enumerate(LABEL)],
    ],
    ids=["number", "constant per label, reversed", "category", "present for clicks only", "missing for clicks only"],
)
def test_a_column_that_knows_the_label_is_found(leak: list | np.ndarray) -> None:
    (finding,) = [f for f in examine(with_context(leak, LABEL)).findings if f.kind == "column knows the label"]
    assert "'leak'" in finding.what


@pytest.mark.parametrize(
    "column",
    [LABEL + np.random.default_rng(2).normal(0, 1.5, 4000), [f"id{i % 2000}" for i in range(4000)], np.arange(4000) * 1.0],
    ids=["weak", "one value for every two rows", "a counter"],
)
def test_an_honest_column_is_not(column: list | np.ndarray) -> None:
    assert "column knows the label" not in kinds(with_context(column, LABEL))


def test_a_user_field_that_knows_the_label_is_found() -> None:
    user = np.repeat(np.arange(200), 10)
    bought = np.arange(200) % 3 == 0
    frame = pl.DataFrame({"user": user, "item": np.arange(2000) % 40, "domain": ["a"] * 2000, "label": bought[user].astype(int)})
    users = pl.DataFrame({"id": np.arange(200), "status": np.where(bought, "gold", "none")})
    events = read_events(
        frame, user="user", item="item", domain="domain", label="label", users=users, user_id="id", user_fields=("status",)
    )
    (finding,) = [f for f in examine(events).findings if f.kind == "column knows the label"]
    assert "user field 'status'" in finding.what


@pytest.mark.parametrize("statistic", ["count", "sum", "mean"])
def test_an_item_field_computed_from_the_events_is_found(statistic: str) -> None:
    world = make_world(1, users=300, items=100, events=5000, features=False, seed=2).events
    count, total = np.bincount(world.item), np.bincount(world.item, weights=world.label)
    values = {"count": np.log(count), "sum": total, "mean": total / count}[statistic]
    ids = world.item_ids
    frame = pl.DataFrame({"user": world.user, "item": ids.gather(world.item), "domain": ["a"] * 5000, "label": world.label})
    honest = np.random.default_rng(0).random(100)
    items = pl.DataFrame({"id": ids, "suspect": values * 1.0, "price": honest})
    events = read_events(
        frame, user="user", item="item", domain="domain", label="label", items=items, item_id="id", item_fields=("suspect", "price")
    )
    found = [f.what for f in examine(events).findings if f.kind == "column looks like a statistic of the events"]
    assert len(found) == 1
    assert "'suspect'" in found[0]


def test_a_random_split_of_timed_events_is_found() -> None:
    events = make_world(2, events=2000).events
    with pytest.warns(UserWarning, match="future"):
        split = splits.random(events, 0.1, 0.1, 0)
    assert "random split of timed events" in kinds(events, split)


def test_training_on_the_future_is_found_and_counted() -> None:
    """Test events at 5 (u: trains at 9) and 20 (v): half precede training events, half precede one of their own user."""
    events = clicks(user=["u", "u", "v", "v"], item=["x", "y", "x", "y"], domain=["a"] * 4, time=[9, 5, 1, 20], label=[1, 0, 1, 0])
    split = splits.given(events, ["train", "test", "train", "test"])
    (finding,) = [f for f in examine(events, split).findings if f.kind == "training on the future"]
    assert "50.0% of the test events precede some training event, 50.0% one of the same user" in finding.what


def test_repeated_pairs_and_late_items_are_found() -> None:
    events = clicks(user=["u", "u", "v", "v"], item=["x", "x", "y", "z"], domain=["a"] * 4, time=[1, 2, 1, 2])
    found = {f.kind: f.what for f in examine(events, splits.given(events, ["train", "test", "train", "test"])).findings}
    assert "50.0%" in found["test events repeat training events"]
    assert "1 items (33.3%)" in found["items without training events"]


def test_one_label_only_and_times_apart_are_found() -> None:
    events = clicks(
        user=["u", "v", "u", "v"], item=["x", "y", "x", "y"], domain=["a", "a", "b", "b"], time=[1, 2, 8, 9], label=[1, 1, 1, 0]
    )
    found = kinds(events)
    assert "one label only" in found
    assert "domains at different times" in found


def test_a_split_of_other_events_is_refused(small: Events) -> None:
    with pytest.raises(SplitError, match="10 events for 6"):
        examine(small, splits.Split(np.zeros(10, np.uint8), "given", {}, {}))


def test_text_and_json_tell_the_same(small: Events) -> None:
    small = replace(small, dropped={"ratings outside 1 to 5": 34})
    report = examine(small)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["domains"][0]["name"] == "a"
    assert again["dropped"] == {"ratings outside 1 to 5": 34}
    text = report.to_text()
    for part in ("6 events, 3 users, 3 items", "Overlap", "a and b", "34 ratings outside 1 to 5"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 140


def test_a_hundred_domains_are_told_briefly() -> None:
    report = examine(make_world(40, users=20, items=20, events=100, user_overlap=0.5).events)
    assert len(report.overlaps) == 780
    assert "the 30 largest of 780" in report.to_text()
    assert len(report.to_text().splitlines()) < 200


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 10**6)])
def test_real_dates_are_shown_as_dates(unit: str, factor: int) -> None:
    frame = pl.DataFrame(
        {"user": ["u", "v"], "item": ["x", "y"], "domain": ["a", "a"], "time": [1_600_000_000 * factor, 1_700_000_000 * factor]}
    )
    text = examine(read_events(frame, user="user", item="item", domain="domain", time="time", time_unit=unit)).to_text()
    assert "2020-09-13" in text
    assert "2023-11-14" in text


def test_times_that_are_no_dates_are_shown_as_numbers(small: Events) -> None:
    assert "1970" not in examine(small).to_text()
