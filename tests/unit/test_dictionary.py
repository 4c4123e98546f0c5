"""Ids that outgrow memory: runs in files give what one table gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import arrow
from isthmus.data import chunks, ids
from isthmus.data import split as splits
from isthmus.data.chunks import SHARE
from isthmus.data.dataset import Dataset
from isthmus.data.dictionary import Dictionary
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.ids import GrowingIds, contiguous, gathered

TEXTS = st.one_of(st.text(max_size=2), st.text("ab", max_size=5), st.text("aß", min_size=9, max_size=30))
COLUMNS = [
    (pl.Int64(), st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1))),
    (pl.UInt64(), st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1))),
    (pl.String(), TEXTS),
]


def small(patch: pytest.MonkeyPatch, piece: int, memory: int) -> None:
    """Little memory, short pieces and short buffers of text."""
    patch.setattr(chunks, "CHUNK", piece)
    patch.setattr(chunks, "memory", lambda: memory * SHARE)
    patch.setattr(ids, "STEP", 16)
    patch.setattr(ids, "BUFFER", 16 + 61)  # the longest text has 60 bytes


@settings(deadline=None)
@given(st.data(), st.integers(1, 9), st.sampled_from([0, 2000, 2500, 1 << 30]), st.integers(1, 3))
def test_places_are_those_among_all_ids(data: st.DataObject, piece: int, memory: int, samples: int) -> None:
    for dtype, values in COLUMNS:
        batches = data.draw(st.lists(st.lists(st.none() | values), max_size=6))
        with pytest.MonkeyPatch.context() as patch:
            small(patch, piece, memory)
            patch.setattr("isthmus.data.dictionary.SAMPLES", samples)
            column = Dictionary(dtype, np.int32)
            for batch in batches:
                column.append(pl.Series(batch, dtype=dtype))
            rows = column.rows
            known, place = column.finish()
        flat = [value for batch in batches for value in batch]
        assert rows == len(place) == len(flat)
        assert known.name == "id"
        assert known.dtype == dtype
        assert known.to_list() == sorted({value for value in flat if value is not None}, key=_bytes)
        assert [None if n < 0 else known[n] for n in place.tolist()] == flat
        assert place.dtype == np.int32


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("memory", [1 << 12, 1 << 16, 1 << 30])
def test_the_table_stays_within_its_share(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(chunks, "memory", lambda: memory * SHARE)
    column, rng, most = Dictionary(pl.String(), np.int32), np.random.default_rng(0), 0
    asked = [rng.integers(0, 20_000, 500) for _ in range(100)]
    for batch in asked:
        column.append(pl.Series([f"an id of some length {n}" for n in batch.tolist()]))
        most = max(most, column._table.nbytes)
    assert most < memory + 500 * 110  # a batch goes in whole
    assert (len(column._ends) > 2) == (memory < 1 << 20)
    known, place = column.finish()
    assert known.is_sorted()
    assert known.gather(place).to_list() == [f"an id of some length {n}" for n in np.concatenate(asked).tolist()]


def test_ids_of_a_batch_do_not_keep_its_text() -> None:
    """A new id a batch: what stays is its text, not that of the batch."""
    column = GrowingIds(pl.String())
    column.append(pl.Series(["long " * 100 + str(n) for n in range(100)]).gather([5]))
    assert column.nbytes == 16 + 501
    assert sum(buffer.size for buffer in column.series().to_arrow(compat_level=pl.CompatLevel.newest()).buffers()[2:]) == 501


@settings(deadline=None)
@given(st.data(), st.integers(1, 9), st.sampled_from([0, 1 << 30]))
def test_ids_in_pieces(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, piece: int, memory: int) -> None:
    path = tmp_path_factory.mktemp("ids")
    for dtype, values in COLUMNS:
        batches = data.draw(st.lists(st.lists(values), max_size=4))
        whole = pl.Series("id", [value for batch in batches for value in batch], dtype)
        rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1)) if len(whole) else st.just([])), np.int64)
        arrow.write_series(path / "whole", whole)
        with pytest.MonkeyPatch.context() as patch:
            small(patch, piece, memory)
            growing = GrowingIds(dtype)
            for batch in batches:
                growing.append(pl.Series(batch, dtype=dtype))
            found = growing.series()
            assert found.equals(whole)
            assert gathered(found, rows).equals(whole.gather(rows))
            assert gathered(found[1:], rows[rows > 0] - 1).equals(whole.gather(rows[rows > 0]))
            arrow.write_series(path / "pieces", contiguous(found))
        assert (path / "pieces").read_bytes() == (path / "whole").read_bytes()


def test_a_vocabulary_lies_in_a_file_as_ever(tmp_path: Path) -> None:
    """One batch of one column of large strings: what format 2 is."""
    arrow.write_series(tmp_path / "ids", contiguous(pl.Series("id", ["b", "", "a text that is longer than a view holds"])))
    batch = pa.ipc.open_file(tmp_path / "ids").read_all()
    assert batch.schema == pa.schema({"id": pa.large_string()})
    assert batch["id"].to_pylist() == ["b", "", "a text that is longer than a view holds"]


DOMAINS = ("b", "a", "c")
ROWS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 30),
        st.sampled_from(DOMAINS),
        st.integers(0, 9),
        st.sampled_from(["view", "buy"]),
        st.sampled_from([None, "p", "q", "a long category's name"]),
        st.sampled_from([None, 1, -7, 2**40]),
        st.lists(st.sampled_from(["s", "t", "a long tag's name", None]), max_size=3),
        st.sampled_from([None, 1.0, 2.5]),
        st.sampled_from(["train", "valid", "test"]),
    ),
    max_size=30,
).map(lambda rows: [*rows, *((0, 0, domain, 0, "buy", "p", 1, ["s"], 1.0, "train") for domain in DOMAINS)])


def prepare(folder: Path, rows: list[tuple[Any, ...]], text: bool, base: Dataset | None) -> Dataset:
    names = ["u", "i", "d", "t", "b", "cat", "whole", "tags", "num", "part"]
    frame = pl.DataFrame(
        rows, names, orient="row", schema_overrides={"cat": pl.String, "whole": pl.Int64, "tags": pl.List(pl.String), "num": pl.Float32}
    )

    def named(what: str, numbers: list[int]) -> pl.Series:
        return pl.Series(what, [f"{what} of some length {n * n}" if n % 3 else f"{what}{n}" for n in numbers] if text else numbers)

    frame = frame.with_columns(named("u", frame["u"].to_list()), named("i", frame["i"].to_list()))
    events = read_events(
        frame,
        user="u",
        item="i",
        domain="d",
        time="t",
        behaviour="b",
        behaviours=("view", "buy"),
        domains=DOMAINS,
        context=("cat", "whole", "tags", "num"),
        users=pl.DataFrame({"u": named("u", [11, 3, 40, 0]), "age": [1.0, None, 3.0, 4.0], "town": ["x", "y", None, "x"]}),
        items=pl.DataFrame({"i": named("i", [50, 2, 0]), "words": [["k", "l"], None, ["m", "k"]]}),
        shows={name: named("i", [*range(n, 31, 2), *range(0, 31, 3)]) for n, name in enumerate(DOMAINS)},
        extra_items=named("i", [70, 4]),
    )
    return encode(events, splits.given(events, frame["part"]), folder, base=base)


@settings(deadline=None, max_examples=12)
@given(ROWS, ROWS, st.booleans(), st.integers(1, 9), st.sampled_from([0, 2000, 3000]))
def test_little_memory_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory, old: list[tuple[Any, ...]], new: list[tuple[Any, ...]], text: bool, batch: int, memory: int
) -> None:
    """Data sets from ids in runs are those from ids in memory, one that extends another included."""
    folder, data = tmp_path_factory.mktemp("data"), list[dict[str, bytes]]()
    for name in ("much", "little"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "little":
                patch.setattr(chunks, "memory", lambda: memory * SHARE)
                patch.setattr("isthmus.data.intern.CHUNK", batch)
            base = prepare(folder / name / "base", old, text, None)
            prepare(folder / name / "grown", new, text, base)
        data.append({str(file.relative_to(folder / name)): file.read_bytes() for file in (folder / name).rglob("*") if file.is_file()})
    assert data[0] == data[1]
    assert len(data[0]) > 40
