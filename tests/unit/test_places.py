"""Places of ids: unique, in order of arrival, whatever collides."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data.places import Places

NUMBERS = st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1))
BATCHES = [
    (pl.Int64, NUMBERS),
    (pl.UInt64, st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 9))),
    (pl.String, st.one_of(st.text(max_size=2), st.text("aß", max_size=30))),
]


def check(dtype: pl.DataType, batches: list[list]) -> None:
    found = Places(dtype)
    placed = [found(pl.Series(batch, dtype=dtype)) for batch in batches]
    ids = found.ids()
    assert ids.dtype == dtype
    assert len(found) == len(ids) == ids.n_unique()
    assert [ids[n] for n in np.concatenate([np.zeros(0, int), *placed]).tolist()] == [value for batch in batches for value in batch]
    ordered, rank = found.ordered()
    assert ordered.equals(ids.sort())
    assert ordered.gather(rank).equals(ids)


@given(st.data())
def test_ids_come_back(data: st.DataObject) -> None:
    for dtype, values in BATCHES:
        check(dtype(), data.draw(st.lists(st.lists(values), max_size=5)))


def same_first(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(values), np.uint64), values.reinterpret(signed=False).to_numpy()


@given(st.lists(st.lists(NUMBERS), max_size=5))
def test_ids_that_collide(batches: list[list]) -> None:
    for name, value in (("Places._slot", lambda self, first: np.full(len(first), len(self._slots) - 2)), ("_keys", same_first)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"isthmus.data.places.{name}", value)
            check(pl.Int64(), batches)


def test_many_ids() -> None:
    """More than the first table holds; met again, they keep their places."""
    found, rng = Places(pl.String()), np.random.default_rng(0)
    ids = pl.Series([f"id {n}" for n in range(20_000)])
    for _ in range(30):
        asked = ids.gather(rng.integers(0, 20_000, 3_000))
        place = found(asked)
        assert (found.ids().gather(place) == asked).all()
    assert found.ids().n_unique() == len(found)


def test_whole_numbers_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pl.Series.hash
    monkeypatch.setattr(pl.Series, "hash", lambda self, seed: real(self, seed) % 2)
    check(pl.Int64(), [list(range(50)), list(range(25, 75))])
