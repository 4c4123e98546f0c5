"""Bias transfer on ratings and clicks worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_model, save_model

from isthmus.data import split
from isthmus.data.batches import query_batch
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.layers.from_data import fill
from isthmus.models.bias_transfer import BiasTransfer

Row = tuple[Any, ...]
# x: level 3; a has bias 2/3, b 0, c -1 (shrunk by 1); the users' residuals: p 4/3 + 1, q -2/3 - 1, r -1.
X = [("p", "a", "x", 5.0), ("q", "a", "x", 3.0), ("p", "b", "x", 4.0), ("q", "b", "x", 2.0), ("r", "c", "x", 1.0)]
# y: level 3; e has bias 2/3, f -2/3; q's residual is -1/3.
Y = [("s", "e", "y", 4.0), ("s", "f", "y", 2.0), ("t", "e", "y", 4.0), ("q", "f", "y", 2.0)]
HELD = [("p", "c", "x", 3.0), ("t", "g", "y", 1.0), ("new", "g", "y", 1.0)]


def made(path: Path, rows: list[Row], held: list[Row], time: bool = False) -> Dataset:
    """Rows of user, item, domain, label and perhaps time, and some held out."""
    names = ["user", "item", "domain", "label", *(["time"] if time else [])]
    frame = pl.DataFrame(rows + held, schema=names, orient="row")
    events = read_events(frame, user="user", item="item", domain="domain", label="label", time="time" if time else None)
    return encode(events, split.given(events, ["train"] * len(rows) + ["test"] * len(held)), path / "data")


def solved(model: BiasTransfer, data: Dataset, domains: tuple[int, ...] = (0, 1)) -> BiasTransfer:
    fill(model, data)
    (stage,) = model.stages()
    assert stage.solve is not None
    stage.solve(data, domains)
    return model.eval()


def ask(model: BiasTransfer, data: Dataset, user: str, domain: str, items: str, time: int | None = None) -> list[float]:
    """Scores of one-letter items."""
    code, item = data.user_vocabulary.encode(pl.Series([user])), data.item_vocabulary.encode(pl.Series(list(items)))
    moment = None if time is None else np.array([time])
    batch = query_batch(data, model.needs, np.array(code), np.array([data.schema.domain_index(domain)]), moment, np.array([item]))
    return model(batch).logit[0].tolist()


@pytest.fixture
def rated(tmp_path: Path) -> Dataset:
    return made(tmp_path, X + Y, HELD)


class TestRatings:
    def model(self, data: Dataset, weight: float = 0.5) -> BiasTransfer:
        return solved(BiasTransfer(data.schema, shrink_items=1.0, shrink_users=2.0, weight=weight), data)

    def test_a_new_user_has_her_bias_from_elsewhere(self, rated: Dataset) -> None:
        carried = 0.5 * (4 / 3 + 1) / (2 + 2)
        found = ask(self.model(rated), rated, "p", "y", "efg")
        assert found == pytest.approx([3 + 2 / 3 + carried, 3 - 2 / 3 + carried, 3 + carried], abs=1e-6)

    def test_what_she_said_here_is_weighed_against_it(self, rated: Dataset) -> None:
        user = (-1 / 3 + 2 * 0.5 * (-5 / 3) / (2 + 2)) / (1 + 2)
        assert ask(self.model(rated), rated, "q", "y", "ef") == pytest.approx([3 + 2 / 3 + user, 3 - 2 / 3 + user], abs=1e-6)
        back = (-5 / 3 + 2 * 0.5 * (-1 / 3) / (1 + 2)) / (2 + 2)  # the other way round
        assert ask(self.model(rated), rated, "q", "x", "ac") == pytest.approx([3 + 2 / 3 + back, 3 - 1 + back], abs=1e-6)

    def test_a_user_of_no_other_domain_has_her_own_bias_alone(self, rated: Dataset) -> None:
        user = (1 / 3 - 1 / 3) / (2 + 2)
        assert ask(self.model(rated), rated, "s", "y", "e") == pytest.approx([3 + 2 / 3 + user], abs=1e-6)
        assert ask(self.model(rated), rated, "t", "y", "f") == pytest.approx([3 - 2 / 3 + (1 / 3) / 3], abs=1e-6)

    @pytest.mark.parametrize("user", ["new", "never heard of"])
    def test_nobody_and_nothing_get_level_and_item(self, rated: Dataset, user: str) -> None:
        assert ask(self.model(rated), rated, user, "y", "efgz") == pytest.approx([3 + 2 / 3, 3 - 2 / 3, 3, 3], abs=1e-6)

    def test_only_what_came_before_counts(self, tmp_path: Path) -> None:
        rows = [(*row, n) for n, row in enumerate(X + Y)]
        data = made(tmp_path, rows, [(*row, 100 + n) for n, row in enumerate(HELD)], time=True)
        model = self.model(data)
        assert ask(model, data, "p", "y", "e", time=1) == pytest.approx([3 + 2 / 3 + 0.5 * (4 / 3) / 3], abs=1e-6)
        assert ask(model, data, "p", "y", "e", time=0) == pytest.approx([3 + 2 / 3], abs=1e-6)
        assert ask(model, data, "p", "y", "e", time=50) == ask(model, rated_again(tmp_path), "p", "y", "e")

    def test_learnt_weights_are_least_squares_without_the_rows_own_rating(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        cells = {d: rng.permutation(72)[:25] for d in "xy"}  # as many in both, so that each row is met once
        rows = [(f"u{c // 6}", f"i{c % 6}", d, float(rng.integers(1, 6))) for d in "xy" for c in cells[d]]
        data = made(tmp_path, rows, HELD)
        found = solved(BiasTransfer(data.schema, shrink_items=3.0, shrink_users=2.0), data).weight.tolist()
        level = {d: np.mean([r[3] for r in rows if r[2] == d]) for d in "xy"}

        def bias(item: str, domain: str, but: Row | None = None) -> float:
            others = [r[3] - level[domain] for r in rows if r[1:3] == (item, domain) and r is not but]
            return sum(others) / (len(others) + 3)

        for d, domain in enumerate("xy"):
            top = bottom = 0.0
            for row in [r for r in rows if r[2] == domain]:
                elsewhere = [r[3] - level[r[2]] - bias(r[1], r[2]) for r in rows if r[0] == row[0] and r[2] != domain]
                x = sum(elsewhere) / (len(elsewhere) + 2)
                top += x * (row[3] - level[domain] - bias(row[1], domain, row))
                bottom += x * x
            assert found[d] == pytest.approx(top / bottom, abs=1e-4)

    def test_the_share_that_holds_elsewhere_is_found(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        taste = rng.normal(size=60)
        rows = [
            (f"u{u:02}", f"{d}{i:02}", d, float(3 + share * taste[u] + 0.1 * rng.normal()))
            for d, share in (("x", 1.0), ("y", 0.6))
            for u in range(60)
            for i in range(30)
        ]
        data = made(tmp_path, rows, HELD)
        model = solved(BiasTransfer(data.schema, shrink_users=0.1), data)
        assert model.weight.tolist() == pytest.approx([1 / 0.6, 0.6], rel=0.05)


def rated_again(path: Path) -> Dataset:
    """The same ratings without times."""
    (folder := path / "untimed").mkdir()
    return made(folder, X + Y, HELD)


class TestClicks:
    ROWS = (
        *(("p", "a", "x", 1), ("p", "b", "x", 1), ("q", "a", "x", 0), ("q", "b", "x", 0), ("r", "a", "x", 1), ("r", "b", "x", 1)),
        *(("s", "e", "y", 1), ("s", "f", "y", 0), ("t", "e", "y", 0), ("q", "e", "y", 1)),
    )
    HELD_ = (("s", "a", "x", 0), ("p", "f", "y", 1))

    def test_a_newton_step_in_log_odds(self, tmp_path: Path) -> None:
        data = made(tmp_path, [*self.ROWS], [*self.HELD_])
        model = solved(BiasTransfer(data.schema, shrink_items=1.0, shrink_users=2.0, weight=0.5), data)
        mean = {"x": 4.5 / 7, "y": 2.5 / 5}

        def rate(item: str, domain: str) -> float:
            mine = [r[3] for r in self.ROWS if r[1:3] == (item, domain)]
            return (sum(mine) + mean[domain]) / (len(mine) + 1)

        def known(user: str, domain: str) -> tuple[float, float]:
            mine = [(r[3], rate(r[1], domain)) for r in self.ROWS if (r[0], r[2]) == (user, domain)]
            return sum(y - p for y, p in mine), sum(p * (1 - p) for _, p in mine)

        for user, domain, other in (("p", "y", "x"), ("r", "y", "x"), ("p", "x", "y"), ("s", "y", "x"), ("new", "y", "x")):
            (own, m), (away, n) = known(user, domain), known(user, other)
            bias = (own + 2 * 0.5 * away / (n + 2)) / (m + 2)
            items = "ef" if domain == "y" else "ab"
            expected = [math.log(rate(i, domain) / (1 - rate(i, domain))) + bias for i in items]
            assert ask(model, data, user, domain, items) == pytest.approx(expected, abs=1e-5), (user, domain)
        assert ask(model, data, "p", "y", "e") > ask(model, data, "new", "y", "e")

    @pytest.mark.parametrize("sign", [1, -1])
    def test_weights_tell_whether_clickers_here_click_there(self, tmp_path: Path, sign: int) -> None:
        rng = np.random.default_rng(1)
        eager = rng.normal(size=80)
        chance = {"x": 1 / (1 + np.exp(-eager)), "y": 1 / (1 + np.exp(-sign * eager))}
        rows = [(f"u{u:02}", f"{d}{i}", d, int(rng.random() < chance[d][u])) for d in "xy" for u in range(80) for i in range(20)]
        model = solved(BiasTransfer((data := made(tmp_path, rows, [*self.HELD_])).schema), data)
        assert min(sign * w for w in model.weight.tolist()) > 0.5
        assert torch.isfinite(torch.tensor(ask(model, data, "u00", "x", "z"))).all()


def test_a_saved_state_loads_into_a_fresh_model(rated: Dataset, tmp_path: Path) -> None:
    model = solved(BiasTransfer(rated.schema), rated)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(fresh := BiasTransfer(rated.schema).eval(), str(tmp_path / "model.safetensors"))
    question = (rated, "q", "y", "efg")
    assert ask(fresh, *question) == ask(model, *question) != ask(BiasTransfer(rated.schema).eval(), *question)


def test_a_shrink_of_nothing_is_refused(rated: Dataset) -> None:
    with pytest.raises(ConfigError, match="shrink_users = 0"):
        BiasTransfer(rated.schema, shrink_users=0)
