"""The shuffle is one to one for every size, and fair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from isthmus.data.shuffle import key_of, permute


def test_one_to_one_for_every_size():
    for size in [*range(1, 300), 1023, 1024, 1025, 4095, 4097, 65_537]:
        assert np.array_equal(np.sort(permute(np.arange(size), size, key_of(7, size))), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**12), st.integers(0, 2**63), st.integers(0, 2**62)), min_size=1, max_size=20))
def test_each_row_has_its_own_size_and_key(table):
    size, part, index = (np.array(c, np.int64 if i != 1 else np.uint64) for i, c in enumerate(zip(*table, strict=True)))
    index %= size
    together = permute(index, size, key_of(part))
    alone = [int(permute(index[i : i + 1], int(size[i]), key_of(part[i]))[0]) for i in range(len(size))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()


def test_every_place_is_as_likely():
    draws, size = 20_000, 12
    keys = key_of(3, np.arange(draws))
    counts = np.stack([np.bincount(permute(np.full(draws, i), size, keys), minlength=size) for i in range(size)])
    statistic = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert statistic < chi2.ppf(0.9999, (size - 1) ** 2)


def test_neighbours_part_company():
    order = permute(np.arange(10_000), 10_000, key_of(1))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    other = permute(np.arange(10_000), 10_000, key_of(2))
    assert (order == other).sum() < 15  # one on average


def test_keys_depend_on_every_part_and_their_order():
    keys = [int(key_of(*parts)[0]) for parts in ((1, 2), (2, 1), (1, 3), (1,), (1, 2, 0), (0, 2))]
    assert len(set(keys)) == len(keys)
    assert key_of(1, np.array([2, 3])).tolist() == [keys[0], keys[2]]
