"""Amazon 2018: what differs from 2014, files without ratings, users taken apart, and events in order; small, made by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from isthmus.data.events import Events
from isthmus.data.sources import amazon14, amazon18
from isthmus.errors import ConfigError, SourceError

Row = tuple[str, str, float, int]

TOYS: tuple[Row, ...] = (("A", "T1", 5.0, 100), ("A", "T2", 4.0, 200), ("B", "T1", 1.0, 200), ("C", "T2", 5.0, 160))
GAMES: tuple[Row, ...] = (("A", "G1", 2.0, 200), ("D", "G1", 5.0, 310), ("D", "G2", 3.0, 320), ("B", "G2", 4.0, 150))
BOTH = (("Toys_and_Games", TOYS), ("Video_Games", GAMES))


def rows(events: Events, *more: str) -> list[tuple]:
    return events.frame().select("user", "item", "domain", *more).rows()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ratings in BOTH:
        (tmp_path / f"{name}.csv").write_text("".join(f"{i},{u},{r},{t}\n" for u, i, r, t in ratings))
    return tmp_path


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Parquet without ratings; users and items by numbers, those of items a category's own."""
    users = {"A": 1, "B": 2, "C": 3, "D": 4}
    pl.DataFrame({"user": list(users.values()), "reviewer": list(users)}).write_parquet(tmp_path / "user_ids.parquet")
    for name, ratings in (("toys", TOYS), ("games", GAMES)):
        items = {item: n for n, item in enumerate(sorted({i for _, i, _, _ in ratings}), 1)}
        pl.DataFrame({"item": list(items.values()), "asin": list(items)}).write_parquet(tmp_path / f"{name}_item_ids.parquet")
        pl.DataFrame(
            {
                "user": pl.Series([users[u] for u, *_ in ratings], dtype=pl.Int32),
                "item": pl.Series([items[i] for _, i, _, _ in ratings], dtype=pl.Int32),
                "timestamp": [t for *_, t in ratings],
                "pos": pl.Series([9 - n for n in range(4)] if name == "toys" else range(4), dtype=pl.Int16),
            }
        ).write_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def test_products_come_before_users_in_the_ratings(folder: Path) -> None:
    expected = [(u, i, name, t, r) for name, ratings in BOTH for u, i, r, t in ratings]
    assert rows(amazon18.load(folder, min_user_events=1).events, "time", "label") == expected
    for name, ratings in BOTH:
        lines = [json.dumps({"reviewerID": u, "asin": i, "overall": r, "unixReviewTime": t}) for u, i, r, t in ratings]
        (folder / f"{name}.csv").unlink()
        (folder / f"{name}_5.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert rows(amazon18.load(folder, min_user_events=1).events, "time", "label") == expected


def test_metadata_are_json(folder: Path) -> None:
    products = [
        {"asin": "T1", "category": ["Toys", "Kites", "Toys"], "brand": "It's", "price": "$1,234.50", "title": "a"},
        {"asin": "T2", "category": [], "brand": "", "price": ".a-section { margin: 0 }"},
        {"asin": "never rated"},
    ]
    (folder / "meta_Toys_and_Games.json").write_text("\n".join(json.dumps(product) for product in products))
    (folder / "meta_Video_Games.json").write_text("")
    events = amazon18.load(folder, min_user_events=1, metadata=True).events
    assert events.items is not None
    assert events.items.sort("id").rows() == [("T1", ["Toys", "Kites"], "It's", 1234.5), ("T2", [], None, None)]
    (folder / "meta_Video_Games.json").write_text("{'asin': 'G1'}\n")  # a literal of Python is no JSON
    with pytest.raises(SourceError, match=r"meta_Video_Games\.json cannot be read"):
        amazon18.load(folder, min_user_events=1, metadata=True)


class TestNumbered:
    def test_numbers_become_ids(self, numbered: Path) -> None:
        events = amazon18.load(numbered, domains=("toys", "games"), label="implicit", min_user_events=1).events
        expected = [(u, i, name, t) for name, (_, ratings) in zip(("toys", "games"), BOTH, strict=True) for u, i, _, t in ratings]
        assert rows(events, "time") == expected
        assert (events.schema.label, events.label) == ("implicit", None)
        assert amazon18.load(numbered, domains="all", label="implicit", min_user_events=1).events.schema.domain_names == ("games", "toys")

    def test_have_no_ratings(self, numbered: Path) -> None:
        with pytest.raises(ConfigError, match="have no ratings"):
            amazon18.load(numbered, domains=("toys", "games"))

    def test_a_number_without_an_id_is_counted(self, numbered: Path) -> None:
        ids = pl.read_parquet(numbered / "user_ids.parquet")
        ids.filter(pl.col("reviewer") != "D").write_parquet(numbered / "user_ids.parquet")
        events = amazon18.load(numbered, domains=("toys", "games"), label="implicit", min_user_events=1).events
        assert events.dropped == {"lines without user, item, time": 2}

    def test_their_places_decide_within_a_day(self, numbered: Path) -> None:
        events = amazon18.load(numbered, domains=("toys", "games"), label="implicit", min_user_events=1, ordered=True).events
        assert [(item, time) for user, item, _, time in rows(events, "time") if user == "A"] == [("T1", 100), ("T2", 201), ("G1", 200)]


class TestOrder:
    def test_events_of_a_time_are_a_second_apart(self, folder: Path) -> None:
        events = amazon18.load(folder, min_user_events=1, ordered=True).events
        assert events.schema.time_unit == "s"
        places = {(user, item): time for user, item, _, time in rows(events, "time")}
        assert places == {
            **{("A", "T1"): 100, ("A", "T2"): 200, ("A", "G1"): 201},  # the last two of one time: by domain, as asked for
            **{("B", "G2"): 150, ("B", "T1"): 200, ("C", "T2"): 160, ("D", "G1"): 310, ("D", "G2"): 320},
        }
        with pytest.raises(ConfigError, match="ordered=True with timed=False"):
            amazon18.load(folder, ordered=True, timed=False)


class TestOverlap:
    def test_nobody_is_known_elsewhere(self, folder: Path) -> None:
        events = amazon18.load(folder, min_user_events=1, overlap=0).events
        users = [user for user, _, _ in rows(events)]
        assert users == [
            *("A@Toys_and_Games", "A@Toys_and_Games", "B@Toys_and_Games", "C"),
            *("A@Video_Games", "D", "D", "B@Video_Games"),
        ]

    def test_a_share_keeps_its_id(self, folder: Path) -> None:
        def kept(seed: int) -> set[str]:
            users = {user for user, _, _ in rows(amazon18.load(folder, min_user_events=1, overlap=0.5, seed=seed).events)}
            return {user for user in "AB" if user in users}

        assert all(len(kept(seed)) == 1 for seed in range(8))
        assert {"A"} in (found := [kept(seed) for seed in range(8)])
        assert {"B"} in found
        same = amazon18.load(folder, min_user_events=1, overlap=1).events
        assert rows(same) == rows(amazon18.load(folder, min_user_events=1).events)
        with pytest.raises(ConfigError, match=r"overlap=1\.5"):
            amazon18.load(folder, overlap=1.5)

    def test_few_events_are_counted_before(self, folder: Path) -> None:
        events = amazon18.load(folder, min_user_events=3, overlap=0).events
        assert {user for user, _, _ in rows(events)} == {"A@Toys_and_Games", "A@Video_Games"}


def test_2014_has_all_of_it_too(tmp_path: Path) -> None:
    for name, ratings in (("Movies_and_TV", TOYS), ("CDs_and_Vinyl", GAMES)):
        (tmp_path / f"ratings_{name}.csv").write_text("".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ratings))
    events = amazon14.load(tmp_path, min_user_events=1, label="implicit", overlap=0, ordered=True).events
    assert (events.schema.label, events.schema.time_unit, len(events.user_ids)) == ("implicit", "s", 6)


@pytest.mark.data
def test_the_real_files() -> None:
    try:
        events = amazon18.load(domains=("toys", "games"), label="implicit", overlap=0.003, ordered=True).events
    except SourceError as error:
        pytest.skip(str(error))
    assert len(events) + events.dropped["ratings that came twice"] == 114_487 + 82_871
    people = {name: set(frame["user"]) for (name,), frame in events.frame().group_by("domain")}
    assert len(people["toys"] & people["games"]) == round(0.003 * 7_996)
