"""Candidates shared by the rows of a domain: whole, drawn, and how often each is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from isthmus.batch import Needs
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.catalogues import Catalogues
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.pools import Pools
from isthmus.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three domains; items chosen with very different frequencies."""
    rng = np.random.default_rng(0)
    n = 600
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 50, n),
            "item": np.minimum(rng.geometric(0.08, n), 40),
            "domain": rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2]),
        }
    )
    events = read_events(frame, user="user", item="item", domain="domain")
    parts = ["test" if i % 10 == 0 else "train" for i in range(n)]
    return encode(events, split.given(events, parts), tmp_path_factory.mktemp("pools") / "d")


def _some_rows(dataset: Dataset, n: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """n training items of every domain but the first, which stays empty."""
    rows = dataset.part("train")
    items = [np.asarray(rows.item[rows.of(d)])[:n].astype(np.int64) for d in range(1, len(dataset.schema.domains))]
    return np.concatenate(items), (0, 0, *np.cumsum([len(i) for i in items]).tolist())


def test_catalogues_lie_end_to_end(tmp_path: Path) -> None:
    """Domain a shows p, q (twice) and r, domain b shows r and p; s is of the test part."""
    rows = [("a", "p"), ("a", "q"), ("a", "q"), ("a", "r"), ("b", "r"), ("b", "p"), ("b", "s")]
    frame = pl.DataFrame({"user": range(7), "item": [i for _, i in rows], "domain": [d for d, _ in rows]})
    events = read_events(frame, user="user", item="item", domain="domain")
    data = encode(events, split.given(events, ["train"] * 6 + ["test"]), tmp_path / "d")
    found, code = Catalogues(data), dict(zip("pqrs", data.item_vocabulary.encode(list("pqrs")).tolist(), strict=True))
    assert found.start.tolist() == [0, 3, 5]
    assert found.size.tolist() == [3, 2]
    a, b = found.split(found.item)
    assert (a.tolist(), b.tolist()) == (sorted(code[i] for i in "pqr"), sorted(code[i] for i in "pr"))
    assert [dict(zip(i.tolist(), n.tolist(), strict=True)) for i, n in zip((a, b), found.split(found.popularity), strict=True)] == [
        {code["p"]: 1.0, code["q"]: 2.0, code["r"]: 1.0},
        {code["p"]: 1.0, code["r"]: 1.0},
    ]
    place, known = found.find(np.array([0, 1, 1, 0]), np.array([code["q"], code["q"], code["p"], code["p"]]))
    assert known.tolist() == [True, False, True, True]
    assert place[known].tolist() == [a.tolist().index(code["q"]), 3 + b.tolist().index(code["p"]), a.tolist().index(code["p"])]


def test_a_full_pool_is_the_catalogue_of_every_domain_with_rows(dataset: Dataset) -> None:
    item, offsets = _some_rows(dataset, 7)
    found = Pools(dataset, "full").sample(offsets, item, np.random.default_rng(0))
    assert found.log_q is None
    assert found.offsets[1] == 0, "a domain without rows needs no candidates"
    for d in range(1, len(offsets) - 1):
        np.testing.assert_array_equal(found.item[found.offsets[d] : found.offsets[d + 1]], dataset.catalogue(d))
    np.testing.assert_array_equal(found.item[found.own], item)
    domain = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    assert (found.own >= found.offsets[domain]).all()
    assert (found.own < found.offsets[domain + 1]).all()


@pytest.mark.parametrize(("how", "n"), [("in_batch", 0), ("in_batch", 9), ("mixed", 5), ("mixed", 0)])
def test_a_drawn_pool_holds_the_rows_own_items_and_n_more(dataset: Dataset, how: str, n: int) -> None:
    item, offsets = _some_rows(dataset, 6)
    found = Pools(dataset, how, n).sample(offsets, item, np.random.default_rng(0))
    extra = n if how == "mixed" else 0
    np.testing.assert_array_equal(np.diff(found.offsets), [r + extra if r else 0 for r in np.diff(offsets)])
    np.testing.assert_array_equal(found.item[found.own], item)
    for d in range(1, len(offsets) - 1):
        part = found.item[found.offsets[d] : found.offsets[d + 1]]
        assert np.isin(part, dataset.catalogue(d)).all()


def test_expected_counts_are_what_sampling_gives(dataset: Dataset) -> None:
    """Rows drawn by popularity and uniform extras: the mean number of copies besides a row's own is exp(log q)."""
    d, rows_n, extra, draws = 1, 5, 3, 4000
    rows = dataset.part("train")
    items = np.asarray(rows.item[rows.of(d)]).astype(np.int64)
    rng = np.random.default_rng(0)
    pools = Pools(dataset, "mixed", extra)
    offsets = tuple(np.cumsum([0, *(rows_n if e == d else 0 for e in range(len(dataset.schema.domains)))]).tolist())
    count, expected = np.zeros(dataset.schema.item.size), {}
    for _ in range(draws):
        found = pools.sample(offsets, rng.choice(items, rows_n), rng)
        assert found.log_q is not None
        expected |= dict(zip(found.item.tolist(), np.exp(found.log_q).tolist(), strict=True))
        beside = np.delete(found.item, found.own[0])  # what the first row is compared with
        count += np.bincount(beside, minlength=len(count))
    for code, value in expected.items():
        assert abs(count[code] / draws - value) < 5 * np.sqrt(value / draws) + 1e-3


def test_a_row_alone_in_its_domain_expects_no_other(dataset: Dataset) -> None:
    item, offsets = _some_rows(dataset, 1)
    found = Pools(dataset, "in_batch").sample(offsets, item, np.random.default_rng(0))
    assert found.log_q is not None
    assert (found.log_q < -50).all()
    assert np.isfinite(found.log_q).all()


def test_batches_carry_the_pool_and_the_epoch(dataset: Dataset) -> None:
    plan = Plan(batch_size=32, sampler="mixed", negatives=4, seed=3)
    first = next(batches(dataset, "train", Needs(), plan, epoch=2, prefetch=0))
    again = next(batches(dataset, "train", Needs(), plan, epoch=2, prefetch=0))
    other = next(batches(dataset, "train", Needs(), plan, epoch=1, prefetch=0))
    assert first.pool is not None
    assert again.pool is not None
    assert (first.epoch, other.epoch) == (2, 1)
    assert first.item.shape == (32, 1)
    torch.testing.assert_close(first.pool.item, again.pool.item)
    torch.testing.assert_close(first.pool.item[first.pool.own], first.item[:, 0])
    assert first.pool.domain.tolist() == sorted(first.pool.domain.tolist())
    bare = next(batches(dataset, "train", Needs(), Plan(batch_size=32, sampler="mixed", negatives=4, log_q=False), prefetch=0))
    assert bare.pool is not None
    assert bare.pool.log_q is not None
    assert bare.pool.log_q.abs().max() == 0


def test_bad_settings_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="in_batch"):
        Pools(dataset, "in-batch")
    with pytest.raises(ConfigError, match="negatives"):
        Pools(dataset, "mixed", -1)
    with pytest.raises(DataError, match="does not show"):
        Pools(dataset, "full").sample((0, 1, 1, 1)[: len(dataset.schema.domains) + 1], np.array([0]), np.random.default_rng(0))
