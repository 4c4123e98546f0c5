"""Codes: by frequency in training, and back to the same ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import arrow
from isthmus.data.vocabulary import Vocabulary, frequency_order
from isthmus.errors import ColumnError, DataError, SourceError
from isthmus.segments import Segments

texts = st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=20)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20)


def vocabulary(ids, dtype=None) -> Vocabulary:
    return Vocabulary(pl.Series("id", ids, dtype or (pl.Int64 if ids and isinstance(ids[0], int) else pl.String)), 2 + len(ids))


@given(st.one_of(texts, numbers))
def test_encode_then_decode_gives_the_ids_back(ids):
    known = vocabulary(ids)
    codes = known.encode(known.ids)
    assert codes.tolist() == list(range(2, 2 + len(ids)))
    assert known.decode(codes).to_list() == ids
    assert known.size == len(known) == 2 + len(ids)


@given(texts, st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=30))
def test_encode_is_a_look_up(ids, asked):
    expected = [0 if one is None else 2 + ids.index(one) if one in ids else 1 for one in asked]
    codes = vocabulary(ids, pl.String).encode(pl.Series(asked, dtype=pl.String))
    assert codes.tolist() == expected
    assert codes.dtype == np.int32


def test_values_of_another_type():
    numbers = vocabulary([10, 20])
    assert numbers.encode(["20", "x", None, "30"]).tolist() == [3, 1, 0, 1]
    assert numbers.encode(np.array([20, 10], np.uint8)).tolist() == [3, 2]
    assert numbers.encode([]).tolist() == []
    assert vocabulary(["10", "b"]).encode([10, 11]).tolist() == [2, 1]
    with pytest.raises(ColumnError, match="Float64"):
        numbers.encode([10.5])


def test_decode_of_padding_and_unknown_is_null():
    assert vocabulary(["a", "b"]).decode([0, 3, 1, 2]).to_list() == [None, "b", None, "a"]


@settings(deadline=None)
@given(st.one_of(texts, numbers))
def test_save_and_load(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("v") / "ids.arrow"
    known = vocabulary(ids)
    known.save(path)
    read = Vocabulary.load(path)
    assert read.ids.equals(known.ids)
    assert read.trained == known.size
    first = path.read_bytes()
    known.save(path)
    assert path.read_bytes() == first


def test_damaged_files_are_refused(tmp_path: Path):
    path = tmp_path / "ids.arrow"
    with pytest.raises(SourceError, match="missing"):
        Vocabulary.load(path)
    vocabulary(["a", "b", "c"]).save(path)
    with pytest.raises(SourceError, match="at least 4"):
        Vocabulary.load(path, trained=6)
    whole = path.read_bytes()
    for end in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(SourceError, match="cannot be read"):
            Vocabulary.load(path)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_frequency_order(counts):
    order, trained = frequency_order(np.array(counts, np.int64))
    assert order.tolist() == sorted(range(len(counts)), key=lambda n: (-counts[n], n))
    assert trained == 2 + sum(c > 0 for c in counts)


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=60)


@given(pairs, st.lists(st.integers(0, 9), min_size=1, max_size=10), st.integers(1, 12))
def test_segments_against_sets(stored, asked, width):
    segments = Segments.build(np.array([k for k, _ in stored], np.int64), np.array([v for _, v in stored], np.int32))
    sets = {k: {v for other, v in stored if other == k} for k in range(10)}
    values = np.arange(len(asked) * width).reshape(len(asked), width) % 10
    keys = np.array(asked)
    assert segments.contains(keys, values).tolist() == [[v in sets[k] for v in row] for k, row in zip(asked, values.tolist(), strict=True)]
    flat, row = segments.gather(keys)
    assert list(zip(row.tolist(), flat.tolist(), strict=True)) == [(n, v) for n, k in enumerate(asked) for v in sorted(sets[k])]
    assert segments.count(keys).tolist() == [len(sets[k]) for k in asked]
    assert segments.keys.tolist() == sorted({k for k, _ in stored})


def test_segments_of_the_largest_numbers(tmp_path: Path):
    top = 2**31 - 1
    segments = Segments.build(np.array([top, top, 0]), np.array([top, 0, top]))
    assert segments.keys.tolist() == [0, top]
    assert segments.contains(np.array([top, 0]), np.array([[0, top], [0, top]])).tolist() == [[True, True], [False, True]]
    for name in ("keys", "offsets", "values"):
        arrow.write(tmp_path / f"{name}.arrow", {"value": getattr(segments, name)})
    read = Segments.load(tmp_path)
    assert [read.keys.tolist(), read.offsets.tolist(), read.values.tolist()] == [[0, top], [0, 1, 3], [top, 0, top]]
    (tmp_path / "offsets.arrow").write_bytes((tmp_path / "keys.arrow").read_bytes())
    with pytest.raises(SourceError, match="other columns"):
        Segments.load(tmp_path)
    wide = Segments.build(np.array([2**62, -(2**62), 2**62]), np.array([top, 1, top]))
    assert [wide.keys.tolist(), wide.offsets.tolist(), wide.values.tolist()] == [[-(2**62), 2**62], [0, 1, 2], [1, top]]
    with pytest.raises(DataError, match="offsets"):
        Segments(np.array([1]), np.array([0, 2]), np.array([5], np.int32))
