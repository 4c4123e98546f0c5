"""Splits: no future in the training part, ties kept together, protocols as stated, and a hash that notices everything."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import split
from isthmus.data.events import Events
from isthmus.data.split import TEST, TRAIN, UNUSED, VALID, Candidates, Split
from isthmus.errors import ConfigError, SourceError, SplitError
from isthmus.schema import Domain, Schema


def make(user, domain, time=None, item=None, domains=("a", "b", "c")) -> Events:
    user = np.asarray(user, np.int32)
    item = np.arange(len(user)) if item is None else item
    return Events(
        schema=Schema(domains=tuple(Domain(d) for d in domains), timed=time is not None),
        user=user,
        item=np.asarray(item, np.int32),
        domain=np.asarray(domain, np.int16),
        time=None if time is None else np.asarray(time, np.int64),
        label=None,
        behaviour=None,
        context={},
        user_ids=pl.Series("id", range(int(user.max(initial=0)) + 1)),
        item_ids=pl.Series("id", range(int(np.max(item, initial=0)) + 1)),
        users=None,
        items=None,
        shows=None,
        dropped={},
    )


def lists(**changes) -> Candidates:
    base = {"user": [0, 1], "domain": [0, 1], "offsets": [0, 2, 3], "item": [5, 6, 7], "label": [1, 0, 1], "name": "real lists"}
    return Candidates(**{**base, **changes})


tables = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(tables, st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.1, 0.4]))
def test_global_time_trains_on_nothing_later(table, valid, test):
    user, domain, time = (np.array(c) for c in zip(*table, strict=True))
    try:
        got = split.global_time(make(user, domain, time), valid, test)
    except SplitError:
        return
    moments = [time[got.part == code] for code in (TRAIN, VALID, TEST) if (got.part == code).any()]
    for earlier, later in itertools.pairwise(moments):
        assert earlier.max() < later.min()  # strictly: no tie straddles a threshold
    assert got.params["test_from"] == time[got.part == TEST].min()
    assert got.params["end"] == time.max()
    assert (got.part == VALID).any() == (valid > 0)


def test_global_time_by_hand():
    time = [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]  # 8 is one moment: it comes whole
    got = split.global_time(make([0] * 10, [0] * 10, time), valid=0.2, test=0.2)
    assert got.part.tolist() == [TRAIN] * 6 + [VALID] + [TEST] * 3
    assert (got.params["valid_from"], got.params["test_from"], got.params["end"]) == (7, 8, 8)
    no_valid = split.global_time(make([0] * 10, [0] * 10, time), valid=0, test=0.3)
    assert no_valid.part.tolist() == [TRAIN] * 7 + [TEST] * 3


def test_global_time_by_shares_of_the_time():
    time = [0, 1, 2, 3, 4, 5, 6, 7, 80, 99]  # most events in the first tenth of the time
    got = split.global_time(make([0] * 10, [0] * 10, time), valid=0.2, test=0.1, of="time")
    assert got.part.tolist() == [TRAIN] * 8 + [VALID, TEST]
    assert (got.params["valid_from"], got.params["test_from"]) == (80, 99)
    with pytest.raises(ConfigError, match="did you mean 'time'"):
        split.global_time(make([0] * 10, [0] * 10, time), of="times")  # type: ignore[arg-type]


def test_global_time_refusals():
    with pytest.raises(SplitError, match="without times"):
        split.global_time(make([0, 1], [0, 0]))
    with pytest.raises(SplitError, match="without events"):
        split.global_time(make([0, 1, 2], [0, 0, 0], [5, 5, 5]))
    with pytest.raises(SplitError, match=r"'b'.*no training events"):
        split.global_time(make([0] * 10, [0] * 9 + [1], range(10)))
    with pytest.raises(SplitError, match="time 9, in the future of the split"):
        split.global_time(make([0] * 10, [0] * 10, range(10)), end=8)
    for valid, test in ((0.5, 0.5), (0, 0), (-0.1, 0.2)):
        with pytest.raises(SplitError, match="shares"):
            split.global_time(make([0] * 10, [0] * 10, range(10)), valid, test)


@settings(max_examples=100, deadline=None)
@given(tables, st.booleans(), st.sampled_from([3, 5]), st.booleans(), st.sampled_from([1, 9, split.BLOCK]))
def test_leave_last_takes_the_last_of_each_user_and_domain_or_of_each_user(table, timed, least, across, block):
    user, domain, time = (np.array(c) for c in zip(*table, strict=True))
    events, whose = make(user, domain, time if timed else None), user if across else user * 3 + domain
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(split, "BLOCK", block)
            got = split.leave_last(events, least, across=across)
        assert (got.part == split.leave_last(events, least, across=across).part).all(), "how many are sorted at once does not show"
    except SplitError:
        nothing_held = max(np.unique(whose, return_counts=True)[1]) < least
        assert nothing_held or across, "the last two of a user may be all that a domain has"
        return
    assert got.params.get("across", False) == across
    for pair in np.unique(whose):
        rows = np.flatnonzero(whose == pair)
        if len(rows) < least:
            assert (got.part[rows] == TRAIN).all()
            continue
        assert np.bincount(got.part[rows], minlength=3).tolist() == [len(rows) - 2, 1, 1]
        if timed:
            ordered = rows[np.argsort(time[rows], kind="stable")]
            assert got.part[ordered[-2:]].tolist() == [VALID, TEST]


def test_leave_last_without_times_says_so_and_follows_its_seed():
    events = make([0] * 40, [0] * 40)
    one, again, other = split.leave_last(events, seed=1), split.leave_last(events, seed=1), split.leave_last(events, seed=2)
    assert one.params["order"].startswith("random")
    assert one.hash == again.hash != other.hash
    assert (one.part != other.part).any()
    with pytest.raises(SplitError, match="min_events=2"):
        split.leave_last(events, 2)
    with pytest.raises(SplitError, match="without events"):
        split.leave_last(make([0, 1], [0, 0]))


def test_cold_users_protocol():
    rng = np.random.default_rng(0)
    user = rng.integers(0, 60, 900)
    domain = rng.integers(0, 3, 900)
    domain[user < 10] = 1  # these users are in the target alone
    domain[(user >= 10) & (user < 20) & (domain == 1)] = 0  # and these are never in it
    events = make(user, domain, rng.integers(0, 99, 900))
    got = split.cold_users(events, "b", share=0.3, seed=5, valid=0.2)
    overlapping = {u for u in range(60) if {1} < set(domain[user == u].tolist())}
    part_of = {u: set(got.part[(user == u) & (domain == 1)].tolist()) for u in overlapping}
    assert all(len(parts) == 1 for parts in part_of.values())  # a user's target events go together
    tests = sum(parts == {TEST} for parts in part_of.values())
    valids = sum(parts == {VALID} for parts in part_of.values())
    assert got.params["overlapping_users"] == len(overlapping)
    assert tests == round(0.3 * len(overlapping))
    assert valids == round(0.2 * (len(overlapping) - tests))
    rest = (domain != 1) | ~np.isin(user, list(overlapping))
    assert (got.part[rest] == TRAIN).all()
    assert np.array_equal(got.in_history(), got.part == TRAIN)
    assert np.array_equal(got.merged().in_history(), got.part != TEST)
    with pytest.raises(ConfigError, match="unknown domain"):
        split.cold_users(events, "z", 0.3)
    with pytest.raises(SplitError, match="share=1"):
        split.cold_users(events, "b", 1)
    with pytest.raises(SplitError, match="without events"):
        split.cold_users(make([0, 1, 2], [0, 1, 2]), "b", 0.5)


def test_given_takes_names_or_numbers():
    events = make([0, 1, 2, 3], [0, 0, 0, 0])
    names = ["train", "test", "valid", "unused"]
    for part in (names, np.array(names), pl.Series(names), [0, 2, 1, 3], np.array([0, 2, 1, 3])):
        assert split.given(events, part).part.tolist() == [TRAIN, TEST, VALID, UNUSED]
    assert split.given(events, names).in_history().tolist() == [True, True, True, False]
    with pytest.raises(SplitError, match="did you mean 'train'"):
        split.given(events, ["trian", "test", "valid", "valid"])
    with pytest.raises(SplitError, match="3 parts"):
        split.given(events, ["train"] * 3)
    with pytest.raises(SplitError, match="null"):
        split.given(events, pl.Series(["train", None, "test", "valid"]))
    with pytest.raises(SplitError, match="numbers from 0 to 4"):
        split.given(events, [0, 1, 2, 7])
    with pytest.raises(SplitError, match=r"'b'.*no training events"):
        split.given(make([0, 1], [0, 1]), ["train", "test"])


def test_random_warns_of_the_future():
    events = make([0] * 100, [0] * 100)
    got = split.random(events, valid=0.1, test=0.25, seed=3)
    assert np.bincount(got.part).tolist() == [65, 10, 25]
    with pytest.warns(UserWarning, match="future"):
        timed = split.random(make([0] * 100, [0] * 100, range(100)), valid=0.1, test=0.25, seed=3)
    assert np.array_equal(timed.part, got.part)


def test_default_is_by_time_when_there_is_time():
    assert split.default(make([0] * 10, [0] * 10, range(10))).rule == "global_time"
    assert split.default(make([0] * 10, [0] * 10)).rule == "leave_last"


def test_hash_notices_every_change():
    base = Split(np.array([0, 0, 1, 2]), "given", {"x": 1}, {"test": lists()})
    others = [
        replace(base, part=np.array([0, 0, 2, 2])),
        replace(base, rule="random"),
        replace(base, params={"x": 2}),
        replace(base, candidates={"valid": lists()}),
        replace(base, candidates={}),
        *(replace(base, candidates={"test": lists(**change)}) for change in (
            {"user": [0, 2]}, {"domain": [0, 0]}, {"offsets": [0, 1, 3]}, {"item": [5, 6, 8]}, {"label": [1, 1, 1]},
            {"name": "regenerated lists"}, {"names": {"a": "x"}},
        )),
        base.merged(),
    ]  # fmt: skip
    assert len({base.hash, *(o.hash for o in others)}) == len(others) + 1
    assert replace(base).hash == base.hash
    assert len(base.hash) == 16


def test_merged_turns_valid_into_train():
    got = Split(np.array([0, 1, 2, 3]), "given", {}, {"valid": lists(), "test": lists()}).merged()
    assert got.part.tolist() == [TRAIN, TRAIN, TEST, UNUSED]
    assert list(got.candidates) == ["test"]


def test_save_and_load(tmp_path):
    events = make([0] * 10, [0] * 10, range(10))
    made = replace(split.global_time(events), candidates={"test": lists(names={"a": "given"})})
    made.save(tmp_path / "split")
    back = Split.load(tmp_path / "split")
    assert back.hash == made.hash
    assert np.array_equal(back.part, made.part)
    assert back.candidates["test"].names == {"a": "given"}
    assert back.candidates["test"].item.tolist() == [5, 6, 7]
    back.check(events)
    about = tmp_path / "split" / "split.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "rule": "random"}))
    with pytest.raises(SourceError, match="has been changed"):
        Split.load(tmp_path / "split")
    about.write_text("{}")
    with pytest.raises(SourceError, match="holds no split"):
        Split.load(tmp_path / "split")
    (tmp_path / "split" / "part.arrow").write_bytes(b"ARROW1")
    about.write_text(json.dumps({"rule": "x", "params": {}, "candidates": [], "hash": ""}))
    with pytest.raises(SourceError, match="cannot be read"):
        Split.load(tmp_path / "split")
    with pytest.raises(SourceError, match="missing"):
        Split.load(tmp_path / "nowhere")


def test_check_refuses_other_events():
    events = make([0] * 10, [0] * 10, range(10))
    made = split.global_time(events)
    made.check(events)
    with pytest.raises(SplitError, match="a split of 10 events"):
        made.check(make([0] * 9, [0] * 9, range(9)))
    with pytest.raises(SplitError, match="time 99, in the future"):
        made.check(make([0] * 10, [0] * 10, [*range(9), 99]))
    with pytest.raises(SplitError, match="other events"):
        made.check(make([1] * 10, [0] * 10, range(10)))


def test_the_digest_is_remembered_and_of_the_columns_that_there_are_now():
    events = make([0, 1, 2], [0, 0, 0], [1, 2, 3])
    digest = events.digest()
    assert events.digest() == digest == replace(events).digest() == make([0, 1, 2], [0, 0, 0], [1, 2, 3]).digest()
    for name in ("user", "item", "domain", "time"):
        column = getattr(events, name)
        setattr(events, name, column[::-1] + column.dtype.type(1))
        assert events.digest() != digest
        setattr(events, name, column)
        assert events.digest() == digest
    assert replace(events, time=None).digest() != digest


def test_summary_counts():
    events = make([0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [1, 2, 3, 4, 5], item=[7, 7, 8, 9, 9])
    table = split.given(events, ["train", "train", "test", "train", "test"]).summary(events)
    assert table.rows() == [
        ("a", "train", 2, 1, 1, 1, 2),
        ("a", "test", 1, 1, 1, 3, 3),
        ("b", "train", 1, 1, 1, 4, 4),
        ("b", "test", 1, 1, 1, 5, 5),
    ]


def test_lists_that_do_not_fit_together():
    for change in ({"offsets": [0, 2]}, {"offsets": [0, 3, 2]}, {"label": [1]}, {"user": [0]}, {"offsets": [1, 2, 3]}):
        with pytest.raises(SplitError, match="do not fit together"):
            lists(**change)
    with pytest.raises(SplitError, match="'tset'"):
        Split(np.array([0]), "given", {}, {"tset": lists()})
