"""Cold users: who is held out, what is trained on, and what a history may know, against brute force over the events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.split import KNOWN, TEST, TRAIN, UNUSED, VALID, Split, cold_users
from isthmus.errors import SplitError
from isthmus.schema import Domain, Schema

TARGET = 1


def make(rows: list[tuple[int, int, int]], timed: bool = True) -> Events:
    """Events of (user, domain, time); each has an item of its own, so that an item code says which event it is."""
    user, domain, time = (np.array(column) for column in zip(*rows, strict=True))
    return Events(
        schema=Schema(domains=tuple(Domain(d) for d in "abc"), timed=timed),
        user=user.astype(np.int32),
        item=np.arange(len(rows), dtype=np.int32),
        domain=domain.astype(np.int16),
        time=time.astype(np.int64) if timed else None,
        label=None,
        behaviour=None,
        context={},
        user_ids=pl.Series("id", range(int(user.max()) + 1)),
        item_ids=pl.Series("id", range(len(rows))),
    )


# Users 0 and 1 are overlapping, with three and one source events before the target's moment 40; user 2 is in the target alone.
SMALL = [
    (0, 0, 5), (0, 0, 6), (0, 2, 7), (0, 0, 45), (0, 2, 60), (0, TARGET, 10), (0, TARGET, 50),
    (1, 0, 5), (1, 0, 41), (1, 0, 42), (1, TARGET, 20), (1, TARGET, 40),
    (2, TARGET, 30), (2, TARGET, 44),
    (3, 0, 1), (3, 2, 2), (3, 2, 70),
]  # fmt: skip


def cold_user(split: Split, events: Events) -> int:
    """The one user of the test part."""
    (user,) = np.unique(events.user[split.part == TEST])
    return int(user)


def test_after_by_hand() -> None:
    """Target times 10, 20, 30 | 40, 44, 50: half of them are before 40."""
    events = make(SMALL)
    found = {cold_user(split := cold_users(events, "b", 0.5, seed, 0, after=0.5), events): split for seed in range(8)}
    assert sorted(found) == [0, 1]
    assert found[0].params["test_from"] == 40
    assert found[0].params["overlapping_users"] == 2
    of_user_0 = [TRAIN, TRAIN, TRAIN, KNOWN, KNOWN, UNUSED, TEST]
    assert found[0].part.tolist() == [*of_user_0, TRAIN, UNUSED, UNUSED, TRAIN, UNUSED, TRAIN, UNUSED, TRAIN, TRAIN, UNUSED]
    of_user_1 = [TRAIN, KNOWN, KNOWN, UNUSED, TEST]
    assert found[1].part.tolist() == [*[TRAIN] * 3, UNUSED, UNUSED, TRAIN, UNUSED, *of_user_1, TRAIN, UNUSED, TRAIN, TRAIN, UNUSED]
    assert np.array_equal(found[0].in_history(), np.isin(found[0].part, (TRAIN, KNOWN)))


@pytest.mark.parametrize(
    ("limits", "after", "expected"),
    [
        ({"min_source": 2}, None, {0, 1}),
        ({"min_source": 4}, None, {0}),
        ({"max_source": 4}, None, {1}),
        ({"min_source": 2}, 0.5, {0}),  # as of the moment user 1 has one source event
        ({"max_source": 1}, 0.5, {1}),
        ({"min_source": 3, "max_source": 3}, 0.5, {0}),
    ],
)
def test_overlapping_users_have_so_many_source_events(limits: dict, after: float | None, expected: set[int]) -> None:
    events = make(SMALL)
    share = 0.5 if len(expected) == 2 else 0.9
    splits = [cold_users(events, "b", share, seed, 0, after=after, **limits) for seed in range(8)]
    assert {cold_user(split, events) for split in splits} == expected
    assert {split.params["overlapping_users"] for split in splits} == {len(expected)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"after": 1.0}, r"after=1\.0"),
        ({"min_source": 0}, "min_source=0"),
        ({"min_source": 5, "max_source": 4}, "max_source=4"),
        ({"min_source": 6}, r"\['test'\] without events"),
        ({"after": 0.01}, r"'b'\] have no training events"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        cold_users(make(SMALL), "b", 0.6, valid=0, **arguments)


def test_after_needs_times() -> None:
    with pytest.raises(SplitError, match="events without times"):
        cold_users(make(SMALL, timed=False), "b", 0.5, after=0.5)


def test_test_users_without_a_late_event_in_the_target_leave_the_part_empty() -> None:
    rows = [(0, 0, 1), (0, TARGET, 2), (1, 0, 1), (1, TARGET, 3), (2, TARGET, 4), (2, TARGET, 9), (2, TARGET, 9)]
    with pytest.raises(SplitError, match=r"\['test'\] without events"):
        cold_users(make(rows), "b", 0.5, valid=0, after=0.6)


tables = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), st.integers(0, 12)), min_size=12, max_size=70)
protocols = st.fixed_dictionaries(
    {
        "share": st.sampled_from([0.2, 0.5, 0.8]),
        "valid": st.sampled_from([0.0, 0.4]),
        "min_source": st.integers(1, 3),
        "max_source": st.sampled_from([None, 3, 6]),
        "after": st.sampled_from([None, 0.3, 0.6, 0.8]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=150, deadline=None)
@given(tables, protocols)
def test_parts_are_as_the_rule_says(rows: list, protocol: dict) -> None:
    events = make(rows)
    user, time, own = events.user, events.time, events.domain == TARGET
    try:
        split = cold_users(events, "b", **protocol)
    except SplitError:
        return
    part, moment = split.part, split.params["test_from"]
    late = np.zeros(len(rows), bool) if moment is None else time >= moment
    source = {u: int((~own & ~late & (user == u)).sum()) for u in range(8)}
    most = protocol["max_source"] or len(rows)
    overlapping = {u for u in range(8) if (own & (user == u)).any() and protocol["min_source"] <= source[u] <= most}
    assert split.params["overlapping_users"] == len(overlapping)
    held = {int(u) for u in user[own & np.isin(part, (VALID, TEST))]}
    assert held <= overlapping
    assert not set(user[part == VALID]) & set(user[part == TEST])
    assert own[np.isin(part, (VALID, TEST))].all()
    for u in held:
        assert not (part[own & (user == u)] == TRAIN).any()
    if moment is None:
        assert not np.isin(part, (UNUSED, KNOWN)).any()
        assert len(set(user[part == TEST])) == round(protocol["share"] * len(overlapping))
        return
    assert np.array_equal(part == TEST, late & own & np.isin(user, list(set(user[part == TEST]))))
    assert not np.isin(part[late], (TRAIN, VALID)).any()
    assert not (part == KNOWN)[own | ~late].any()
    forgotten = {int(u) for u in user[~late & (part == UNUSED)]}  # target events before the moment: of test users alone
    assert own[~late & (part == UNUSED)].all()
    assert forgotten <= overlapping - set(user[part == VALID])
    assert not (part[np.isin(user, list(forgotten)) & own] == TRAIN).any()
    known = set(user[part == KNOWN])
    assert known <= overlapping
    assert ((part == KNOWN) >= (late & ~own & np.isin(user, list(set(user[part == TEST]))))).all()


@settings(max_examples=40, deadline=None)
@given(tables, protocols, st.booleans())
def test_histories_hold_what_is_known_and_nothing_of_the_held_out(tmp_path_factory, rows: list, protocol: dict, merged: bool) -> None:
    """Every row of every part: the events of its history are exactly the ones that the rule lets it know."""
    events = make(rows)
    try:
        split = cold_users(events, "b", **protocol)
    except SplitError:
        return
    split = split.merged() if merged else split
    if len(np.unique(events.domain[split.part == TRAIN])) < len(events.schema.domains):
        return  # no data set without training events in a domain
    dataset = encode(events, split, Path(tmp_path_factory.mktemp("cold")) / "data")
    own = events.domain == TARGET
    held = np.isin(split.part, (VALID, TEST))
    for name in ("train", "valid", "test"):
        for row, history in zip(*histories(dataset, name), strict=True):
            mine = (events.user == events.user[row]) & (events.time < events.time[row])
            assert history == set(np.flatnonzero(mine & np.isin(split.part, (TRAIN, KNOWN))))
            assert not held[list(history)].any()
            if held[row]:
                assert not own[list(history)].any()
    moment = split.params["test_from"]
    if moment is not None:
        assert (events.time[dataset.part("train").row[:]] < moment).all()
        assert (events.time[dataset.part("test").row[:]] >= moment).all()


def histories(dataset: Dataset, part: str) -> tuple[np.ndarray, list[set[int]]]:
    """The rows of a part, as numbers of events, and the events in the history of each."""
    rows = dataset.part(part)
    item = dataset.history.cut(rows.user[:], rows.time[:], None, None)["item"]
    events = [set(np.array(dataset.item_vocabulary.decode(codes[codes > 0])).tolist()) for codes in item]
    return rows.row[:], events


def test_source_events_after_the_moment_reach_the_histories_of_test_rows(tmp_path: Path) -> None:
    events = make(SMALL)
    split = next(s for seed in range(8) if cold_user(s := cold_users(events, "b", 0.5, seed, 0, after=0.5), events) == 0)
    dataset = encode(events, split, tmp_path / "data")
    row, (history,) = histories(dataset, "test")
    assert row.tolist() == [6]  # at time 50
    assert history == {0, 1, 2, 3}  # the fourth at time 45, after the moment; neither its target event at 10 nor the one at 60
    assert dataset.catalogue(0).tolist() == sorted(dataset.item_vocabulary.encode([0, 1, 7, 14]))
