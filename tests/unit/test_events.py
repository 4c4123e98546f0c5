"""Reading logs: nothing changes on the way, whatever the frame; and bad logs are refused with a reason."""

from __future__ import annotations

from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.io.plugins import register_io_source

from isthmus.data.events import Events, read_events
from isthmus.errors import ColumnError, ConfigError, DataError, LabelError, SourceError
from isthmus.schema import Field

NAMES = {"user": "u", "item": "i", "domain": "d"}


def log(**columns: Any) -> pl.DataFrame:
    """Four events; columns given replace the usual ones."""
    usual = {"u": ["b", "a", "b", "c"], "i": [30, 10, 20, 10], "d": ["x", "y", "x", "y"], "t": [4, 3, 2, 1], "y": [1, 1, 0, 1]}
    return pl.DataFrame(usual | columns)


def read(frame: Any = None, **options: Any) -> Events:
    return read_events(log() if frame is None else frame, **(NAMES | options))


def test_by_hand():
    events = read(time="t", label="y", domains=("y", "x"))
    assert events.user_ids.to_list() == ["a", "b", "c"]
    assert events.item_ids.to_list() == [10, 20, 30]
    assert events.user.tolist() == [1, 0, 1, 2]
    assert events.item.tolist() == [2, 0, 1, 0]
    assert events.domain.tolist() == [1, 0, 1, 0]
    assert events.time is not None
    assert events.time.tolist() == [4, 3, 2, 1]
    assert events.label is not None
    assert events.label.tolist() == [1, 1, 0, 1]
    assert events.positive().tolist() == [True, True, False, True]
    assert [a.dtype for a in (events.user, events.item, events.domain, events.time, events.label)] == [
        np.int32,
        np.int32,
        np.int16,
        np.int64,
        np.float32,
    ]
    assert events.schema.label == "click"
    assert events.schema.domain_names == ("y", "x")
    assert events.frame(np.array([3, 0])).rows() == [("c", 10, "y", 1, 1.0), ("b", 30, "x", 4, 1.0)]
    assert len(events.frame(np.array([True, False, False, False]))) == 1


ids = st.one_of(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=5), st.lists(st.integers(-5, 5), min_size=1, max_size=5))


@st.composite
def logs(draw) -> pl.DataFrame:
    n = draw(st.integers(1, 25))

    def column(values, nullable=False):
        known = st.sampled_from(values)
        return draw(st.lists(st.one_of(st.none(), known) if nullable else known, min_size=n, max_size=n))

    return pl.DataFrame(
        {
            "u": column(draw(ids)),
            "i": column(draw(ids)),
            "d": column(["x", "y", "ü"]),
            "t": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)),
            "y": column([0.5, 3.0, -1.0]),
            "b": column(["buy", "view"]),
            "category": column(["", "p", "q"], nullable=True),
            "price": column([0.0, 1.5], nullable=True),
            "tags": column([[], ["v"], ["w", "v", "v"]], nullable=True),
        },
        schema_overrides={"category": pl.String, "price": pl.Float32, "tags": pl.List(pl.String), "y": pl.Float32, "t": pl.Int64},
    )


@settings(deadline=None, max_examples=40)
@given(logs())
def test_what_is_read_is_what_was_there(frame):
    events = read(frame, time="t", label="y", label_kind="rating", behaviour="b", context=("category", "price", "tags"))
    names = {"u": "user", "i": "item", "d": "domain", "t": "time", "y": "label", "b": "behaviour"}
    expected = frame.rename(names).with_columns(pl.col("tags").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    assert events.frame().equals(expected)
    assert events.user_ids.to_list() == sorted(set(frame["u"]))
    assert [f.kind for f in events.schema.context] == ["categorical", "numeric", "multi"]


@pytest.mark.parametrize("convert", [pl.DataFrame.lazy, pl.DataFrame.to_pandas, pl.DataFrame.to_arrow])
def test_frames_of_other_libraries(convert):
    frame = log(c=["p", None, "q", "p"])
    expected = read(frame, time="t", label="y", context=("c",)).frame()
    assert read(convert(frame), time="t", label="y", context=("c",)).frame().equals(expected)


def test_pandas_with_object_and_category_columns():
    frame = pd.DataFrame({"u": pd.Series(["b", "a"], dtype=object), "i": pd.Categorical(["q", "p"]), "d": [1, 2]})
    events = read(frame)
    assert events.frame().rows() == [("b", "q", "1"), ("a", "p", "2")]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_files_are_read_lazily_and_in_order(tmp_path: Path, suffix: str):
    rng = np.random.default_rng(0)
    frames = []
    for number in range(3):  # 600,000 rows: several batches and several threads
        columns = {"u": rng.integers(0, 5000, 200_000), "i": rng.integers(0, 100, 200_000), "t": np.arange(200_000) + 200_000 * number}
        frames.append(pl.DataFrame(columns).with_columns(u=pl.format("u{}", "u"), d=pl.lit(f"d{number}")))
        getattr(frames[-1], {"parquet": "write_parquet", "csv": "write_csv", "arrow": "write_ipc"}[suffix])(tmp_path / f"{number}.{suffix}")
    scan = {"parquet": pl.scan_parquet, "csv": pl.scan_csv, "arrow": pl.scan_ipc}[suffix]
    events = read(scan(tmp_path / f"*.{suffix}"), time="t")
    assert events.frame().equals(pl.concat(frames).select(user="u", item="i", domain="d", time="t"))


@pytest.mark.parametrize(
    ("times", "expected", "unit"),
    [
        ([datetime(1970, 1, 1, 0, 0, 1)] * 4, 1_000_000, "us"),
        ([datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)] * 4, 1_000_000, "us"),  # noqa: UP017
        ([date(1970, 1, 2)] * 4, 86_400_000_000, "us"),
        ([5.0] * 4, 5, "ms"),
        (np.array([5] * 4, np.uint16), 5, "ms"),
    ],
)
def test_times(times, expected, unit):
    events = read(log(t=times), time="t", time_unit="ms")
    assert events.time is not None
    assert events.time.tolist() == [expected] * 4
    assert (events.schema.time_unit, events.schema.timed) == (unit, True)


@pytest.mark.parametrize(
    ("labels", "declared", "kind"),
    [
        ([1, 0, 1, 1], None, "click"),
        ([True, False, True, True], None, "click"),
        ([1.0, 0.0, 1.0, 1.0], "rating", "rating"),
        ([1.0, 0.5, 1.0, 1.0], None, "rating"),
    ],
)
def test_label_kinds(labels, declared, kind):
    assert read(log(y=labels), label="y", label_kind=declared).schema.label == kind


def test_without_labels_every_event_is_a_positive():
    events = read()
    assert events.schema.label == "implicit"
    assert events.label is None
    assert events.time is None
    assert events.positive().all()


def test_ids_known_from_side_tables_and_lists():
    users = pl.DataFrame({"u": ["z", "a"], "age": [30.0, None], "town": ["p", "q"]})
    items = pd.DataFrame({"key": [99, 10], "tags": [["s"], ["s", "t"]], "more": [1, 2]})
    events = read(
        users=users,
        items=items,
        item_id="key",
        item_fields=("tags", Field("more", "numeric")),
        shows={"x": [20, 77, 77], "y": [10]},
        extra_items=[55],
    )
    assert events.user_ids.to_list() == ["a", "b", "c", "z"]
    assert events.item_ids.to_list() == [10, 20, 30, 55, 77, 99]
    assert events.user.tolist() == [1, 0, 1, 2]
    assert events.schema.user.fields == (Field("age", "numeric"), Field("town"))  # by default all columns but the id
    assert events.schema.item.fields == (Field("tags", "multi"), Field("more", "numeric"))
    assert events.items is not None
    assert events.items.rows() == [(99, ["s"], 1.0), (10, ["s", "t"], 2.0)]
    assert events.shows is not None
    assert [s.tolist() for s in events.shows] == [[1, 4], [0]]


def test_side_table_ids_take_the_type_of_the_events():
    users = pl.DataFrame({"u": [7, 8], "age": [1.0, 2.0]})
    events = read(log(u=["7", "8", "x", "7"]), users=users)
    assert events.users is not None
    assert events.users["id"].to_list() == ["7", "8"]
    with pytest.raises(ColumnError, match="'seven' is no id"):
        read(items=pl.DataFrame({"i": ["10", "seven"]}))


def test_kinds_of_behaviour():
    events = read(log(b=["buy", "view", "buy", "view"]), behaviour="b", behaviours=("view", "cart", "buy"))
    assert events.schema.behaviours == ("view", "cart", "buy")
    assert events.behaviour is not None
    assert events.behaviour.tolist() == [2, 0, 2, 0]


NAN = float("nan")
REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"user": "uu"}, ColumnError, "no column 'uu'.*did you mean 'u'"),
    ({"u": [1.0, 2.0, 3.0, 4.0]}, {}, ColumnError, "user column 'u' has type Float64"),
    ({"u": ["a", None, "b", "c"]}, {}, ColumnError, r"1 of 4 rows in column 'u' \(user\) are null"),
    ({"u": ["a", "", "b", ""]}, {}, ColumnError, "2 of 4 rows .* empty"),
    ({"i": [None, 1, 1, 1]}, {}, ColumnError, "'i'"),
    ({"i": [[1], [1], [1], [1]]}, {}, ColumnError, "List"),
    ({"d": ["x", None, "x", "x"]}, {}, ColumnError, "'d'"),
    ({"d": ["x", "", "x", "x"]}, {}, ColumnError, "empty"),
    ({"d": [1.0, 2.0, 1.0, 2.0]}, {}, ColumnError, "Float64"),
    ({"t": ["1", "2", "3", "4"]}, {"time": "t"}, ColumnError, "String.*to_datetime"),
    ({"t": [1, None, 2, 3]}, {"time": "t"}, ColumnError, "null"),
    ({"t": [1.0, NAN, 2.0, 3.0]}, {"time": "t"}, ColumnError, "not a number"),
    ({"t": [1.0, 1.5, 2.0, 3.0]}, {"time": "t"}, ColumnError, "1 of 4 rows .* fractions"),
    ({"t": [1.0, float("inf"), 2.0, 3.0]}, {"time": "t"}, ColumnError, "infinite"),
    ({"t": [1.0, 1e30, 2.0, 3.0]}, {"time": "t"}, ColumnError, "too large"),
    ({"y": ["1", "0", "1", "1"]}, {"label": "y"}, ColumnError, "String"),
    ({"y": [1, None, 0, 1]}, {"label": "y"}, LabelError, "null"),
    ({"y": [1.0, NAN, 2.0, 3.0]}, {"label": "y"}, LabelError, "not a number"),
    ({"y": [1.0, float("-inf"), 2.0, 3.0]}, {"label": "y"}, LabelError, "infinite"),
    ({"y": [1, 5, 0, 1]}, {"label": "y", "label_kind": "click"}, LabelError, "1 labels are neither 0 nor 1, e.g. 5"),
    ({"y": [0, 1, 0, 1]}, {"label": "y"}, LabelError, r"\['x'\] have no positive"),
    ({}, {"domains": ("x", "y", "z")}, LabelError, r"\['z'\] have no positive"),
    ({}, {"domains": ("x",)}, ColumnError, "'y' is in the events but was not declared"),
    ({}, {"domains": ("x", "y", "x")}, ConfigError, "once"),
    ({}, {"label_kind": "click"}, ConfigError, "label=None"),
    ({}, {"label": "y", "label_kind": "implicit"}, ConfigError, "label='y'"),
    ({}, {"label": "y", "label_kind": "clicks"}, ConfigError, "did you mean 'click'"),
    ({}, {"time": "t", "time_unit": "sec"}, ConfigError, "time unit"),
    ({}, {"behaviours": ("a",)}, ConfigError, "without a behaviour column"),
    ({"b": ["buy", None, "buy", "buy"]}, {"behaviour": "b"}, ColumnError, "null"),
    ({"b": ["buy", "bye", "buy", "buy"]}, {"behaviour": "b", "behaviours": ("buy",)}, ColumnError, "'bye'.*did you mean 'buy'"),
    ({"label": [1, 2, 3, 4]}, {"context": ("label",)}, ConfigError, "label"),
    ({"p": [1.0, float("inf"), 2.0, 3.0]}, {"context": ("p",)}, ColumnError, "infinity"),
    ({"p": ["a", "b", "c", "d"]}, {"context": (Field("p", "numeric"),)}, ColumnError, "numeric field 'p' has type String"),
    ({"p": ["a", "b", "c", "d"]}, {"context": (Field("p", "multi"),)}, ColumnError, "multi-valued field 'p'"),
    ({"p": [{"a": 1}] * 4}, {"context": ("p",)}, ColumnError, "Struct"),
    ({}, {"users": pl.DataFrame({"u": ["a", "b", "a"]})}, DataError, "'a' comes more than once"),
    ({}, {"users": pl.DataFrame({"u": ["a", None]})}, ColumnError, "users: None is no id"),
    ({}, {"users": pl.DataFrame({"v": ["a"]})}, ColumnError, "users have no column 'u'"),
    ({}, {"users": pl.DataFrame({"u": ["a"], "p": [float("inf")]})}, ColumnError, "infinity"),
    ({}, {"user_fields": ("age",)}, ConfigError, "without their table"),
    ({}, {"users": pl.DataFrame({"u": ["a"], "id": [1]})}, ConfigError, "'id'"),
    ({}, {"items": pl.DataFrame({"i": [1.5]})}, ColumnError, "Float64"),
    ({}, {"shows": {"x": [1]}}, ConfigError, r"leaves out the domains \['y'\]"),
    ({}, {"shows": {"x": [1], "y": [1], "zz": [1]}}, ConfigError, "'zz'"),
    ({}, {"extra_items": ["b"]}, ColumnError, "extra_items: 'b' is no id"),
]


@pytest.mark.parametrize(("columns", "options", "error", "message"), REFUSED, ids=[case[3] for case in REFUSED])
def test_bad_logs_are_refused(columns, options, error, message):
    with pytest.raises(error, match=f"(?s){message}") as caught:
        read(log(**columns), **options)
    assert type(caught.value) is error
    assert caught.value.do


def test_no_rows_at_all():
    with pytest.raises(DataError, match="no rows"):
        read(log().clear())


def test_no_frame_at_all():
    with pytest.raises(ColumnError, match="came as dict"):
        read({"u": ["a"]})


def test_a_column_of_mixed_types():
    frame = pd.DataFrame({"u": ["a", 3], "i": [1, 2], "d": ["x", "x"]})
    with pytest.raises(ColumnError, match="column 'u'"):
        read(frame)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, share: float):
    file = tmp_path / f"log.{suffix}"
    frame = pl.DataFrame({"u": np.arange(50_000) % 999, "i": np.arange(50_000) % 7, "d": ["x", "y"] * 25_000})
    frame.write_parquet(file) if suffix == "parquet" else frame.write_ipc(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    scan = pl.scan_parquet if suffix == "parquet" else pl.scan_ipc
    with pytest.raises(SourceError, match="events cannot be read"):
        read(scan(file))
    file.unlink()
    with pytest.raises(SourceError, match="events cannot be read"):
        read(scan(file))


def test_damage_in_the_middle_of_a_file(tmp_path: Path):
    file = tmp_path / "log.parquet"
    pl.DataFrame({"u": np.arange(50_000) % 999, "i": np.arange(50_000) % 7, "d": ["x", "y"] * 25_000}).write_parquet(file)
    whole = bytearray(file.read_bytes())
    whole[4:400] = bytes(396)
    file.write_bytes(whole)
    with pytest.raises(SourceError, match="events cannot be read"):
        read(pl.scan_parquet(file))


def test_a_csv_whose_text_is_no_number(tmp_path: Path):
    file = tmp_path / "log.csv"
    rows = "\n".join(f"u{n},{n},x,1" for n in range(2000))
    file.write_text(f"u,i,d,t\n{rows}\nu1,oops,x,1\n")
    with pytest.raises(SourceError, match="oops"):
        read(pl.scan_csv(file))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_log_is_read_once(monkeypatch: pytest.MonkeyPatch, chunk: int):
    """And neither the sizes of its pieces nor their ids' order of arrival change anything."""
    monkeypatch.setattr("isthmus.data.intern.CHUNK", chunk)
    frame = log(p=["r", None, "q", "r"], m=[["z", "a"], None, ["b", None], []], b=["buy", "view", "view", "buy"])
    readings = []

    def source(columns: list[str] | None, *_: Any):
        readings.append(columns)
        yield from (frame.select(columns or pl.all()).slice(n, 1) for n in range(len(frame)))

    options: dict[str, Any] = {"time": "t", "label": "y", "behaviour": "b", "context": ("p", "m")}
    here, there = read(frame, **options), read(register_io_source(source, schema=frame.schema), **options)
    assert len(readings) == 1
    assert there.frame().equals(here.frame())
    assert there.context["p"].index is not None
    assert there.context["p"].index.tolist() == [1, -1, 0, 1]
    assert there.context["m"].values.to_list() == ["a", "b", "z"]
    for events in (here, there):
        assert events.user_ids.is_sorted()
        assert events.item_ids.is_sorted()


@pytest.mark.parametrize(("number", "message"), [(127, "127 behaviour names"), (300, "more than 126 behaviour names")])
def test_too_many_names(number: int, message: str):
    frame = pl.DataFrame({"u": 1, "i": 1, "d": "x", "b": pl.Series(range(number))}, strict=False)
    with pytest.raises(ColumnError, match=message):
        read(frame, behaviour="b")
    assert len(read(frame[:126], behaviour="b").schema.behaviours) == 126
