"""The shuffle is one to one for every size, and fair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from isthmus.data.shuffle import key_of, permute, permute_nearby


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


def nearby(size: int, buffer: int, key: int) -> np.ndarray:
    return permute_nearby(np.arange(size), np.full(size, size), np.repeat(key_of(key), size), np.full(size, buffer))


@given(st.integers(1, 400), st.integers(1, 500), st.integers(0, 9), st.integers(1, 20))
def test_nearby_is_one_to_one_and_reads_few_blocks(size: int, buffer: int, key: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isthmus.data.shuffle.BLOCK", block)
        order = nearby(size, buffer, key)
    assert np.array_equal(np.sort(order), np.arange(size))
    held = max(buffer // block, 1)
    begin = int(key_of(key)[0]) % size  # blocks begin here, and go round
    places = (order - begin) % size // block
    for first in range(0, size // block * block, held * block):
        assert len(set(places[first : min(first + held * block, size // block * block)].tolist())) <= held


def test_nearby_rows_are_shuffled_within_their_buffer_and_their_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.data.shuffle.BLOCK", 10)
    order = nearby(10_000, 1000, 3)
    assert not np.array_equal(order, nearby(10_000, 1000, 4))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05  # neighbours part company
    blocks = (order - int(key_of(3)[0]) % 10_000) % 10_000 // 10
    assert abs(np.corrcoef(blocks[:1000], np.arange(1000))[0, 1]) < 0.1
    assert np.ptp(blocks[:1000]) > 900  # from all over the file


def test_each_row_has_its_own_buffer_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.data.shuffle.BLOCK", 4)
    index, size, buffer = np.array([3, 9, 17, 0]), np.array([11, 10, 18, 1]), np.array([4, 8, 100, 5])
    keys = key_of(np.arange(4))
    together = permute_nearby(index, size, keys, buffer)
    alone = [int(permute_nearby(*(c[n : n + 1] for c in (index, size, keys, buffer)))[0]) for n in range(4)]
    assert together.tolist() == alone
