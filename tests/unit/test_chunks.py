"""Long columns, piece by piece: the same answers as from whole ones, whatever the pieces."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import arrow
from isthmus.data import chunks
from isthmus.data.ahead import relay
from isthmus.data.chunks import Growing, count, memory
from isthmus.data.moments import moment_at
from isthmus.errors import SourceError, StorageError

DTYPES = [np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(1, 9))
@settings(deadline=None)
def test_counts_do_not_depend_on_the_pieces(rows: list[tuple[int, bool]], size: int) -> None:
    values, kept = np.array([v for v, _ in rows], np.int32), np.array([k for _, k in rows], bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", size)
        np.testing.assert_array_equal(count(values, 6), np.bincount(values, minlength=6))
        np.testing.assert_array_equal(count(values, 6, lambda part: kept[part]), np.bincount(values[kept], minlength=6))


@given(st.lists(st.integers(-(2**50), 2**50) | st.integers(0, 9), min_size=1, max_size=30), st.floats(0, 1), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_cuts_are_those_of_sorted_moments(times: list[int], share: float, size: int) -> None:
    moments, number = np.unique(np.array(times, np.int64), return_counts=True)
    by_events = [0, *np.cumsum(number).tolist()]
    by_time = [int(m) - int(moments[0]) for m in moments] + [int(moments[-1]) + 1 - int(moments[0])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", size)
        for of, before in (("events", by_events), ("time", by_time)):
            place = min(range(len(before)), key=lambda n: (abs(before[n] - Fraction(before[-1] * share)), n))
            expected = int(moments[place]) if place < len(moments) else None
            assert moment_at(np.array(times, np.int64), share, of) == expected


def test_few_bins_are_enough_for_any_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes into one bin after the other."""
    monkeypatch.setattr("isthmus.data.moments.BITS", 2)
    time = np.array([5, 1, 900, 5, 77, 1_000_000, 6])
    assert [moment_at(time, n / 7, "events") for n in range(8)] == [1, 5, 5, 6, 77, 900, 1_000_000, None]
    widest = np.array([2**63 - 1, -(2**63), 0])
    assert [moment_at(widest, n / 3, "events") for n in range(4)] == [-(2**63), 0, 2**63 - 1, None]


@given(st.lists(st.integers(0, 30), max_size=9), st.integers(0, 60))
def test_a_growing_column_lies_in_a_file_where_it_would_fill_the_memory(lengths: list[int], fits: int) -> None:
    whole, column = np.arange(sum(lengths)), Growing(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "memory", lambda: fits * 8 * chunks.SHARE)
        for piece in np.split(whole, np.cumsum(lengths)):
            column.append(piece)
            np.testing.assert_array_equal(column.values, whole[: column.size])
        found = column.done()
    np.testing.assert_array_equal(found, whole)
    assert found.dtype == whole.dtype
    assert found.flags.writeable
    if len(whole) > fits:
        assert isinstance(found.base.obj, mmap.mmap)
    elif len(whole) + len(whole) // 8 <= fits:
        assert found.base is None


def test_the_file_of_a_growing_column(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(chunks, "memory", lambda: 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    column = Growing(np.int64)
    column.append(np.arange(1000))
    assert list(tmp_path.iterdir()) == []  # nobody has to clear up
    found = column.done()
    del column
    assert found.sum() == 499_500
    monkeypatch.setattr(os, "posix_fallocate", _full)
    with pytest.raises(StorageError, match="the disk is full"):
        Growing(np.int64).append(found)


def _full(*_: int) -> None:
    raise OSError(28, "No space left on device")


def test_the_memory_is_what_a_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    whole = memory()
    assert whole > 1 << 28
    (tmp_path / "limit").write_text("1000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(chunks, "LIMITS", (str(tmp_path / "limit"), str(tmp_path / "none"), str(tmp_path / "missing")))
    assert memory() == 1000


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 12), max_size=5))
@settings(deadline=None)
def test_a_file_written_in_pieces_is_the_file_written_whole(tmp_path_factory, dtype: type, lengths: list[int]) -> None:
    folder, rng = tmp_path_factory.mktemp("column"), np.random.default_rng(len(lengths))
    pieces = [(rng.random(n) * 100).astype(dtype) for n in lengths]
    whole = np.concatenate([np.zeros(0, dtype), *pieces])
    arrow.write(folder / "whole.arrow", {"value": whole})
    with arrow.column(folder / "appended.arrow", dtype) as file:
        for piece in pieces:
            file.append(piece)
    with arrow.column(folder / "placed.arrow", dtype) as file:
        ends = np.cumsum([0, *lengths])
        assert file.room(len(whole)) == 0
        for n in reversed(range(len(pieces))):
            file.put(int(ends[n]), pieces[n])
        assert file.size == len(whole)
    for name in ("appended", "placed"):
        assert (folder / f"{name}.arrow").read_bytes() == (folder / "whole.arrow").read_bytes()
    np.testing.assert_array_equal(arrow.read(folder / "placed.arrow")["value"], whole)


def test_a_column_is_there_whole_or_not_at_all(tmp_path) -> None:
    def interrupted() -> None:
        with arrow.column(tmp_path / "x.arrow", np.int32) as file:
            file.append(np.arange(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_column_cut_short_takes_what_comes_next(tmp_path) -> None:
    with arrow.column(tmp_path / "x.arrow", np.int32) as file:
        file.append(np.arange(9))
        file.cut(4)
        assert file.get(0, 4).tolist() == [0, 1, 2, 3]
        with pytest.raises(SourceError, match="ends early"):
            file.get(4, 9)
        file.append(np.array([7]))
    assert arrow.read(tmp_path / "x.arrow")["value"].tolist() == [0, 1, 2, 3, 7]


def test_what_the_disk_gets_while_more_comes_is_the_same_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "MUCH", 1 << 12)
    values = np.random.default_rng(0).integers(0, 1 << 30, 40_000, dtype=np.int32)
    with arrow.column(tmp_path / "x.arrow", np.int32) as file:
        file.room(len(values))
        for begin in np.random.default_rng(1).permutation(np.arange(0, len(values), 500)).tolist():
            file.put(begin, values[begin : begin + 500])
        np.testing.assert_array_equal(file.get(0, len(values)), values)
    np.testing.assert_array_equal(arrow.read(tmp_path / "x.arrow")["value"], values)


def test_text_and_nulls_are_no_numbers(tmp_path) -> None:
    for values in (["a"], [1, None], [True]):
        arrow.write_series(tmp_path / "x.arrow", pl.Series(values))
        with pytest.raises(SourceError, match="holds no numbers"):
            arrow.read(tmp_path / "x.arrow")


def test_numbers_are_written_and_read_without_loading_pandas(tmp_path) -> None:
    do = "import sys, numpy; from isthmus import arrow; arrow.write('x.arrow', {'x': numpy.arange(3)}); print(arrow.read('x.arrow')['x'])"
    found = subprocess.run([sys.executable, "-c", f"{do}; print('pandas' in sys.modules)"], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.split("\n")[:2] == ["[0 1 2]", "False"], found.stderr


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_relay_places_in_order_and_ends_everything(threads: int) -> None:
    places, left, right, caller = list[int](), list[tuple[int, int]](), list[tuple[int, int]](), threading.get_ident()

    def make(n: int) -> int:
        time.sleep(0.002 * (n % 3 == 0))  # the next ones are there earlier
        return n * n

    def place(square: int) -> list[Callable[[], None]]:
        assert threading.get_ident() == caller
        places.append(square)
        return [lambda: left.append((threading.get_ident(), square)), lambda: right.append((threading.get_ident(), -square))]

    relay(make, range(20), place, threads)
    assert places == [n * n for n in range(20)]
    assert [n for _, n in left] == places
    assert [-n for _, n in right] == places
    assert len({thread for thread, _ in left} | {thread for thread, _ in right} | {caller}) == 3


@pytest.mark.parametrize("wrong", ["make", "place", "first", "last"])
@pytest.mark.parametrize("when", [5, 19])
def test_what_goes_wrong_in_a_relay_is_raised_and_ends_its_threads(wrong: str, when: int) -> None:
    def step(name: str, n: int) -> Any:
        return 1 // (n - when) if name == wrong and n == when else n

    def place(n: int) -> list[Callable[[], None]]:
        step("place", n)
        return [partial(step, name, n) for name in ("first", "last")]

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError) as raised:
        relay(lambda n: step("make", n), range(20), place, 2)
    assert threading.active_count() == before  # although the error holds what was at work
    assert raised.tb
