"""User-kNN across domains: numbers worked by hand, and an independent dense implementation."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from isthmus.how import How
from isthmus.layers.from_data import fill
from isthmus.models.user_knn import UserKnn
from isthmus.score import score
from isthmus.task import get_task

Row = tuple[Any, ...]
# Both levels are 3.  In x, v and z judge as u does, w the other way round; s is known in y alone.
X = [(user, item, "x", label) for user, labels in (("u", (5, 1)), ("v", (5, 1)), ("w", (1, 5)), ("z", (4, 2)))
     for item, label in zip("ab", labels, strict=True)]  # fmt: skip
Y = [("v", "e", "y", 5), ("z", "e", "y", 2), ("w", "e", "y", 1), ("s", "e", "y", 4)]
HELD = [("u", "e", "y", 3), ("new", "f", "y", 5)]
ONLY_NEIGHBOURS: dict[str, float] = {"shrink_items": 1e9, "shrink_users": 1e9}
LATE = 1000


def made(path: Path, rows: list[Row], held: list[Row], label: bool = True, time: bool = False) -> Dataset:
    """Rows of user, item, domain, label and time, and some held out."""
    frame = pl.DataFrame(rows + held, schema=["user", "item", "domain", "label", *(["time"] if time else [])], orient="row")
    named = {"user": "user", "item": "item", "domain": "domain"}
    events = read_events(frame, **named, label="label" if label else None, time="time" if time else None)
    return encode(events, split.given(events, ["train"] * len(rows) + ["test"] * len(held)), path / "data")


def solved(model: UserKnn, data: Dataset, domains: tuple[int, ...] = (0, 1)) -> UserKnn:
    fill(model, data)
    (stage,) = model.stages()
    assert stage.solve is not None
    stage.solve(data, domains)
    return model.eval()


def ask(model: UserKnn, data: Dataset, user: list[str], domain: str, items: list[str], time: list[int] | None = None) -> np.ndarray:
    """(users, items) scores in a domain."""
    code, item = np.array(data.user_vocabulary.encode(user)), np.array(data.item_vocabulary.encode(items))
    where = np.full(len(user), data.schema.domain_index(domain))
    moment = None if time is None else np.array(time)
    return model(query_batch(data, model.needs, code, where, moment, np.tile(item, (len(user), 1)))).logit.numpy()


@pytest.fixture
def rated(tmp_path: Path) -> Dataset:
    return made(tmp_path, [*X, *Y], [*HELD])


class TestByHand:
    def test_neighbours_who_agree_are_weighed(self, rated: Dataset) -> None:
        model = solved(UserKnn(rated.schema, shrink=1.0, damping=2.0, **ONLY_NEIGHBOURS), rated)
        # u = (2, -2); v = (2, -2) and 2 at e; z = (1, -1) and -1 at e: both cosines are sqrt(2/3), two pairs in common.
        sim = 2 / 4 * math.sqrt(2 / 3)
        assert ask(model, rated, ["u"], "y", ["e"])[0] == pytest.approx([3 + (sim * 2 - sim * 1) / (2 * sim + 1)], abs=1e-5)

    def test_nobody_is_her_own_neighbour(self, rated: Dataset) -> None:
        model = solved(UserKnn(rated.schema, shrink=1.0, damping=2.0, **ONLY_NEIGHBOURS), rated)
        # v = (2, -2, 2 at e) has z as a neighbour, and s by e alone; her own 2 would lift the score above 3.
        z, s = 3 / 5 * (2 + 2 - 2) / math.sqrt(12 * 3), 1 / 3 * 2 / math.sqrt(12)
        assert ask(model, rated, ["v"], "y", ["e"])[0] == pytest.approx([3 + (s - z) / (s + z + 1)], abs=1e-5)

    def test_her_own_mean_counts(self, rated: Dataset) -> None:
        model = solved(UserKnn(rated.schema, shrink=1e9, shrink_items=1e9, shrink_users=2.0), rated)
        found = ask(model, rated, ["v", "z", "u", "s"], "y", ["f"])[:, 0]
        assert found == pytest.approx([3 + 2 / 5, 3 - 1 / 5, 3, 3 + 1 / 3], abs=1e-5)

    def test_strangers_and_new_items_get_level_and_item_bias(self, rated: Dataset) -> None:
        model = solved(UserKnn(rated.schema, shrink_items=2.0), rated)
        assert ask(model, rated, ["new", "never heard of"], "y", ["e", "f", "nowhere"]) == pytest.approx(np.full((2, 3), 3), abs=1e-6)
        assert ask(model, rated, ["new"], "x", ["a", "b"])[0] == pytest.approx([3 + 3 / 6, 3 - 3 / 6], abs=1e-6)
        assert ask(model, rated, ["u"], "y", ["f"])[0] == pytest.approx([3 + ((2 - 0.5) + (-2 + 0.5)) / 12], abs=1e-6)

    def test_only_the_k_nearest_are_asked(self, tmp_path: Path) -> None:
        near = [("n", "a", "x", 5), ("n", "b", "x", 1), ("n", "c", "x", 3)]
        far = [("far", "a", "x", 5), ("far", "b", "x", 3), ("far", "c", "x", 1)]
        here = [("n", "e", "y", 1), ("far", "e", "y", 5)]
        me = [("me", "a", "x", 5), ("me", "b", "x", 1), ("me", "c", "x", 3)]
        data = made(tmp_path, [*near, *far, *here, *me], [("me", "e", "y", 1)])
        one, both = (ask(solved(UserKnn(data.schema, k=k, **ONLY_NEIGHBOURS), data), data, ["me"], "y", ["e"])[0, 0] for k in (1, 2))
        assert one < both < 3  # n alone says 1; far, who is less like me, says 5

    def test_a_control_learns_from_its_own_domain_alone(self, rated: Dataset) -> None:
        model = solved(UserKnn(rated.schema, **ONLY_NEIGHBOURS), rated, (1,))
        assert ask(model, rated, ["u"], "y", ["e"])[0] == pytest.approx([3], abs=1e-6)


def rows_of(rng: np.random.Generator, kind: str) -> list[Row]:
    """Thirty events of few users and items in two domains, some of them repeated."""
    draw = {"rating": lambda: float(rng.normal(3, 1)), "click": lambda: int(rng.integers(0, 2)), "implicit": lambda: 1}[kind]
    return [(f"u{rng.integers(6)}", f"i{rng.integers(5)}", "xy"[n % 2], draw(), n) for n in range(34)]


class Dense:
    """The same model over a users x pairs matrix, without a shared line."""

    def __init__(self, rows: list[Row], kind: str, k: int, shrink: float, damping: float, shrink_users: float, shrink_items: float) -> None:
        self.rows, self.kind, self.k, self.shrink, self.damping = rows, kind, k, shrink, damping
        self.shrink_users, self.shrink_items = shrink_users, shrink_items
        self.pairs = [(f"i{i}", d) for i in range(6) for d in "xy"]
        self.users = [f"u{u}" for u in range(7)]
        self.others = {u: self.residuals([r for r in rows if r[0] == u])[0] for u in self.users}

    def mean(self, domain: str) -> float:
        y = [r[3] for r in self.rows if r[2] == domain]
        return (sum(y) + 0.5) / (len(y) + 1) if self.kind == "click" else sum(y) / len(y)

    def expected(self, item: str, domain: str) -> float:
        """Rating, click rate, or 0."""
        y, m = [r[3] for r in self.rows if r[1:3] == (item, domain)], self.mean(domain)
        return 0.0 if self.kind == "implicit" else (sum(y) + self.shrink_items * m) / (len(y) + self.shrink_items)

    def residuals(self, rows: list[Row]) -> tuple[np.ndarray, float]:
        """(pairs,) residuals, NaN where there is nothing, and the bias."""
        found = np.full(len(self.pairs), np.nan)
        for n, pair in enumerate(self.pairs):
            values = [r[3] - self.expected(*pair) for r in rows if r[1:3] == pair]
            if values:
                found[n] = np.mean(values)
        bias = np.nansum(found) / (np.isfinite(found).sum() + self.shrink_users) if self.kind == "rating" else 0.0
        return found - bias, float(bias)

    def score(self, user: str, item: str, domain: str, time: int) -> float:
        past = [r for r in self.rows if r[0] == user and r[4] < time and not (self.kind == "click" and not r[3])]
        own, bias = self.residuals(past)
        place, base = self.pairs.index((item, domain)), self.expected(item, domain)
        told = []
        for v in self.users:
            other = self.others[v]
            common = np.isfinite(own) & np.isfinite(other)
            norms = math.sqrt(np.nansum(own**2)) * math.sqrt(np.nansum(other**2))
            if v != user and np.isfinite(other[place]) and common.any() and norms > 1e-9:
                sim = common.sum() / (common.sum() + self.damping) * (own[common] @ other[common]) / norms
                told.append((max(sim, 0.0), other[place]))
        told = sorted(told, reverse=True)[: self.k or None]
        top, bottom = sum(s * r for s, r in told), sum(s for s, _ in told)
        if self.kind == "click":
            return math.log(base / (1 - base)) + top / (bottom * base * (1 - base) + self.shrink)
        return base + bias + top / (bottom + self.shrink)


@settings(max_examples=40, deadline=None)
@forall(
    st.integers(0, 10**6),
    st.sampled_from(["rating", "click", "implicit"]),
    st.sampled_from([0, 1, 2]),
    st.floats(0.05, 3),
    st.floats(0, 5),
    st.floats(0.5, 20),
)
def test_against_a_dense_implementation(seed: int, kind: str, k: int, shrink: float, damping: float, shrink_users: float) -> None:
    rng = np.random.default_rng(seed)
    rows, args = rows_of(rng, kind), {"shrink": shrink, "damping": damping, "shrink_users": shrink_users, "shrink_items": 2.0}
    k = k if kind == "rating" else 0  # elsewhere neighbours tie
    held = [("u6", "i5", "x", 1, LATE), ("u6", "i5", "y", 1, LATE)]
    with TemporaryDirectory() as folder:
        data = made(Path(folder), rows, held, label=kind != "implicit", time=True)
        model, dense = solved(UserKnn(data.schema, k=k, **args), data), Dense(rows, kind, k, **args)
        assert data.schema.label == kind
        users, items = [f"u{n}" for n in range(7)] * 2, [f"i{n}" for n in range(6)]
        times = rng.integers(0, LATE, len(users)).tolist()
        times[:7] = [LATE] * 7
        for domain in "xy":
            found = ask(model, data, users, domain, items, times)
            expected = [[dense.score(u, i, domain, t) for i in items] for u, t in zip(users, times, strict=True)]
            assert found == pytest.approx(np.array(expected), abs=2e-4)


def test_blocks_of_rows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(tmp_path, rows_of(np.random.default_rng(0), "rating"), [("u6", "i5", "x", 1.0, LATE)], time=True)
    model = solved(UserKnn(data.schema, k=2), data)
    question = (data, [f"u{n}" for n in range(7)], "y", [f"i{n}" for n in range(6)], [LATE] * 7)
    whole = ask(model, *question)
    for size in (1, 30, 100):
        monkeypatch.setattr("isthmus.models.user_knn.WORKING_SET", size)
        assert ask(model, *question) == pytest.approx(whole, abs=1e-6)


def test_tastes_shared_across_domains_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    taste = rng.choice([-1, 1], 120)
    rows = [
        (f"u{u}", f"{d}{i}", d, float(3 + taste[u] * (1 if i % 2 else -1) + 0.5 * rng.normal()), n)
        for n, (d, u, i) in enumerate((d, u, i) for d in "xy" for u in range(120) for i in rng.permutation(20)[:8])
    ]
    known = [row for row in rows if row[2] == "x" or int(row[0][1:]) < 90]
    held = [(*row[:4], LATE * 10) for row in rows if row not in known]
    data = made(tmp_path, known, held, time=True)
    frame = score(solved(UserKnn(data.schema), data), data, "test", task=get_task("rating"), how=How(device="cpu")).frame
    error = math.sqrt(((frame["score"] - frame["label"]) ** 2).mean())  # type: ignore[operator]
    assert error < 0.75  # 0.5 is noise; level and biases alone leave 1.1


def test_a_saved_state_loads_into_a_fresh_model(rated: Dataset, tmp_path: Path) -> None:
    model = solved(UserKnn(rated.schema), rated)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(fresh := UserKnn(rated.schema).eval(), str(tmp_path / "model.safetensors"))
    question = (rated, ["u", "v"], "y", ["e", "f"])
    assert np.array_equal(ask(fresh, *question), ask(model, *question))
    assert not np.array_equal(ask(UserKnn(rated.schema).eval(), *question), ask(model, *question))
    assert torch.equal(fresh.posts.users, model.posts.users)


@pytest.mark.parametrize("wrong", [{"k": -1}, {"shrink": 0.0}, {"damping": -1.0}, {"shrink_users": -1.0}])
def test_refuses_what_it_cannot_do(rated: Dataset, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="shrink above 0"):
        UserKnn(rated.schema, **wrong)
