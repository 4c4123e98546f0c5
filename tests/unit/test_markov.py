"""Markov transitions: counts and scores worked by hand, an independent slow reference, and events of one moment."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model

from isthmus.data import split
from isthmus.data.batches import query_batch
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.layers.transitions import Transitions
from isthmus.models.markov import Markov
from isthmus.schema import Schema

Row = tuple[str, str, str, int]
LATE = 1000
# In x, p has a b c and q has a c (stored out of order); in y, p has e after b.
ROWS = [("q", "c", "x", 9), ("p", "a", "x", 1), ("p", "b", "x", 2), ("p", "c", "x", 4), ("q", "a", "x", 8), ("p", "e", "y", 3)]
HELD = [("p", "d", "x", 50), ("q", "e", "y", 51)]


def made(path: Path, rows: list[Row], held: list[Row], timed: bool = True, label: list[int] | None = None) -> Dataset:
    """Training rows of user, item, domain and time, and some held out."""
    frame = pl.DataFrame(rows + held, schema=["user", "item", "domain", "time"], orient="row")
    frame = frame if timed else frame.drop("time")
    if label is not None:
        frame = frame.with_columns(pl.Series("label", label + [1] * len(held)))
    named = {"user": "user", "item": "item", "domain": "domain", "time": "time" if timed else None}
    events = read_events(frame, **named, label=None if label is None else "label")
    return encode(events, split.given(events, ["train"] * len(rows) + ["test"] * len(held)), path / "data")


def solved(model: Markov, data: Dataset, domains: tuple[int, ...] = (0, 1)) -> Markov:
    (stage,) = model.stages()
    assert stage.solve is not None
    stage.solve(data, domains)
    return model.eval()


def ask(model: Markov, data: Dataset, user: str, domain: str, items: str, time: int | None = LATE) -> list[float]:
    """Scores of one-letter items as of a moment; with other rows beside."""
    code = np.array(data.user_vocabulary.encode([user, user]))
    item = np.tile(np.array(data.item_vocabulary.encode(list(items))), (2, 1))
    moment = None if time is None else np.array([time, time])
    where = np.full(2, data.schema.domain_index(domain))
    batch = query_batch(data, model.needs, code, where, moment, item)
    return model(batch).logit[1].tolist()


@pytest.fixture
def two(tmp_path: Path) -> Dataset:
    return made(tmp_path, ROWS, HELD)


class TestByHand:
    def test_transitions_of_the_latest_event(self, two: Dataset) -> None:
        model = solved(Markov(two.schema, window=2, decay=1.0, shrink=1.0, popularity=0.0), two)
        # a -> b 1, a -> c 1/2 (p) + 1 (q), b -> c 1; n(a) = 2, n(b) = 1.  As of time 2 p has had a alone; as of 4, a and b.
        assert ask(model, two, "p", "x", "abcd", 2) == pytest.approx([0, 1 / 3, 1.5 / 3, 0])
        assert ask(model, two, "p", "x", "abcd", 4) == pytest.approx([0, 1 / 3, 1.5 / 3 + 1 / 2, 0])

    def test_older_events_fade_and_those_beyond_the_window_are_silent(self, two: Dataset) -> None:
        half = solved(Markov(two.schema, window=2, decay=0.5, shrink=0.0, popularity=0.0), two)
        assert ask(half, two, "p", "x", "bc", 4) == pytest.approx([0.5 * 1 / 2, 0.5 * 1.5 / 2 + 1])
        one = solved(Markov(two.schema, window=1, decay=0.5, shrink=0.0, popularity=0.0), two)
        assert ask(one, two, "p", "x", "bc", 4) == pytest.approx([0, 1])  # and a -> c is q's alone
        assert ask(one, two, "p", "x", "bc", 2) == pytest.approx([1 / 2, 1 / 2])

    def test_popularity_of_the_domain_breaks_ties(self, two: Dataset) -> None:
        for across in (False, True):
            model = solved(Markov(two.schema, popularity=0.1, across=across), two)
            assert ask(model, two, "nobody", "x", "abcdez") == pytest.approx([0.1 * share for share in (0.4, 0.2, 0.4, 0, 0, 0)])
            assert ask(model, two, "nobody", "y", "abe") == pytest.approx([0, 0, 0.1])

    def test_across_reads_and_learns_one_sequence(self, two: Dataset) -> None:
        model = solved(Markov(two.schema, window=1, shrink=0.0, popularity=0.0, across=True), two)
        # p: a b e c in order of time.  b -> e, e -> c, a -> b and (q) a -> c; nothing from b to c.
        assert ask(model, two, "p", "y", "bce", 3) == pytest.approx([0, 0, 1])
        assert ask(model, two, "p", "x", "bce", 4) == pytest.approx([0, 1, 0])
        wide = solved(Markov(two.schema, window=2, decay=0.5, shrink=0.0, popularity=0.0, across=True), two)
        assert ask(wide, two, "p", "x", "bce", 4) == pytest.approx([0, 1 + 0.5 / 2, 0.5])  # e, then b one back; a is beyond

    def test_alone_a_domain_hears_nothing_of_others(self, two: Dataset) -> None:
        model = solved(Markov(two.schema, popularity=0.0), two)
        assert ask(model, two, "p", "y", "abce") == [0, 0, 0, 0]
        alone = solved(Markov(two.schema), two, (0,))
        together = solved(Markov(two.schema), two)
        assert ask(alone, two, "p", "x", "abcd", 4) == ask(together, two, "p", "x", "abcd", 4)
        assert ask(alone, two, "p", "y", "e") == [0]

    def test_events_of_one_moment_follow_as_stored(self, tmp_path: Path) -> None:
        rows = [("p", "b", "x", 5), ("p", "a", "x", 5), ("p", "e", "y", 5), ("p", "c", "x", 5)]
        data = made(tmp_path, rows, HELD)
        model = solved(Markov(data.schema, window=1, shrink=0.0, popularity=0.0), data)
        found = {"".join(pair) for pair in pairs(model, data)}
        assert found == {"ba", "ac"}
        joined = solved(Markov(data.schema, window=1, shrink=0.0, popularity=0.0, across=True), data)
        assert {"".join(pair) for pair in pairs(joined, data)} == {"ba", "ae", "ec"}
        assert ask(model, data, "p", "x", "abc", 5) == [0, 0, 0]  # none of them is over

    def test_clicks_alone_make_sequences(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 1), ("p", "b", "x", 2), ("p", "c", "x", 3), ("p", "e", "y", 1)]
        data = made(tmp_path, rows, HELD, label=[1, 0, 1, 1])
        model = solved(Markov(data.schema, window=1, shrink=0.0, popularity=0.0), data)
        assert pairs(model, data) == [("a", "c")]

    def test_without_times_the_stored_order_counts_and_the_own_domain_is_latest(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 0), ("p", "b", "x", 0), ("p", "e", "y", 0), ("q", "e", "y", 0), ("q", "f", "y", 0)]
        data = made(tmp_path, rows, HELD, timed=False)
        model = solved(Markov(data.schema, window=1, shrink=0.0, popularity=0.0, across=True), data)
        assert sorted(pairs(model, data)) == [("a", "b"), ("b", "e"), ("e", "f")]
        assert ask(model, data, "p", "x", "be", None) == [0, 1]  # after b
        assert ask(model, data, "p", "y", "bf", None) == [0, 0.5]  # after e


def pairs(model: Markov, data: Dataset) -> list[tuple[str, str]]:
    """What was seen to follow what, as items, whatever the domain."""
    size, keys = data.schema.item.size, model.transitions.keys
    source, item = (data.item_vocabulary.decode(codes.numpy()).to_list() for codes in (keys // size % size, keys % size))
    return list(zip(source, item, strict=True))


def reference(rows: list[Row], asked: Row, window: int, decay: float, shrink: float, popularity: float, across: bool) -> float:
    """The same score by loops, without a shared line."""
    user, item, domain, now = asked
    sequences: dict[tuple[str, str], list[str]] = {}
    for u, i, d, _ in sorted(rows, key=lambda row: row[3]):
        sequences.setdefault((u, "" if across else d), []).append(i)
    here = [s for (_, d), s in sequences.items() if d in ("", domain)]
    count = Counter(i for s in here for i in s)
    past = [i for u, i, d, t in sorted(rows, key=lambda row: row[3]) if u == user and t < now and (across or d == domain)]
    score = popularity * float(np.mean([i == item for _, i, d, _ in rows if d == domain]))
    for back, j in enumerate(past[::-1][:window]):
        near = sum(
            1 / (b - a) for s in here for a in range(len(s)) for b in range(a + 1, min(a + window + 1, len(s))) if (s[a], s[b]) == (j, item)
        )
        score += decay**back * near / (count[j] + shrink)
    return score


@settings(max_examples=30, deadline=None)
@forall(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.floats(0.05, 1),
    st.floats(0.01, 5),
    st.floats(-1, 1),
    st.booleans(),
)
def test_against_a_slow_reference(seed: int, window: int, decay: float, shrink: float, popularity: float, across: bool) -> None:
    rng = np.random.default_rng(seed)
    time = rng.permutation(32)
    rows = [(f"u{rng.integers(4)}", "abcd"[rng.integers(4)], "xy"[n % 2], int(time[n])) for n in range(32)]
    with TemporaryDirectory() as folder:
        data = made(Path(folder), rows, [("u0", "a", "x", 99), ("u0", "z", "y", 99)])
        model = solved(Markov(data.schema, window=window, decay=decay, shrink=shrink, popularity=popularity, across=across), data)
        for domain in "xy":
            now = int(rng.integers(34))
            found = ask(model, data, "u1", domain, "abcdz", now)
            expected = [reference(rows, ("u1", i, domain, now), window, decay, shrink, popularity, across) for i in "abcdz"]
            assert found == pytest.approx(expected, abs=1e-5)


class TestTransitions:
    @settings(max_examples=30, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 12), st.integers(0, 5))
    def test_both_ways_of_reading_equal_the_dense_product(self, seed: int, length: int, width: int, rows: int) -> None:
        rng = np.random.default_rng(seed)
        group, user, item = np.sort(rng.integers(0, 2, 40)), np.zeros(40, np.int64), rng.integers(2, 9, 40)
        block = Transitions(11)
        block.solve(group, user, item, window=2, shrink=1.0)
        dense = np.zeros((2, 11, 11))
        for a in range(40):
            for b in range(a + 1, min(a + 3, 40)):
                if group[a] == group[b]:
                    dense[group[a], item[a], item[b]] += 1 / (b - a) / (((group == group[a]) & (item == item[a])).sum() + 1)
        own, event = torch.tensor(rng.integers(0, 2, rows)), torch.tensor(rng.integers(0, 11, (rows, length)))
        weight, asked = torch.rand(length), torch.tensor(rng.integers(0, 11, (rows, width)))
        expected = (torch.tensor(dense)[own[:, None, None], event[:, :, None], asked[:, None]] * weight[:, None]).sum(1).float()
        first = (own[:, None] * 11 + event) * 11
        for found in (block(own, event, weight, asked), block._search(first, weight, asked), block._whole(first, weight, asked)):
            torch.testing.assert_close(found, expected)

    def test_blocks_of_rows_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        block = Transitions(20)
        block.solve(np.zeros(200, np.int64), np.sort(rng.integers(0, 9, 200)), rng.integers(2, 20, 200), window=3, shrink=0.0)
        first, item = torch.randint(0, 20, (9, 3)) * 20, torch.randint(0, 20, (9, 6))
        weight = torch.tensor([0.2, 0.5, 1.0])
        search, whole = block._search(first, weight, item), block._whole(first, weight, item)
        monkeypatch.setattr("isthmus.layers.transitions.WORKING_SET", 40)
        assert torch.equal(block._search(first, weight, item), search)
        assert torch.equal(block._whole(first, weight, item), whole)

    def test_nothing_seen_says_nothing(self) -> None:
        block, none = Transitions(5), np.zeros(0, np.int64)
        for _ in range(2):
            assert block(torch.tensor([0]), torch.tensor([[2, 3]]), torch.ones(2), torch.tensor([[1, 2, 4]])).tolist() == [[0, 0, 0]]
            block.solve(none, none, none, window=2, shrink=1.0)


def test_a_whole_catalogue_scores_as_few_candidates(two: Dataset) -> None:
    model = solved(Markov(two.schema), two)
    code = np.array(two.user_vocabulary.encode(["p", "q", "nobody"]))
    where, moment, every = np.zeros(3, np.int64), np.full(3, LATE), np.tile(np.arange(two.schema.item.size), (3, 1))
    whole = model(query_batch(two, model.needs, code, where, moment, every)).logit
    for column in range(every.shape[1]):
        one = model(query_batch(two, model.needs, code, where, moment, every[:, [column]])).logit
        torch.testing.assert_close(one[:, 0], whole[:, column])


@pytest.mark.parametrize("across", [False, True])
def test_a_saved_state_loads_into_a_fresh_model(two: Dataset, tmp_path: Path, across: bool) -> None:
    model = solved(Markov(two.schema, across=across), two)
    save_model(model, str(tmp_path / "model.safetensors"))
    fresh = Markov(two.schema, across=across).eval()
    before = ask(fresh, two, "p", "x", "abcde", 4)
    load_model(fresh, str(tmp_path / "model.safetensors"))
    assert ask(fresh, two, "p", "x", "abcde", 4) == ask(model, two, "p", "x", "abcde", 4) != before


def test_a_closed_form_has_nothing_to_adapt(two: Dataset) -> None:
    with pytest.raises(ConfigError, match="fit it again"):
        Markov(two.schema).adaptation((1,), torch.zeros(two.schema.item.size, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [{"window": 0}, {"decay": 0.0}, {"decay": 1.1}, {"shrink": -1.0}, {"popularity": float("nan")}])
def test_refuses_what_it_cannot_do(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="window from 1"):
        Markov(Schema(), **wrong)
