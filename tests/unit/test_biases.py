"""Levels and item biases, against numbers worked by hand and a slow reference."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model

from isthmus.errors import ConfigError
from isthmus.layers.biases import Biases, Levels
from isthmus.schema import Domain, Entity, LabelKind, Schema

ITEMS = 9


def schema(label: LabelKind, domains: int = 2) -> Schema:
    names = tuple(Domain(f"d{n}") for n in range(domains))
    return Schema(Entity("user", (), 5, 6), Entity("item", (), ITEMS, ITEMS), names, label=label)


def data(item: list[int], domain: list[int], label: list[float] | None, domains: int = 2) -> Any:
    """A data set of which nothing but the training part is asked."""
    offsets = np.searchsorted(domain, np.arange(domains + 1))
    label_ = None if label is None else np.array(label, np.float32)
    rows = SimpleNamespace(item=np.array(item, np.int32), domain=np.array(domain, np.int16), offsets=offsets, label=label_)
    return SimpleNamespace(part=lambda name: {"train": rows}[name])


def taken(label: LabelKind, shrink: float, *columns: Any, domains: int = 2) -> Biases:
    biases = Biases(schema(label, domains), shrink)
    biases.take(data(*columns, domains=domains))
    return biases


def ask(biases: Biases, item: list[int], domain: list[int], label: list[float] | None = None) -> tuple[list[float], list[float]]:
    own = None if label is None else torch.tensor(label)
    bias, count = biases.item(torch.tensor(item), torch.tensor(domain), own)
    return bias.tolist(), count.tolist()


RATED = ([2, 2, 3, 4, 2, 3], [0, 0, 0, 0, 1, 1], [5.0, 4.0, 1.0, 2.0, 2.0, 4.0])  # means 3 and 3
CLICKED = ([2, 2, 2, 3], [0, 0, 0, 0], [1.0, 1.0, 0.0, 0.0])


class TestRatings:
    def test_by_hand(self) -> None:
        biases = taken("rating", 2.0, *RATED)
        assert biases.level.tolist() == [3, 3]
        bias, count = ask(biases, [2, 3, 4, 2, 3], [0, 0, 0, 1, 1])
        assert bias == pytest.approx([(9 - 6) / 4, (1 - 3) / 3, (2 - 3) / 3, (2 - 3) / 3, (4 - 3) / 3])
        assert count == [2, 1, 1, 1, 1]

    def test_a_rows_own_rating_is_left_out(self) -> None:
        bias, count = ask(taken("rating", 2.0, *RATED), [2, 2, 3], [0, 0, 0], [5.0, 4.0, 1.0])
        assert bias == pytest.approx([(4 - 3) / 3, (5 - 3) / 3, 0])
        assert count == [1, 1, 0]

    def test_unknown_pairs_have_no_bias_and_no_events(self) -> None:
        biases = taken("rating", 2.0, *RATED)
        for label in (None, [5.0, 1.0, 5.0]):
            assert ask(biases, [4, 8, 0], [1, 0, 1], label) == ([0, 0, 0], [0, 0, 0])

    def test_a_residual_is_what_level_and_item_leave(self) -> None:
        biases = taken("rating", 2.0, *RATED)
        found = biases.residual(torch.tensor([[2, 8]]), torch.tensor([[0, 1]]), torch.tensor([[5.0, 2.5]]))
        assert found.tolist() == [[pytest.approx(5 - 3 - 0.75), pytest.approx(-0.5)]]

    def test_a_domain_without_events_has_the_level_of_all(self) -> None:
        biases = taken("rating", 2.0, [2, 3, 2], [0, 0, 2], [1.0, 2.0, 6.0], domains=3)
        assert biases.level.tolist() == [1.5, 3, 6]


class TestClicks:
    def test_by_hand(self) -> None:
        biases = taken("click", 4.0, *CLICKED, domains=1)
        mean = 2.5 / 5
        assert biases.mean.tolist() == pytest.approx([mean])
        assert biases.level.tolist() == pytest.approx([0])
        bias, count = ask(biases, [2, 3, 8], [0, 0, 0])
        shares = [(2 + 4 * mean) / 7, (0 + 4 * mean) / 5]
        assert bias == pytest.approx([*(math.log(p / (1 - p)) for p in shares), 0], abs=1e-6)
        assert count == [3, 1, 0]

    def test_a_rows_own_click_is_left_out(self) -> None:
        bias, _ = ask(taken("click", 4.0, *CLICKED, domains=1), [2, 2, 3], [0, 0, 0], [1.0, 0.0, 0.0])
        shares = [(1 + 4 * 0.5) / 6, (2 + 4 * 0.5) / 6, 0.5]
        assert bias == pytest.approx([math.log(p / (1 - p)) for p in shares], abs=1e-6)

    @pytest.mark.parametrize("label", [0.0, 1.0])
    def test_a_domain_of_one_kind_of_label_stays_finite(self, label: float) -> None:
        biases = taken("click", 0.5, [2, 3], [0, 1], [label, label])
        assert biases.level.isfinite().all()
        assert all(map(math.isfinite, ask(biases, [2, 3, 4], [0, 1, 0])[0]))


def test_implicit_data_have_neither() -> None:
    biases = taken("implicit", 5.0, [2, 3], [0, 1], None)
    assert biases.level.tolist() == [0, 0]
    assert ask(biases, [2, 3], [0, 1]) == ([0, 0], [0, 0])


@settings(max_examples=60, deadline=None)
@forall(st.integers(0, 10**6), st.sampled_from(["rating", "click"]), st.floats(0.1, 30), st.integers(1, 25))
def test_against_a_slow_reference(seed: int, kind: LabelKind, shrink: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    domain, item = np.sort(rng.integers(0, 2, n)), rng.integers(2, ITEMS, n)
    label = rng.integers(0, 2, n) if kind == "click" else rng.integers(1, 6, n)
    biases = taken(kind, shrink, item, domain, label)
    here = [label[domain == d] if (domain == d).any() else label for d in range(2)]
    means = [(y.sum() + 0.5) / (len(y) + 1) if kind == "click" else y.mean() for y in here]

    def expected(d: int, others: np.ndarray) -> float:
        m = means[d]
        if kind == "rating":
            return sum(y - m for y in others) / (len(others) + shrink)
        p = (sum(others) + shrink * m) / (len(others) + shrink)
        return math.log(p / (1 - p)) - math.log(m / (1 - m))

    for d in range(2):
        assert biases.level[d].item() == pytest.approx(means[d] if kind == "rating" else math.log(means[d] / (1 - means[d])), abs=1e-5)
        for i in range(ITEMS):
            (bias,), (count,) = ask(biases, [i], [d])
            mine = label[(domain == d) & (item == i)]
            assert (bias, count) == (pytest.approx(expected(d, mine), abs=1e-4), len(mine))
    for row in range(n):  # leaving a row out is counting without it, at the same level
        rest = (domain == domain[row]) & (item == item[row]) & (np.arange(n) != row)
        (bias,), (count,) = ask(biases, [item[row]], [domain[row]], [float(label[row])])
        assert (bias, count) == (pytest.approx(expected(domain[row], label[rest]), abs=1e-4), rest.sum())


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    biases = taken("rating", 2.0, *RATED)
    save_model(biases, str(tmp_path / "biases.safetensors"))
    fresh = Biases(schema("rating"), 2.0)
    load_model(fresh, str(tmp_path / "biases.safetensors"))
    question = ([2, 3, 4, 8], [0, 1, 0, 1])
    assert ask(fresh, *question) == ask(biases, *question) != ask(Biases(schema("rating"), 2.0), *question)


def test_a_state_from_before_there_were_levels_has_none() -> None:
    levels = Levels(schema("rating"))
    levels.take(data(*RATED))
    assert levels.level.tolist() == [3, 3]
    levels.load_state_dict(OrderedDict())
    assert levels.level.tolist() == [0, 0]


def test_a_shrink_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="shrink = 0"):
        Biases(schema("rating"), 0)


def test_ratings_of_items_are_freed_of_their_users_biases() -> None:
    """Even items are mostly rated by harsh users, odd ones by kind ones."""
    rng = np.random.default_rng(0)
    users, items = 40, 30
    liking, quality = rng.normal(0, 1, users), rng.normal(0, 0.5, items)
    rows = [(u, i) for u in range(users) for i in range(items) if (u + i) % 3 == 0 or (liking[u] < 0) == (i % 2 == 0)]
    user, item = np.array(rows).T
    label = 3 + liking[user] + quality[item]
    part = SimpleNamespace(user=user, item=item, domain=np.zeros(len(rows), np.int16), label=label, offsets=np.array([0, len(rows)]))
    shape = Schema(Entity("user", (), users, users), Entity("item", (), items, items), (Domain("a"),), label="rating")
    likeness = {}
    for shrink in (None, 0.1):
        biases = Biases(shape, 0.1, shrink)
        biases.take(SimpleNamespace(part=lambda _: part))  # type: ignore[arg-type]
        every = torch.arange(items)
        likeness[shrink] = np.corrcoef(biases.item(every, torch.zeros_like(every))[0].numpy(), quality)[0, 1]
    assert likeness[0.1] > 0.98 > 0.9 > likeness[None]

    row = 5  # leaving a rating out of its item: as if the item had never had it
    code, here = torch.tensor([[item[row]]]), torch.zeros(1, 1, dtype=torch.int64)
    own = biases.own(torch.tensor([user[row]]), torch.tensor([[label[row]]], dtype=torch.float32))
    others = [label[r] - float(biases.users[user[r]]) for r in range(len(rows)) if item[r] == item[row] and r != row]
    bias, count = biases.item(code, here, own)
    assert count.item() == len(others)
    assert bias.item() == pytest.approx(sum(x - label.mean() for x in others) / (len(others) + 0.1), abs=1e-5)


@pytest.mark.parametrize("shrink", [0.0, -1.0])
def test_users_need_some_shrinkage(shrink: float) -> None:
    with pytest.raises(ConfigError, match="shrink_users"):
        Biases(schema("rating"), 5.0, shrink)
