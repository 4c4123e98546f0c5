"""Columns in the smallest types that hold them: what they say does not depend on it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.widths import domain_type, time_type


@pytest.mark.parametrize(("domains", "expected"), [(1, np.int8), (128, np.int8), (129, np.int16), (2**15 - 1, np.int16)])
def test_the_type_of_domains(domains: int, expected: type) -> None:
    assert domain_type(domains) == expected
    assert np.iinfo(domain_type(domains)).max >= domains - 1


@pytest.mark.parametrize(
    ("times", "expected"), [([0, 2**31 - 1], np.int32), ([0, 2**31], np.int64), ([-1, 5], np.int64), ([], np.int32), (None, np.int32)]
)
def test_the_type_of_times(times: list[int] | None, expected: type) -> None:
    """Two times that fit may differ by no more than fits."""
    assert time_type(None if times is None else np.array(times, np.int64)) == expected


def made(folder, since: int, domains: int, each: int) -> Dataset:
    """Three users with ``each`` events, one a second, going round the domains."""
    number = np.arange(3 * each)
    log = pl.DataFrame({"u": number % 3, "i": number % 7, "d": number % 4 % domains, "t": since + number})
    if domains > 4:  # every other domain has one event of somebody else, for training
        rest = np.arange(4, domains)
        log = pl.concat([pl.DataFrame({"u": rest * 0 + 9, "i": rest * 0, "d": rest, "t": rest * 0 + since}), log])
    events = read_events(log, user="u", item="i", domain="d", time="t")
    return encode(events, split.leave_last(events), folder)


def test_what_histories_say_does_not_depend_on_the_types(tmp_path) -> None:
    """Times, domains and places of 8 to 64 bits."""
    few, late, long, many = (
        made(tmp_path / str(n), since, domains, each)
        for n, (since, domains, each) in enumerate([(0, 4, 40), (2**40, 4, 40), (0, 4, 300), (0, 200, 40)])
    )
    assert [d.history.time.dtype for d in (few, late)] == [np.int32, np.int64]
    assert [d.part("train").time.dtype for d in (few, late)] == [np.int32, np.int64]
    assert [d.history.event.dtype for d in (few, long)] == [np.uint8, np.uint16]
    assert [d.history.domain.dtype for d in (few, many)] == [np.int8, np.int16]
    assert [d.part("train").domain.dtype for d in (few, many)] == [np.int8, np.int16]
    for other in (late, long, many):
        domain = [other.schema.domain_names.index(name) for name in few.schema.domain_names]
        since = int(other.history.time[1:].min())
        for user in range(3):
            told = []
            for dataset, first in ((few, 0), (other, since)):
                code = np.array(dataset.user_vocabulary.encode(pl.Series([user])))
                merged = dataset.history.cut(code, np.array([first + 90]), None, 50)
                own = dataset.history.cut(code, np.array([first + 90]), np.array([domain[1] if dataset is other else 1]), 50)
                told.append([merged["time"] - first * (merged["time"] > 0), own["time"] - first * (own["time"] > 0)])
                names = [*dataset.schema.domain_names, "nobody"]
                told[-1].append([names[d] for d in merged["domain"][0]])
                told[-1].append(dataset.item_vocabulary.decode(merged["item"][0]).to_list())
            for one, two in zip(*told, strict=True):
                np.testing.assert_array_equal(one, two)
