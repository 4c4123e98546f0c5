"""Ciao and Epinions: what is known at a review of how helpful its author's earlier reviews were."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from scipy.io import savemat

from isthmus.data.encode import encode
from isthmus.data.sources import ciao, epinions
from isthmus.data.split import global_time
from isthmus.errors import ConfigError, SourceError

SITES = pytest.mark.parametrize("site", [ciao, epinions])

# user, product, category, rating, helpfulness, time, and what is known of the user by then, worked out by hand
TABLE = (
    (1, 10, 3, 4, 4, 5, "3"),  # before: 2 and 5 at time 3 (3.5 rounds up to 4), and 1 at time 1: 8/3
    (1, 11, 3, 5, 1, 1, "none"),  # the first of user 1, though not the first row
    (1, 12, 4, 3, 2, 3, "1"),  # before: 1
    (1, 13, 4, 5, 5, 3, "1"),  # of the same time as the row above: neither knows the other
    (1, 14, 3, 2, 0, 9, "3"),  # before: 1, 2, 5, 4: 12/4
    (2, 10, 3, 5, 3, 2, "none"),  # user 1's reviews are not user 2's
    (2, 12, 4, 5, 2, 4, "3"),
    (2, 11, 3, 1, 5, 6, "3"),  # before: 3 and 2: 2.5 rounds up
    (3, 10, 3, 5, 5, 5, "none"),
)
INVALID = (2, 13, 4, 0, 0, 1)  # a rating of 0 is none, and so is its helpfulness


def write(folder: Path, table: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    savemat(folder / "rating_with_timestamp.mat", {"rating": table})
    return folder


@pytest.fixture
def reviews() -> np.ndarray:
    """Categories 3 and 4 are beauty and music at Ciao, movies and books at Epinions."""
    return np.array([*(row[:6] for row in TABLE), INVALID], np.float64)


def known(site: ModuleType, folder: Path, **arguments: object) -> list[str]:
    arguments = {"domains": "all", "min_user_events": 1, "helpfulness": True, **arguments}
    return site.load(folder, **arguments).events.frame()["past_helpfulness"].to_list()


@SITES
def test_the_mean_of_strictly_earlier_reviews(site: ModuleType, reviews: np.ndarray, tmp_path: Path) -> None:
    events = site.load(write(tmp_path, reviews), domains="all", min_user_events=1, helpfulness=True).events
    assert [(f.name, f.kind) for f in events.schema.context] == [("past_helpfulness", "categorical")]
    assert events.frame().select("user", "item", "time", "past_helpfulness").rows() == [(u, i, t, p) for u, i, _, _, _, t, p in TABLE]


@SITES
@pytest.mark.parametrize("row", range(len(TABLE)))
def test_a_reviews_helpfulness_changes_later_events_of_its_user_alone(
    site: ModuleType, row: int, reviews: np.ndarray, tmp_path: Path
) -> None:
    before = known(site, write(tmp_path, reviews))
    user, time = TABLE[row][0], TABLE[row][5]
    reviews[row, 4] += 100
    changed = [n for n, (a, b) in enumerate(zip(before, known(site, write(tmp_path, reviews)), strict=True)) if a != b]
    assert changed == [n for n, other in enumerate(TABLE) if other[0] == user and other[5] > time]


def test_what_is_left_out_of_the_events_is_left_out_of_the_mean(reviews: np.ndarray, tmp_path: Path) -> None:
    folder = write(tmp_path, reviews)
    assert known(epinions, folder, domains=("movies",)) == ["1", "none", "3", "none", "3", "none"]
    assert known(epinions, folder, min_user_events=4) == [row[6] for row in TABLE if row[0] == 1]


def test_the_order_of_rows_means_nothing(reviews: np.ndarray, tmp_path: Path) -> None:
    assert known(ciao, write(tmp_path, reviews[::-1])) == [row[6] for row in reversed(TABLE)]


def test_nothing_else_changes(reviews: np.ndarray, tmp_path: Path) -> None:
    folder = write(tmp_path, reviews)
    without, given = (ciao.load(folder, domains="all", min_user_events=1, helpfulness=value).events for value in (False, True))
    assert without.schema.context == ()
    assert given.frame().drop("past_helpfulness").equals(without.frame())
    assert given.dropped == without.dropped == {"ratings outside 1 to 5": 1}


def test_the_parquet_layout_gives_the_same(reviews: np.ndarray, tmp_path: Path) -> None:
    frame = pl.DataFrame(reviews, ["user", "item", "category", "rating", "helpfulness", "time_bin"]).cast(pl.Int64)
    (tmp_path / "parquet").mkdir()
    frame.write_parquet(tmp_path / "parquet" / "all_ratings.parquet")
    assert known(epinions, tmp_path / "parquet") == [row[6] for row in TABLE]


def test_votes_that_are_not_told_do_not_count(reviews: np.ndarray, tmp_path: Path) -> None:
    frame = pl.DataFrame(reviews, ["user", "item", "category", "rating", "helpfulness", "time_bin"])
    missing = pl.when(pl.col("user") == 1, pl.col("time_bin") < 5).then(None).otherwise("helpfulness").alias("helpfulness")
    frame.with_columns(missing).with_columns(pl.exclude("helpfulness").cast(pl.Int64)).write_parquet(tmp_path / "all_ratings.parquet")
    assert known(epinions, tmp_path)[:5] == ["none", "none", "none", "none", "4"]


@SITES
def test_a_training_set_can_be_made(site: ModuleType, reviews: np.ndarray, tmp_path: Path) -> None:
    events = site.load(write(tmp_path, reviews), domains="all", min_user_events=1, helpfulness=True).events
    data = encode(events, global_time(events, valid=0.2, test=0.2), tmp_path / "encoded")
    assert data.schema.context[0].size > 2


@SITES
def test_without_times_there_is_no_earlier(site: ModuleType, reviews: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="helpfulness=True with timed=False"):
        site.load(write(tmp_path / "timed", reviews), helpfulness=True, timed=False)
    (tmp_path / "untimed").mkdir()
    savemat(tmp_path / "untimed" / "rating.mat", {"rating": reviews[:, :5]})
    with pytest.raises(SourceError, match=r"without times[\s\S]*rating_with_timestamp\.mat"):
        site.load(tmp_path / "untimed", domains="all", min_user_events=1, helpfulness=True)
