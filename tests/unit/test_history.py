"""Histories against a brute-force reference: only what came strictly before, in order, padded on the left."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.by_user import REMEMBERED, Block, write_blocks
from isthmus.data.history import History
from isthmus.errors import DataError, SourceError


def stored(user, domain, time, item, behaviour=None, domains=3, folder=None, label=None) -> History:
    def write(path: Path) -> History:
        events = Block(
            user=np.array(user, np.int32),
            item=np.array(item, np.int32),
            domain=np.array(domain, np.int16),
            use=np.full(len(user), REMEMBERED, np.uint8),
            time=None if time is None else np.array(time, np.int64),
            behaviour=None if behaviour is None else np.array(behaviour, np.int8),
            label=None if label is None else np.array(label, np.float32),
        )
        write_blocks(path, lambda _: events, 1, domains, np.min_scalar_type(len(user)), lambda _: None)
        return History.load(path / "history")

    if folder is not None:
        return write(folder)
    with TemporaryDirectory() as temporary:
        return write(Path(temporary))  # the map outlives its file's name


def right(values, length, padding=0):
    values = list(values)[-length:] if length else []
    return [padding] * (length - len(values)) + values


events = st.lists(st.tuples(st.integers(2, 5), st.integers(0, 2), st.integers(0, 6), st.integers(2, 9), st.integers(1, 2)), max_size=40)
rows = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 2), st.integers(-1, 8), st.integers(2, 9)), min_size=1, max_size=8)


def columns_of(table):
    return [list(column) for column in zip(*table, strict=True)] if table else [[] for _ in range(5)]


@settings(max_examples=150, deadline=None)
@given(events, rows, st.integers(0, 6))
def test_timed_history_is_the_last_events_strictly_before(table, asked, length):
    user, domain, time, item, behaviour = columns_of(table)
    history = stored(user, domain, time, item, behaviour)
    u, d, t, _ = (np.array(c) for c in zip(*asked, strict=True))
    cases = {
        "own": (history.cut(u, t, d, length), lambda e, q: e[1] == q[1]),
        "others": (history.cut(u, t, d, length, others=True), lambda e, q: e[1] != q[1]),
        "all": (history.cut(u, t, None, length), lambda e, q: True),
    }
    for name, (got, wanted) in cases.items():
        assert got["item"].shape == (len(asked), length)
        for row, q in enumerate(asked):
            earlier = sorted((e for e in table if e[0] == q[0] and e[2] < q[2] and wanted(e, q)), key=lambda e: e[2])
            assert got["item"][row].tolist() == right([e[3] for e in earlier], length)
            assert got["time"][row].tolist() == right([e[2] for e in earlier], length)
            assert got["behaviour"][row].tolist() == right([e[4] for e in earlier], length)
            if name != "own":
                assert got["domain"][row].tolist() == right([e[1] for e in earlier], length, -1)


@settings(max_examples=150, deadline=None)
@given(events, rows, st.integers(0, 6))
def test_untimed_history_is_a_set_without_the_rows_own_item(table, asked, length):
    user, domain, _, item, _ = columns_of(table)
    history = stored(user, domain, None, item)
    u, d, _, x = (np.array(c) for c in zip(*asked, strict=True))
    got = history.cut(u, None, d, length, exclude_item=x)["item"]
    whole = history.cut(u, None, d, length)["item"]
    merged = history.cut(u, None, d, length, others=True)["item"]
    last = {(e[0], e[1], e[3]): place for place, e in enumerate(table)}  # the last event of each user, domain and item stands for it
    for row, q in enumerate(asked):
        own = [e[3] for place, e in enumerate(table) if e[:2] == q[:2] and last[e[0], e[1], e[3]] == place]
        others = [e[3] for place, e in enumerate(table) if e[0] == q[0] and e[1] != q[1] and last[e[0], e[1], e[3]] == place]
        assert whole[row].tolist() == right(own, length)
        assert got[row].tolist() == right([i for i in own if i != q[3]], length)
        assert merged[row].tolist() == right(others, length)


def test_by_hand():
    # user 2: domain 0 at times 1, 3, 3; domain 1 at times 2, 3.
    history = stored([2, 2, 2, 2, 2], [0, 1, 0, 0, 1], [1, 2, 3, 3, 3], [11, 21, 12, 13, 22], domains=2)
    own = history.cut(np.array([2, 2]), np.array([3, 4]), np.array([0, 0]), 4)
    assert own["item"].tolist() == [[0, 0, 0, 11], [0, 11, 12, 13]]  # at time 3 the ties at 3 stay out
    others = history.cut(np.array([2]), np.array([4]), np.array([0]), 3, others=True)
    assert others["item"].tolist() == [[0, 21, 22]]
    assert others["domain"].tolist() == [[-1, 1, 1]]
    everything = history.cut(np.array([2]), None, None, None)
    assert everything["item"].tolist() == [[11, 21, 12, 13, 22]]
    assert "behaviour" not in everything
    assert list(history.cut(np.array([2]), None, None, 2, columns=("item",))) == ["item"]


def test_length_none_is_the_longest_among_the_rows():
    history = stored([2, 2, 3], [0, 0, 0], [1, 2, 1], [5, 6, 7])
    assert history.cut(np.array([2, 3]), np.array([9, 9]), np.array([0, 0]), None)["item"].tolist() == [[5, 6], [0, 7]]
    assert history.cut(np.array([9]), np.array([9]), np.array([0]), None)["item"].shape == (1, 0)


def test_no_events_at_all():
    history = stored([], [], [], [])
    assert len(history) == 0
    assert history.cut(np.array([4]), np.array([3]), np.array([1]), 2)["item"].tolist() == [[0, 0]]
    assert history.cut(np.array([4]), np.array([3]), np.array([1]), 2, others=True)["item"].tolist() == [[0, 0]]


def test_refusals():
    timed = stored([2], [0], [1], [3], domains=1)
    with pytest.raises(DataError, match="exclude_item"):
        timed.cut(np.array([2]), np.array([2]), np.array([0]), 1, exclude_item=np.array([3]))
    with pytest.raises(DataError, match="exclude_item"):
        timed.cut(np.array([2]), np.array([2]), None, 1, exclude_item=np.array([3]))


def test_damaged_files_are_refused(tmp_path):
    stored([2, 3], [0, 1], [1, 2], [3, 4], folder=tmp_path)
    folder = tmp_path / "history"
    path = folder / "event.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"event\.arrow"):
        History.load(folder)
    (folder / "pair.arrow").rename(path)
    with pytest.raises(SourceError, match=r"pair\.arrow is missing"):
        History.load(folder)
    (folder / "history.json").write_text('{"domains": 3, "columns": ["item"]}')
    with pytest.raises(SourceError, match="other columns"):
        History.load(folder)
    (folder / "item.arrow").unlink()
    with pytest.raises(SourceError, match="missing"):
        History.load(folder)


def test_ratings_come_along_with_their_events() -> None:
    """Own domain, other domains, and without times the row's own rating stays out with its item."""
    user, domain, item, label = [2, 2, 2, 2], [0, 0, 1, 0], [5, 6, 7, 8], [1.0, 4.5, 3.0, 2.0]
    timed = stored(user, domain, [3, 1, 2, 4], item, label=label)
    asked = {"user": np.array([2]), "domain": np.array([0]), "columns": ("item", "label")}
    found = timed.cut(time=np.array([4]), length=3, **asked)
    assert found["item"].tolist() == [[0, 6, 5]]
    assert found["label"].tolist() == [[0.0, 4.5, 1.0]]
    others = timed.cut(time=np.array([3]), length=2, others=True, **asked)
    assert (others["item"].tolist(), others["label"].tolist()) == ([[0, 7]], [[0.0, 3.0]])
    untimed = stored(user, domain, None, item, label=label)
    found = untimed.cut(time=None, length=3, exclude_item=np.array([6]), **asked)
    assert found["label"].tolist() == [[0.0, 1.0, 2.0]]
    assert "label" not in stored(user, domain, None, item).cut(time=None, length=3, **asked)
