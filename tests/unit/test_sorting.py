"""Orders of whole numbers: what comparing them would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.sorting import distinct, order_of, starts

keys = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3), st.sampled_from([-(2**63), -5, 0, 7, 2**63 - 1])), max_size=40)


@given(keys)
def test_orders_are_those_of_lexsort(rows: list[tuple[int, int, int]]) -> None:
    """Keys of one digit, of four, and in order already."""
    columns = [np.array([row[n] for row in rows], np.int64) for n in range(3)]
    for wanted in (columns, columns[:1], columns[1:], [np.sort(columns[0]), columns[1]], [columns[0], np.arange(len(rows))]):
        np.testing.assert_array_equal(order_of(*wanted), np.lexsort(wanted[::-1]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("size", [2, 300, 5000])
def test_an_order_does_not_depend_on_how_wide_the_numbers_are(dtype: type[np.integer], size: int) -> None:
    """All that a type holds, a few next to its ends, and a narrow range."""
    rng, ends = np.random.default_rng(0), np.iinfo(dtype)
    near = np.array([ends.min, ends.min + 1, ends.max - 1, ends.max], dtype)
    for key in (rng.integers(ends.min, ends.max, size, dtype, endpoint=True), rng.choice(near, size), rng.choice(near[:2], size)):
        np.testing.assert_array_equal(order_of(key), np.argsort(key, kind="stable"))


@pytest.mark.parametrize("bits", range(1, 64))
def test_an_order_does_not_depend_on_how_many_bits_differ(bits: int) -> None:
    key = np.random.default_rng(0).integers(0, 2**bits - 1, 500, endpoint=True) - 2 ** (bits - 1)
    np.testing.assert_array_equal(order_of(key), np.argsort(key, kind="stable"))


@given(keys)
def test_rows_that_differ_from_the_one_before(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array([row[n] for row in rows], np.int64) for n in range(2)]
    expected = [n for n in range(len(rows)) if n == 0 or rows[n][:2] != rows[n - 1][:2]]
    assert starts(*columns).tolist() == expected


@given(st.lists(st.integers(-4, 4)))
def test_distinct_numbers(values: list[int]) -> None:
    assert distinct(np.array(values, np.int64)).tolist() == sorted(set(values))
