"""Closed-form models: numbers worked by hand, slow references, and states that load into a fresh model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model

from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.layers.solved import ItemItem, PairTable, co_occurrence, find
from isthmus.model import Model
from isthmus.models.ease import Ease
from isthmus.models.item_knn import ItemKnn
from isthmus.models.mf import MF, least_squares_positives, least_squares_ratings
from isthmus.models.popularity import Popularity
from isthmus.schema import Schema

ALL = {"popularity": Popularity, "item_knn": ItemKnn, "ease": Ease, "mf": MF}


def dataset(path: Path, rows: list[tuple[Any, ...]], label: bool = False) -> Dataset:
    """Rows of user, item, domain and perhaps label, all but the last of each domain for training."""
    names = ["user", "item", "domain", *(["label"] if label else [])]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    last = frame.with_row_index().group_by("domain").agg(pl.col("index").max())["index"].to_list()
    events = read_events(frame, user="user", item="item", domain="domain", label="label" if label else None)
    part = ["test" if n in last else "train" for n in range(len(frame))]
    assert events.frame()["user"].to_list() == frame["user"].to_list()
    return encode(events, split.given(events, part), path / "data")


def solved(model: Model, data: Dataset, domains: tuple[int, ...] | None = None) -> Model:
    (stage,) = model.stages()
    assert stage.solve is not None
    stage.solve(data, tuple(range(len(data.schema.domains))) if domains is None else domains)
    return model.eval()


def ask(model: Model, data: Dataset, domain: int, user: str, items: str, history: str = "", cross: str = "") -> list[float]:
    """Scores of one-letter items in a domain for a user with given histories."""
    item, own, other = ([[*data.item_vocabulary.encode(pl.Series(list(text), dtype=pl.String))]] for text in (items, history, cross))
    offsets = [0] * (domain + 1) + [1] * (len(data.schema.domains) - domain)
    batch = Batch(
        torch.tensor(np.array(data.user_vocabulary.encode(pl.Series([user])), np.int64)),
        torch.tensor(np.array(item, np.int64)),
        torch.tensor([domain]),
        tuple(offsets),
        history=torch.tensor(np.array(own, np.int64)),
        cross_history=torch.tensor(np.array(other, np.int64)),
    )
    return model(batch).logit[0].tolist()


# Users p, q, r, s have ab, abc, bc, d in domain x; the last row of each domain is held out.
BASKETS = {"p": "ab", "q": "abc", "r": "bc", "s": "d"}
X_ROWS = [(user, item, "x") for user, items in BASKETS.items() for item in items]
Y_ROWS = [("t", "a", "y"), ("t", "e", "y"), ("u", "e", "y"), ("u", "b", "y"), ("u", "b", "y")]
HELD = [("s", "a", "x"), ("t", "b", "y")]
BINARY = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], float)


@pytest.fixture
def two(tmp_path: Path) -> Dataset:
    return dataset(tmp_path, X_ROWS + Y_ROWS + HELD)


class TestEase:
    def test_four_items_against_the_closed_form(self, two: Dataset) -> None:
        inverse = np.linalg.inv(BINARY.T @ BINARY + 2 * np.eye(4))
        weight = -inverse / np.diag(inverse)
        np.fill_diagonal(weight, 0)
        model = solved(Ease(two.schema, l2=2.0), two)
        assert ask(model, two, 0, "p", "abcd", "ab") == pytest.approx((weight[0] + weight[1]).tolist(), abs=1e-6)

    def test_two_items_by_hand(self, tmp_path: Path) -> None:
        # X'X = [[2, 1], [1, 1]], l2 = 1: minimise over b the squared error of predicting the first column by the
        # second: b = (x2'x1) / (x2'x2 + l2) = 1 / (1 + 1); and the second by the first: 1 / (2 + 1).
        data = dataset(tmp_path, [("p", "a", "x"), ("p", "b", "x"), ("q", "a", "x"), ("q", "b", "x")])
        model = solved(Ease(data.schema, l2=1.0), data)
        assert ask(model, data, 0, "p", "ab", "b") == pytest.approx([1 / 2, 0], abs=1e-6)
        assert ask(model, data, 0, "p", "ab", "a") == pytest.approx([0, 1 / 3], abs=1e-6)

    @settings(max_examples=25, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.5, 20))
    def test_no_other_weights_have_less_loss(self, seed: int, n: int, l2: float) -> None:
        rng = np.random.default_rng(seed)
        x = (rng.random((9, n)) < 0.5).astype(float)
        schema = Schema()
        weight = Ease(schema, l2=l2)._closed_form(torch.tensor(x.T @ x, dtype=torch.float32)).double().numpy()
        assert np.all(np.diag(weight) == 0)
        for j in range(n):  # each column is a ridge regression on the other columns
            rest = np.delete(np.arange(n), j)
            best = np.linalg.solve(x[:, rest].T @ x[:, rest] + l2 * np.eye(n - 1), x[:, rest].T @ x[:, j])
            assert weight[rest, j] == pytest.approx(best, abs=1e-4)

    def test_across_pools_users_and_reads_other_domains(self, two: Dataset) -> None:
        pooled = np.zeros((6, 5))
        pooled[:4, :4] = BINARY
        pooled[4, [0, 4]] = pooled[5, [1, 4]] = 1
        inverse = np.linalg.inv(pooled.T @ pooled + 3 * np.eye(5))
        weight = -inverse / np.diag(inverse)
        np.fill_diagonal(weight, 0)
        model = solved(Ease(two.schema, l2=3.0, across=True), two)
        assert ask(model, two, 1, "t", "abcde", "e", "ab") == pytest.approx((weight[4] + weight[0] + weight[1]).tolist(), abs=1e-5)

    def test_alone_ignores_other_domains(self, two: Dataset) -> None:
        model = solved(Ease(two.schema, l2=3.0), two)
        assert ask(model, two, 1, "t", "abe", "e", "ab") == ask(model, two, 1, "t", "abe", "e")
        assert ask(model, two, 1, "t", "cd", "e", "") == [0, 0]  # never in domain y

    def test_l2_must_be_positive(self) -> None:
        with pytest.raises(ConfigError, match="l2 = 0"):
            Ease(Schema(), l2=0)


class TestItemKnn:
    def test_cosine_with_shrinkage_by_hand(self, two: Dataset) -> None:
        # a: p q, b: p q r, c: q r.  a and b share 2, c and b share 2, a and c share 1.
        model = solved(ItemKnn(two.schema, shrink=1.0), two)
        near_b = 2 / (np.sqrt(2 * 3) + 1)
        assert ask(model, two, 0, "p", "acd", "b") == pytest.approx([near_b, near_b, 0], abs=1e-6)
        assert ask(model, two, 0, "p", "c", "ab") == pytest.approx([near_b + 1 / (2 + 1)], abs=1e-6)

    def test_keeps_the_nearest_of_each_candidate(self, two: Dataset) -> None:
        model = solved(ItemKnn(two.schema, shrink=0.0, k=1), two)
        assert ask(model, two, 0, "p", "ac", "ac") == [0, 0]  # their one neighbour is b
        assert ask(model, two, 0, "p", "ac", "b") == pytest.approx([2 / np.sqrt(6)] * 2, abs=1e-6)

    @settings(max_examples=25, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(0, 5), st.floats(0, 5))
    def test_against_a_slow_reference(self, seed: int, k: int, shrink: float) -> None:
        rng = np.random.default_rng(seed)
        x = (rng.random((12, 6)) < 0.5).astype(float)
        x[0] = 1
        found = ItemKnn(Schema(), k=k, shrink=shrink)._similarity(torch.tensor(x.T @ x, dtype=torch.float32)).numpy()
        for j in range(6):
            similar = {}
            for i in range(6):
                if i != j:
                    both = sum(1 for u in range(12) if x[u, i] and x[u, j])
                    similar[i] = both / (np.sqrt(x[:, i].sum() * x[:, j].sum()) + shrink)
            kept = sorted(similar.values(), reverse=True)[: k or None]
            assert sorted(found[found[:, j] > 0, j], reverse=True) == pytest.approx([v for v in kept if v > 0], abs=1e-5)
            for i in np.flatnonzero(found[:, j]):
                assert found[i, j] == pytest.approx(similar[i], abs=1e-5)

    def test_recent_events_say_more_by_hand(self, two: Dataset) -> None:
        model = solved(ItemKnn(two.schema, shrink=0.0, decay=math.log(2)), two)
        ab, ac = 2 / math.sqrt(6), 1 / 2  # cb as ab
        assert ask(model, two, 0, "p", "abc", "ab") == pytest.approx([ab, ab / 2, ab + ac / 2], abs=1e-6)
        assert ask(model, two, 0, "p", "c", "abda") == pytest.approx([ac + ab / 4], abs=1e-6)  # a once, by the latest; d steps in between
        assert ask(model, two, 0, "p", "c", "dd") == [0]

    def test_each_history_fades_from_its_own_end(self, two: Dataset) -> None:
        args: dict[str, Any] = {"shrink": 0.0, "decay": math.log(2), "across": True}
        model = solved(ItemKnn(two.schema, **args), two)
        plain = solved(ItemKnn(two.schema, shrink=0.0, across=True), two)
        near = {j: ask(plain, two, 1, "t", "b", j)[0] for j in "ace"}
        assert ask(model, two, 1, "t", "b", "ee", "ac") == pytest.approx([near["e"] + near["c"] + near["a"] / 2], abs=1e-6)
        for own, other in (("ae", "da"), ("da", "ae")):  # a is in both: the one nearer to its own end counts
            assert ask(model, two, 1, "t", "b", own, other) == pytest.approx([near["a"] + near["e"]], abs=1e-6)

    @pytest.mark.parametrize("across", [False, True])
    def test_without_decay_nothing_changes_and_padding_never_does(self, two: Dataset, across: bool) -> None:
        plain, none = (solved(ItemKnn(two.schema, across=across, **args), two) for args in ({}, {"decay": 0.0}))
        fading = solved(ItemKnn(two.schema, across=across, decay=0.3), two)
        slow = solved(ItemKnn(two.schema, across=across, decay=1e-9), two)
        for own, other in (("", ""), ("abca", "e"), ("b", "eab")):
            question = (two, 0, "p", "abcd", own, other)
            assert ask(none, *question) == ask(plain, *question)
            assert ask(slow, *question) == pytest.approx(ask(plain, *question), abs=1e-6)
        batch = Batch(torch.tensor([2]), torch.arange(2, 7)[None], torch.tensor([0]), (0, 1, 1))
        one = dataclasses.replace(batch, history=torch.tensor([[2, 4, 2]]), cross_history=torch.tensor([[3]]))
        wide = dataclasses.replace(batch, history=torch.tensor([[0, 0, 2, 4, 2]]), cross_history=torch.tensor([[0, 3]]))
        assert torch.equal(fading(one).logit, fading(wide).logit)

    def test_shares_of_the_asked_domain_order_what_ties(self, two: Dataset) -> None:
        near = 1 / (2 + 1)  # of a and c, as above
        for weight in (0.1, -0.1):
            for across in (False, True):
                model = solved(ItemKnn(two.schema, shrink=1.0, popularity=weight, across=across), two)
                assert ask(model, two, 0, "p", "abcde") == pytest.approx([weight * share for share in (2 / 8, 3 / 8, 2 / 8, 1 / 8, 0)])
                assert ask(model, two, 1, "t", "abcde") == pytest.approx([weight * share for share in (1 / 5, 2 / 5, 0, 0, 2 / 5)])
            model = solved(ItemKnn(two.schema, shrink=1.0, popularity=weight), two)
            assert ask(model, two, 0, "p", "ca", "a") == pytest.approx([near + weight * 2 / 8, weight * 2 / 8], abs=1e-6)

    def test_a_domain_without_choices_has_no_shares(self, two: Dataset) -> None:
        model = solved(ItemKnn(two.schema, popularity=1.0), two, (0,))
        assert ask(model, two, 1, "t", "abe") == [0, 0, 0]

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_a_weight_is_a_number(self, wrong: float) -> None:
        with pytest.raises(ConfigError, match=r"(?s)popularity = .*finite"):
            ItemKnn(Schema(), popularity=wrong)

    def test_decay_is_no_growth(self) -> None:
        for wrong in (-0.1, math.nan, math.inf):
            with pytest.raises(ConfigError, match="decay"):
                ItemKnn(Schema(), decay=wrong)


class TestItemItem:
    @settings(max_examples=30, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 7), st.integers(1, 12))
    def test_of_repeated_items_the_heaviest_event_counts(self, seed: int, n: int, length: int, width: int) -> None:
        rng = np.random.default_rng(seed)
        codes = np.sort(rng.choice(np.arange(2, 60), n, replace=False))
        weight = rng.normal(size=(n, n)).astype(np.float32)
        block = ItemItem()
        block.solve(torch.tensor(codes), torch.tensor(weight))
        profile, item = rng.integers(0, 9, (5, length)), rng.integers(0, 60, (5, width))
        heavy = rng.random((5, length)).astype(np.float32)
        dense, users = np.zeros((60, 60)), np.zeros((5, 60))
        dense[np.ix_(codes, codes)] = weight
        for row in range(5):
            np.maximum.at(users[row], profile[row], heavy[row])
        expected = np.take_along_axis(users @ dense, item, 1)
        asked = torch.tensor(profile), torch.tensor(item), torch.tensor(heavy)
        assert block(*asked).numpy() == pytest.approx(expected, abs=1e-4)
        with pytest.MonkeyPatch.context() as patch:
            for cost in (0, 1000):  # few, or many
                patch.setattr("isthmus.layers.solved.GATHER", cost)
                assert block(*asked).numpy() == pytest.approx(expected, abs=1e-4)
            patch.setattr("isthmus.layers.solved.WORKING_SET", 16)
            assert block(*asked).numpy() == pytest.approx(expected, abs=1e-4)

    @settings(max_examples=30, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 7), st.integers(1, 12))
    def test_both_ways_of_reading_weights_equal_the_dense_product(self, seed: int, n: int, length: int, width: int) -> None:
        rng = np.random.default_rng(seed)
        codes = np.sort(rng.choice(np.arange(2, 60), n, replace=False))
        weight = rng.normal(size=(n, n)).astype(np.float32)
        block = ItemItem()
        block.solve(torch.tensor(codes), torch.tensor(weight))
        profile, item = rng.integers(0, 60, (5, length)), rng.integers(0, 60, (5, width))
        dense = np.zeros((60, 60))
        dense[np.ix_(codes, codes)] = weight
        binary = np.zeros((5, 60))
        for row in range(5):
            binary[row, profile[row]] = 1
        expected = np.take_along_axis(binary @ dense, item, 1)
        assert block(torch.tensor(profile), torch.tensor(item)).numpy() == pytest.approx(expected, abs=1e-4)
        if length:
            place = torch.tensor(np.sort(np.where(np.isin(profile[:1], codes), np.searchsorted(codes, profile[:1]), n)))
            place = torch.unique(place)[None]
            column = find(block.codes, torch.tensor(item[:1]))
            assert block._gather(place, column).numpy() == pytest.approx(expected[:1], abs=1e-4)
            assert block._whole_rows(place, column).numpy() == pytest.approx(expected[:1], abs=1e-4)

    def test_blocks_of_rows_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        block = ItemItem()
        block.solve(torch.arange(2, 22), torch.randn(20, 20))
        profile, item = torch.randint(0, 25, (9, 4)), torch.randint(0, 25, (9, 2))
        whole = block(profile, item)
        monkeypatch.setattr("isthmus.layers.solved.WORKING_SET", 16)
        assert torch.equal(block(profile, item), whole)

    def test_only_the_most_popular_items_are_kept(self) -> None:
        codes, counts = co_occurrence(sp.csr_matrix(BINARY * 7), 2)
        assert codes.tolist() == [0, 1]  # b has 3 users; a and c have 2 each, and a comes first
        assert counts.tolist() == [[2, 2], [2, 3]]


class TestPopularity:
    def test_smoothed_log_counts(self, two: Dataset) -> None:
        model = solved(Popularity(two.schema, smoothing=2.0), two)
        assert ask(model, two, 0, "p", "abcde") == pytest.approx(np.log([4, 5, 4, 3, 2]).tolist(), abs=1e-5)
        assert ask(model, two, 1, "p", "abcde") == pytest.approx(np.log([3, 4, 2, 2, 4]).tolist(), abs=1e-5)

    def test_across_gives_items_their_share_of_all_domains_as_prior(self, two: Dataset) -> None:
        model = solved(Popularity(two.schema, smoothing=2.0, across=True), two)
        share = (np.array([3, 5, 2, 1, 2]) + 1) / (13 / 5 + 1)
        own = np.array([2, 3, 2, 1, 0])
        assert ask(model, two, 0, "p", "abcde") == pytest.approx(np.log(own + 2 * share).tolist(), abs=1e-5)

    def test_click_rates_shrink_to_the_domain(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 1), ("q", "a", "x", 1), ("p", "b", "x", 0), ("q", "b", "x", 1), ("r", "c", "x", 0), ("s", "a", "x", 1)]
        data = dataset(tmp_path, rows, label=True)
        model = solved(Popularity(data.schema, smoothing=4.0), data)
        rate = (3 + 0.5) / (5 + 1)
        shrunk = np.array([(2 + 4 * rate) / 6, (1 + 4 * rate) / 6, (0 + 4 * rate) / 5])
        assert ask(model, data, 0, "p", "abc") == pytest.approx(np.log(shrunk / (1 - shrunk)).tolist(), abs=1e-5)
        assert ask(model, data, 0, "p", "z") == pytest.approx([np.log(rate / (1 - rate))], abs=1e-5)

    def test_a_domain_of_clicks_alone_stays_finite(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 1), ("q", "b", "x", 1), ("p", "a", "y", 0), ("q", "b", "y", 1), ("s", "a", "x", 1), ("s", "a", "y", 0)]
        data = dataset(tmp_path, rows, label=True)
        for across in (False, True):
            assert np.isfinite(ask(solved(Popularity(data.schema, across=across), data), data, 0, "p", "abz")).all()

    def test_rating_means_shrink_to_the_domain(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 5.0), ("q", "a", "x", 4.0), ("p", "b", "x", 2.0), ("s", "a", "x", 1.0)]
        data = dataset(tmp_path, rows, label=True)
        model = solved(Popularity(data.schema, smoothing=1.0), data)
        mean = (11 + 0.5) / (3 + 1)
        assert ask(model, data, 0, "p", "ab") == pytest.approx([(9 + mean) / 3, (2 + mean) / 2], abs=1e-5)

    def test_counts_of_labelled_data_on_demand(self, tmp_path: Path) -> None:
        rows = [("p", "a", "x", 1), ("q", "a", "x", 0), ("p", "b", "x", 1), ("q", "b", "x", 1), ("s", "a", "x", 1)]
        data = dataset(tmp_path, rows, label=True)
        model = solved(Popularity(data.schema, smoothing=1.0, by="count"), data)
        assert ask(model, data, 0, "p", "ab") == pytest.approx(np.log([2, 3]).tolist(), abs=1e-6)
        with pytest.raises(ConfigError, match="by = 'mean'"):
            Popularity(Schema(), by="mean")


class TestMF:
    def objective(self, counts: np.ndarray, x: np.ndarray, y: np.ndarray, alpha: float, l2: float) -> float:
        confidence = 1 + alpha * counts
        error = (confidence * ((counts > 0) - x @ y.T) ** 2).sum()
        penalty = (confidence.sum(1) * (x**2).sum(1)).sum() + (confidence.sum(0) * (y**2).sum(1)).sum()
        return float(error + l2 * penalty)

    def factors(self, model: MF) -> tuple[np.ndarray, np.ndarray]:
        return model.users.rows[:-1, : model.dim].double().numpy(), model.items.rows[:-1, : model.dim].double().numpy()

    def test_more_epochs_never_raise_the_objective(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        pairs = [(f"u{u:02}", f"i{i:02}", "x") for u in range(30) for i in rng.choice(20, 5, replace=False)]
        data = dataset(tmp_path, pairs)
        counts = data.positives(0).toarray()
        counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
        losses = [
            self.objective(counts, *self.factors(solved(MF(data.schema, dim=4, epochs=n, l2=0.02), data)), 40.0, 0.02) for n in range(1, 8)
        ]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.97 * losses[0]

    @settings(max_examples=20, deadline=None)
    @forall(st.integers(0, 10**6), st.integers(1, 4))
    def test_each_row_is_the_least_squares_solution(self, seed: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        matrix = sp.csr_matrix((rng.random((7, 9)) < 0.4) * rng.integers(1, 4, (7, 9)), dtype=np.float32)
        y = torch.tensor(rng.normal(size=(9, k)), dtype=torch.float32)
        dense, factors = matrix.toarray().astype(float), y.double().numpy()
        found = least_squares_positives(matrix, y, 0.1)
        for row in range(7):
            c = 1 + dense[row]
            expected = np.linalg.solve((factors.T * c) @ factors + 0.1 * c.sum() * np.eye(k), (factors.T * c) @ (dense[row] > 0))
            assert found[row].numpy() == pytest.approx(expected, abs=1e-3)

    def test_rating_rows_are_the_least_squares_solution(self) -> None:
        rng = np.random.default_rng(0)
        dense = np.where(rng.random((6, 8)) < 0.7, rng.normal(size=(6, 8)), 0)
        y = rng.normal(size=(8, 3))
        found = least_squares_ratings(sp.csr_matrix(dense, dtype=np.float32), torch.tensor(y, dtype=torch.float32), 0.1)
        for row in range(6):
            near = np.flatnonzero(dense[row])
            feature = np.column_stack([y[near, :2], np.ones(len(near))])
            expected = np.linalg.solve(feature.T @ feature + 0.1 * len(near) * np.eye(3), feature.T @ (dense[row, near] - y[near, 2]))
            assert found[row].numpy() == pytest.approx(expected, abs=1e-3)

    def test_padded_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(1)
        matrix = sp.csr_matrix((rng.random((15, 9)) < 0.4).astype(np.float32))
        y = torch.tensor(rng.normal(size=(9, 3)), dtype=torch.float32)
        whole = least_squares_positives(matrix, y, 0.1)
        monkeypatch.setattr("isthmus.models.mf.WORKING_SET", 20)
        assert torch.allclose(least_squares_positives(matrix, y, 0.1), whole, atol=1e-5)

    def test_unseen_users_get_popularity_and_seen_ones_do_not(self, two: Dataset) -> None:
        model = solved(MF(two.schema, dim=2), two)
        assert ask(model, two, 0, "nobody", "abcd") == pytest.approx(np.log([3, 4, 3, 2]).tolist(), abs=1e-5)
        assert ask(model, two, 0, "t", "abcd") == ask(model, two, 0, "nobody", "abcd")  # t has events in y only
        assert max(ask(model, two, 0, "p", "abcd")) < 1.1

    def test_a_strong_pattern_is_learnt(self, tmp_path: Path) -> None:
        rows = [(f"u{n}", i, "x") for n in range(8) for i in ("abc" if n % 2 else "def") if (n, i) not in ((0, "d"), (1, "a"))]
        data = dataset(tmp_path, rows)
        model = solved(MF(data.schema, dim=2), data)
        assert ask(model, data, 0, "u1", "a")[0] > 0.5 > ask(model, data, 0, "u1", "d")[0]
        assert ask(model, data, 0, "u0", "d")[0] > 0.5 > ask(model, data, 0, "u0", "a")[0]

    def test_ratings_recover_a_planted_matrix(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        user, item = rng.normal(size=(40, 1)), rng.normal(size=(30, 1))
        truth = 3 + user @ item.T * 0.5 + rng.normal(size=(40, 1)) * 0.5 + rng.normal(size=30) * 0.5
        shown = rng.random(truth.shape) < 0.6
        rows = [(f"u{u:02}", f"i{i:02}", "x", float(truth[u, i])) for u, i in np.argwhere(shown)]
        data = dataset(tmp_path, rows, label=True)
        model = solved(MF(data.schema, dim=1, l2=0.01, epochs=20), data)
        assert isinstance(model, MF)
        users = torch.tensor(np.array(data.user_vocabulary.encode(pl.Series([f"u{u:02}" for u in range(40)])), np.int64))
        items = torch.tensor(np.array(data.item_vocabulary.encode(pl.Series([f"i{i:02}" for i in range(30)])), np.int64))
        batch = Batch(users, items.expand(40, 30), torch.zeros(40, dtype=torch.int64), (0, 40))
        error = model(batch).logit.numpy() - truth
        assert np.sqrt((error[~shown] ** 2).mean()) < 0.1  # the biases alone leave 0.5
        mean = float(np.mean(data.part("train").label))  # type: ignore[arg-type]
        first = model.items.rows[:-1, model.dim]
        wanted = torch.tensor(np.array(data.item_vocabulary.encode(pl.Series(["i00"])), np.int64))
        alone = Batch(torch.tensor([1]), wanted[None], torch.zeros(1, dtype=torch.int64), (0, 1))
        assert model(alone).logit.item() == pytest.approx(mean + first[find(model.items.keys, wanted)].item(), abs=1e-5)

    def test_refuses_what_it_cannot_do(self, two: Dataset) -> None:
        with pytest.raises(ConfigError, match="explicit"):
            MF(two.schema, explicit=True)
        with pytest.raises(ConfigError, match="confidence"):
            MF(two.schema, confidence=(1.0,))


class TestAll:
    @pytest.mark.parametrize("name", sorted(ALL))
    @pytest.mark.parametrize("across", [False, True])
    def test_a_saved_state_loads_into_a_fresh_model(self, two: Dataset, tmp_path: Path, name: str, across: bool) -> None:
        model = solved(ALL[name](two.schema, across=across), two)
        save_model(model, str(tmp_path / "model.safetensors"))
        fresh = ALL[name](two.schema, across=across).eval()
        load_model(fresh, str(tmp_path / "model.safetensors"))
        question = (two, 0, "p", "abcde", "ab", "e")
        assert ask(fresh, *question) == ask(model, *question)
        assert ask(model, *question) != ask(ALL[name](two.schema, across=across).eval(), *question)

    @pytest.mark.parametrize("name", sorted(ALL))
    def test_one_domain_alone_learns_the_same_as_together(self, two: Dataset, name: str) -> None:
        together, alone = solved(ALL[name](two.schema), two), solved(ALL[name](two.schema), two, (1,))
        assert ask(alone, two, 1, "u", "abe", "eb") == pytest.approx(ask(together, two, 1, "u", "abe", "eb"), abs=1e-6)
        assert ask(alone, two, 0, "p", "abc", "ab") != pytest.approx(ask(together, two, 0, "p", "abc", "ab"), abs=1e-3)

    @pytest.mark.parametrize("name", sorted(ALL))
    def test_rows_of_several_domains_score_as_alone(self, two: Dataset, name: str) -> None:
        model = solved(ALL[name](two.schema), two)
        item = torch.arange(2, 7).expand(4, 5)
        history = torch.tensor([[2, 3], [0, 4], [0, 0], [2, 6]])
        domain, user = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 4, 1])
        batch = Batch(user, item, domain, (0, 2, 4), history=history, cross_history=history.flip(0))
        together = model(batch).logit
        for n in range(4):
            own, d = slice(n, n + 1), int(domain[n])
            offsets = (0, 1, 1) if d == 0 else (0, 0, 1)
            single = Batch(user[own], item[own], domain[own], offsets, history=history[own], cross_history=history.flip(0)[own])
            assert torch.allclose(model(single).logit[0], together[n], atol=1e-6)


def test_find_tells_absent_keys() -> None:
    keys = torch.tensor([3, 5, 9])
    assert find(keys, torch.tensor([[9, 4], [3, 10], [5, 0]])).tolist() == [[2, 3], [0, 3], [1, 3]]
    assert find(keys[:0], torch.tensor([1, 2])).tolist() == [0, 0]


def test_a_pair_table_knows_its_pairs() -> None:
    table = PairTable(10, 2)
    table.solve(torch.tensor([13, 4]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([9.0, 9.0]))
    assert table(torch.tensor([0, 1, 1]), torch.tensor([4, 3, 4])).tolist() == [[3, 4], [1, 2], [9, 9]]
