"""Amazon 2014: ratings, 5-core reviews and metadata in the published layouts, small and made by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from isthmus.data.events import Events
from isthmus.data.sources import amazon14, load
from isthmus.errors import ConfigError, SourceError

Row = tuple[str, str, float, int]

MOVIES: tuple[Row, ...] = (("A", "0001", 5.0, 100), ("A", "B2", 4.0, 200), ("B", "0001", 1.0, 150), ("C", "B2", 5.0, 160))
CDS: tuple[Row, ...] = (("A", "D1", 2.0, 300), ("D", "D1", 5.0, 310), ("D", "D2", 3.0, 320), ("B", "D2", 4.0, 330))
META = (
    {"asin": "0001", "categories": [["Movies & TV", "Drama"], ["Movies & TV", "Kids"]], "price": 9.99, "related": {"also_bought": ["B2"]}},
    {"categories": [["Movies & TV"]], "asin": "B2", "brand": "It's", "title": 'He said "asin"', "salesRank": {"Movies & TV": 1}},
    {"asin": "never rated", "categories": [["Movies & TV"]]},
)


def rows(events: Events) -> list[tuple]:
    names = ["user", "item", "domain", *(["time"] if events.time is not None else []), "label"]
    return events.frame().select(names).rows()


def write_ratings(folder: Path, name: str, ratings: tuple[Row, ...]) -> None:
    (folder / f"ratings_{name}.csv").write_text("".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ratings))


def write_core(folder: Path, name: str, ratings: tuple[Row, ...]) -> None:
    with gzip.open(folder / f"reviews_{name}_5.json.gz", "wt") as file:
        for u, i, r, t in ratings:
            review = {"reviewerID": u, "asin": i, "helpful": [1, 2], "reviewText": 'a,\n"b"', "overall": r, "unixReviewTime": t}
            file.write(json.dumps(review) + "\n")


def write_meta(folder: Path, name: str, products: tuple[dict, ...]) -> None:
    with gzip.open(folder / f"meta_{name}.json.gz", "wt") as file:
        file.writelines(repr(product) + "\n" for product in products)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_ratings(tmp_path, "Movies_and_TV", MOVIES)
    write_ratings(tmp_path, "CDs_and_Vinyl", CDS)
    return tmp_path


@pytest.fixture
def expected() -> list[tuple]:
    parts = (("Movies_and_TV", MOVIES), ("CDs_and_Vinyl", CDS))
    return [(u, i, name, t, r) for name, ratings in parts for u, i, r, t in ratings]


class TestEvents:
    def test_all_ratings(self, folder: Path, expected: list[tuple]) -> None:
        events = amazon14.load(folder, min_user_events=1).events
        assert rows(events) == expected
        assert events.schema.domain_names == ("Movies_and_TV", "CDs_and_Vinyl")
        assert (events.schema.label, events.schema.timed, events.schema.time_unit) == ("rating", True, "s")
        assert events.dropped == {}

    def test_5_core_and_packed_ratings_give_the_same(self, folder: Path, expected: list[tuple], tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        write_core(other, "Movies_and_TV", MOVIES)
        write_core(other, "CDs_and_Vinyl", CDS)
        assert rows(amazon14.load(other, min_user_events=1).events) == expected
        for file in folder.glob("*.csv"):
            (other / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        assert rows(amazon14.load(other, min_user_events=1, core=False).events) == expected

    def test_of_two_kinds_of_files_one_is_read_for_all_domains(self, folder: Path) -> None:
        write_core(folder, "CDs_and_Vinyl", CDS[1:3])
        assert len(amazon14.load(folder, min_user_events=1).events) == 8
        assert len(amazon14.load(folder, domains="CDs_and_Vinyl", min_user_events=1).events) == 4
        assert len(amazon14.load(folder, domains="CDs_and_Vinyl", min_user_events=1, core=True).events) == 2
        with pytest.raises(SourceError, match=r"lacks reviews_Movies_and_TV_5\.json"):
            amazon14.load(folder, core=True)
        (folder / "ratings_CDs_and_Vinyl.csv").unlink()
        with pytest.raises(SourceError, match=r"lacks ratings_CDs_and_Vinyl\.csv and reviews_Movies_and_TV_5\.json"):
            amazon14.load(folder)

    def test_clicks_from_a_threshold(self, folder: Path) -> None:
        labels = [[row[-1] for row in rows(amazon14.load(folder, min_user_events=1, label="click", click_at=at).events)] for at in (5, 4)]
        assert labels == [[1, 0, 0, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 1, 0, 1]]
        assert [row[-1] for row in rows(amazon14.load(folder, min_user_events=1, label="click").events)] == labels[0]
        for at in (1, 5.5):
            with pytest.raises(ConfigError, match="click_at="):
                amazon14.load(folder, label="click", click_at=at)

    def test_domains_in_order_or_all(self, folder: Path) -> None:
        write_ratings(folder, "Books", MOVIES[:1])
        names = [
            amazon14.load(folder, domains=d, min_user_events=1).events.schema.domain_names for d in ("all", ("CDs_and_Vinyl", "Books"))
        ]
        assert names == [("Books", "CDs_and_Vinyl", "Movies_and_TV"), ("CDs_and_Vinyl", "Books")]

    def test_times_can_be_left_out(self, folder: Path) -> None:
        events = amazon14.load(folder, min_user_events=1, timed=False).events
        assert (events.time, events.schema.timed, len(events)) == (None, False, 8)

    def test_from_the_environment(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "amazon2014").mkdir()
        for file in folder.glob("*.csv"):
            file.rename(folder / "amazon2014" / file.name)
        monkeypatch.setenv("ISTHMUS_DATA", str(folder))
        assert len(load("amazon14", min_user_events=1).events) == 8


class TestDropped:
    def test_users_with_few_ratings_in_all_domains_together(self, folder: Path) -> None:
        events = amazon14.load(folder, min_user_events=3).events
        assert {row[0] for row in rows(events)} == {"A"}
        assert events.dropped == {"ratings of users with fewer than 3 ratings": 5}
        with pytest.raises(SourceError, match="no rating of Movies_and_TV, CDs_and_Vinyl that is kept"):
            amazon14.load(folder)

    def test_common_users(self, folder: Path) -> None:
        events = amazon14.load(folder, min_user_events=1, common_users=True).events
        assert {row[0] for row in rows(events)} == {"A", "B"}
        assert events.dropped == {"ratings of users who are not in every domain": 3}
        assert len(amazon14.load(folder, domains="CDs_and_Vinyl", min_user_events=1, common_users=True).events) == 4

    def test_a_review_of_two_categories_stays_in_the_first(self, folder: Path) -> None:
        write_ratings(folder, "CDs_and_Vinyl", (*CDS, MOVIES[0], ("A", "0001", 5.0, 101)))
        events = amazon14.load(folder, min_user_events=1).events
        assert [row[2:4] for row in rows(events) if row[:2] == ("A", "0001")] == [("Movies_and_TV", 100), ("CDs_and_Vinyl", 101)]
        assert events.dropped == {"ratings that came twice": 1}

    @pytest.mark.parametrize("line", ["user,item,rating,timestamp", "E,F,5.0", "E,F,good,7", ",F,5.0,7", "E,,5.0,7", "E,F,5.0,"])
    def test_lines_that_do_not_tell_all(self, folder: Path, line: str) -> None:
        with (folder / "ratings_CDs_and_Vinyl.csv").open("a") as file:
            file.write(line + "\n")
        events = amazon14.load(folder, min_user_events=1).events
        assert (len(events), events.dropped) == (8, {"lines without user, item, rating, time": 1})

    def test_reviews_that_do_not_tell_all_and_invalid_ratings(self, folder: Path) -> None:
        write_core(folder, "CDs_and_Vinyl", (*CDS, ("D", "D3", 0.0, 400), ("D", "D4", 6.0, 400)))
        file = folder / "reviews_CDs_and_Vinyl_5.json.gz"
        file.write_bytes(file.read_bytes() + gzip.compress(b'{"reviewerID": "D", "asin": "D5", "unixReviewTime": 7}\n'))
        events = amazon14.load(folder, domains="CDs_and_Vinyl", core=True, min_user_events=1).events
        assert len(events) == 4
        assert events.dropped == {"lines without user, item, rating, time": 1, "ratings outside 1 to 5": 2}


class TestMetadata:
    def test_fields_of_products(self, folder: Path) -> None:
        write_meta(folder, "Movies_and_TV", META)
        write_meta(folder, "CDs_and_Vinyl", ({"asin": "B2", "categories": [["CDs"]]}, {"asin": "D1", "brand": "", "price": 3}))
        events = amazon14.load(folder, min_user_events=1, metadata=True).events
        fields = [("categories", "multi"), ("brand", "categorical"), ("price", "numeric")]
        assert [(f.name, f.kind) for f in events.schema.item.fields] == fields
        assert events.items is not None
        assert events.items.sort("id").rows() == [
            ("0001", ["Movies & TV", "Drama", "Kids"], None, pytest.approx(9.99)),
            ("B2", ["Movies & TV"], "It's", None),
            ("D1", [], None, 3.0),
        ]
        assert "never rated" not in events.item_ids

    def test_is_not_read_unless_asked_for(self, folder: Path) -> None:
        assert amazon14.load(folder, min_user_events=1).events.items is None
        with pytest.raises(SourceError, match=r"meta_Movies_and_TV\.json\.gz"):
            amazon14.load(folder, min_user_events=1, metadata=True)

    @pytest.mark.parametrize(
        "line",
        [
            "{'asin': '0001', 'price': ",
            "{'asin': '0001', 'price': 'cheap'}",
            "{'asin': '0001', 'categories': 5}",
            "['asin': '0001']",
            "{'price': 1.0}",
            *("{'asin': '0001', 'price': " + deep for deep in ("(" * 100_000, "-" * 100_000 + "1}", "1+" * 50_000 + "1}")),
            "{'asin': '0001', 'price': __import__('os').getpid()}",
        ],
    )
    def test_damaged_lines_are_refused_and_never_run(self, folder: Path, line: str) -> None:
        write_meta(folder, "CDs_and_Vinyl", ())
        (folder / "meta_Movies_and_TV.json").write_text(line + "\n")
        with pytest.raises(SourceError, match=r"meta_Movies_and_TV\.json cannot be read"):
            amazon14.load(folder, min_user_events=1, metadata=True)

    def test_a_truncated_file_is_named(self, folder: Path) -> None:
        write_meta(folder, "CDs_and_Vinyl", ())
        write_meta(folder, "Movies_and_TV", META * 50)
        file = folder / "meta_Movies_and_TV.json.gz"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(SourceError, match=r"meta_Movies_and_TV\.json\.gz cannot be read"):
            amazon14.load(folder, min_user_events=1, metadata=True)


class TestDamaged:
    def test_an_unknown_category_tells_what_is_there(self, folder: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"'Movies_and_Tv'[\s\S]*one of CDs_and_Vinyl, Movies_and_TV[\s\S]*did you mean 'Movies_and_TV'"
        ):
            amazon14.load(folder, domains=("Movies_and_Tv",))
        with pytest.raises(ConfigError, match="did you mean 'rating'"):
            load("amazon14", path=folder, label="ratings")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.md").write_text("")
        with pytest.raises(SourceError, match=r"holds no ratings[\s\S]*McAuley"):
            amazon14.load(tmp_path)

    def test_truncated_reviews_are_named(self, tmp_path: Path) -> None:
        write_core(tmp_path, "Books", MOVIES * 50)
        file = tmp_path / "reviews_Books_5.json.gz"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(SourceError, match=r"reviews_Books_5\.json\.gz cannot be read"):
            amazon14.load(tmp_path, domains="Books")

    @pytest.mark.parametrize("content", ["", "E,F\n", '{"reviewerID": "E", "asi'])
    def test_an_empty_or_foreign_file_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "ratings_Books.csv").write_text(content)
        with pytest.raises(SourceError, match=r"ratings_Books\.csv cannot be read"):
            amazon14.load(tmp_path, domains="Books")
