"""MAN's Amazon instances: tiny made-up files in the published columns, and the real ones against their own histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.queries import Queries, given_lists
from isthmus.data.sources import ENVIRONMENT, Loaded, amazon14_man, load
from isthmus.data.split import PARTS
from isthmus.errors import ConfigError, SourceError

DAY = 86_400
FIRST, TEST = 100 * DAY, 200 * DAY
Event = tuple[str, str, int]

GAMES: tuple[Event, ...] = (  # the last event of b is no instance: known
    *(("a", "g1", DAY), ("a", "g3", FIRST), ("a", "g2", FIRST), ("a", "g5", FIRST), ("b", "g1", 2 * DAY), ("b", "g4", TEST)),
    ("b", "both", TEST),
)
TOYS: tuple[Event, ...] = (("b", "t1", FIRST - DAY), ("c", "t2", 5 * DAY), ("c", "t3", TEST + DAY), ("b", "both", TEST))
NEW: tuple[Event, ...] = (("a", "g9", 3 * DAY), ("d", "g1", 4 * DAY), ("d", "g7", TEST))  # of the 2018 crawl; a has a history of her own
VALID_LIST, TEST_LIST = ("a", "g5", FIRST, ["g1", "never"]), ("b", "g4", TEST, ["g1", "g5"])


def write(folder: Path, name: str, rows: tuple, columns: tuple[str, ...]) -> None:
    pl.DataFrame(list(rows), schema=list(columns), orient="row").write_parquet(folder / f"{name}.parquet")


def write_instances(folder: Path, name: str, *rows: tuple) -> None:
    write(folder, name, rows, ("user", "pos_item", "timestamp", "negatives"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for domain, events, new in (("games", GAMES, NEW), ("toys", TOYS, ())):
        write(tmp_path, f"events_{domain}", events, ("user", "item", "timestamp"))
        both = (*((*e, "man") for e in events), *((*e, "amazon18") for e in new))
        write(tmp_path, f"union_{domain}_upto_2014-07-22", both, ("user", "item", "timestamp", "source"))
    write_instances(tmp_path, "games_valid", VALID_LIST)
    write_instances(tmp_path, "games_test", TEST_LIST)
    write_instances(tmp_path, "toys_test_groups", ("c", "t3", TEST + DAY, ["t9", "t2"]), ("b", "both", TEST, ["t1", "t2"]))
    return tmp_path


def rows(loaded: Loaded) -> list[tuple]:
    assert loaded.split is not None
    parts = pl.Series("part", [PARTS[p] for p in loaded.split.part])
    return loaded.events.frame().with_columns(parts).select("user", "item", "domain", "part").rows()


def encoded(loaded: Loaded, folder: Path) -> Dataset:
    assert loaded.split is not None
    return encode(loaded.events, loaded.split, folder / "encoded")


def histories(dataset: Dataset, part: str, queries: Queries) -> list[list[str]]:
    """What the library knows of each query's user in the domain at the query's moment."""
    moments = dataset.part(part).time
    assert moments is not None
    item = dataset.history.cut(queries.user, moments.take(queries.first), np.full(len(queries), queries.domain), None)["item"]
    return [named(dataset, row) for row in item]


def named(dataset: Dataset, codes: np.ndarray) -> list[str]:
    ids = dataset.item_vocabulary.ids
    return [ids[int(code) - 2] for code in codes if code]


def lists(dataset: Dataset, queries: Queries) -> list[list[str]]:
    return [named(dataset, item) for item in np.split(queries.item, queries.offsets[1:-1])]


class TestParts:
    def test_train_ends_before_the_first_instance_and_the_rest_is_known(self, folder: Path) -> None:
        assert rows(load("amazon14_man", path=folder)) == [
            ("a", "g1", "games", "train"),
            ("a", "g3", "games", "known"),
            ("a", "g2", "games", "known"),
            ("a", "g5", "games", "valid"),
            ("b", "g1", "games", "train"),
            ("b", "g4", "games", "test"),
            ("b", "both", "games", "known"),
            ("b", "t1", "toys", "train"),
            ("c", "t2", "toys", "train"),
            ("c", "t3", "toys", "test"),
            ("b", "both", "toys", "test"),
        ]

    def test_the_union_adds_users_without_a_history_of_their_own(self, folder: Path) -> None:
        loaded = amazon14_man.load(folder, training="union")
        added = [row for row in rows(loaded) if row not in rows(amazon14_man.load(folder))]
        assert added == [("d", "g1", "games", "train"), ("d", "g7", "games", "known")]
        assert loaded.events.dropped == {amazon14_man.LATER: 1}

    def test_the_split_says_how_it_was_made(self, folder: Path) -> None:
        split = amazon14_man.load(folder, same_day="together").split
        assert split is not None
        assert split.rule == "given"
        assert (split.params["training"], split.params["same_day"]) == ("events", "together")


class TestLists:
    def test_lists_are_the_instances_in_their_order(self, folder: Path, tmp_path: Path) -> None:
        dataset = encoded(amazon14_man.load(folder), tmp_path)
        toys = given_lists(dataset, "test", 1, each="event")
        assert lists(dataset, toys) == [["t3", "t9", "t2"], ["both", "t1", "t2"]]
        assert toys.label.tolist() == [1, 0, 0, 1, 0, 0]
        assert lists(dataset, given_lists(dataset, "valid", 0, each="event")) == [["g5", "g1", "never"]]
        assert lists(dataset, given_lists(dataset, "test", 0, each="event")) == [["g4", "g1", "g5"]]

    def test_toys_have_no_validation(self, folder: Path, tmp_path: Path) -> None:
        assert not len(given_lists(encoded(amazon14_man.load(folder), tmp_path), "valid", 1, each="event"))

    def test_drawn_lists_of_toys_hold_only_what_was_chosen_before(self, folder: Path, tmp_path: Path) -> None:
        before = (("e", "t4", 2 * DAY), ("e", "t5", 3 * DAY))
        new = tuple((f"u{i}", f"new{i}", FIRST + i * DAY) for i in range(20))  # as positives "never seen" would tell them
        write(folder, "events_toys", (*TOYS, *before, *new, ("c", "t1", FIRST + DAY)), ("user", "item", "timestamp"))
        dataset = encoded(amazon14_man.load(folder), tmp_path)
        (drawn,) = lists(dataset, given_lists(dataset, "valid", 1, each="event"))
        assert drawn[0] == "t1"
        assert sorted(drawn[1:]) == ["t4", "t5"]

    def test_lists_are_named(self, folder: Path) -> None:
        split = amazon14_man.load(folder).split
        assert split is not None
        assert split.candidates["test"].names == {"games": "published lists", "toys": "lists of the published test groups"}
        assert split.candidates["valid"].names == {"games": "published lists", "toys": "drawn lists of products chosen before"}


class TestHistories:
    @pytest.mark.parametrize(("same_day", "expected"), [("ordered", ["g1", "g2", "g3"]), ("together", ["g1"])])
    def test_events_of_a_day_are_ordered_by_product(self, folder: Path, tmp_path: Path, same_day: str, expected: list[str]) -> None:
        dataset = encoded(load("amazon14_man", path=folder, same_day=same_day), tmp_path)
        assert histories(dataset, "valid", given_lists(dataset, "valid", 0, each="event")) == [expected]

    def test_a_product_in_both_domains_never_tells_one_the_answer_of_the_other(self, folder: Path, tmp_path: Path) -> None:
        dataset = encoded(amazon14_man.load(folder), tmp_path)
        toys = given_lists(dataset, "test", 1, each="event").take(np.array([1]))
        moments = dataset.part("test").time
        assert moments is not None
        elsewhere = dataset.history.cut(toys.user, moments.take(toys.first), np.array([1]), None, others=True)["item"]
        assert named(dataset, elsewhere[0]) == ["g1"]  # neither "both" itself nor g4, which comes after it


class TestRefusals:
    def test_an_instance_without_its_event(self, folder: Path) -> None:
        write_instances(folder, "games_valid", ("a", "g5", FIRST + DAY, ["g1"]))
        with pytest.raises(SourceError, match="4 instances of 3 events"):
            amazon14_man.load(folder)

    def test_an_instance_twice(self, folder: Path) -> None:
        write_instances(folder, "games_test", VALID_LIST, TEST_LIST)
        with pytest.raises(SourceError, match=r"5 instances of 5 events[\s\S]*in no two of them"):
            amazon14_man.load(folder)

    @pytest.mark.parametrize("name", ["events_toys", "games_test"])
    def test_a_missing_file_or_column_is_named(self, folder: Path, name: str) -> None:
        write(folder, name, (("a", 1),), ("user", "timestamp"))
        with pytest.raises(SourceError, match=rf"{name}\.parquet cannot be read"):
            amazon14_man.load(folder)
        (folder / f"{name}.parquet").unlink()
        with pytest.raises(SourceError, match=rf"{name}\.parquet[\s\S]*Guanyu-Lin/MAN"):
            amazon14_man.load(folder)

    @pytest.mark.parametrize("argument", [{"training": "event"}, {"same_day": "order"}])
    def test_unknown_choices(self, folder: Path, argument: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"did you mean '(events|ordered)'"):
            load("amazon14_man", path=folder, **argument)


@pytest.mark.data
@pytest.mark.parametrize(("training", "train"), [("events", [13_289, 11_167]), ("union", [34_093, 29_861])])
def test_the_published_instances(tmp_path: Path, training: str, train: list[int]) -> None:
    """Users, lists and histories are those of the files, item by item."""
    loaded = load("amazon14_man", training=training)
    dataset, folder = encoded(loaded, tmp_path), amazon14_man.find_folder(None, ("amazon14_man",), ENVIRONMENT)
    assert dataset.manifest["rows"] == {"train": train, "valid": [399, 399], "test": [294, 1_021]}
    for part, domain, name in (("valid", 0, "games_valid"), ("test", 0, "games_test"), ("test", 1, "toys_test_groups")):
        published, queries = pl.read_parquet(folder / f"{name}.parquet"), given_lists(dataset, part, domain, each="event")
        assert [dataset.user_vocabulary.ids[int(code) - 2] for code in queries.user] == published["user"].to_list()
        assert lists(dataset, queries) == published.select(pl.concat_list("pos_item", "negatives")).to_series().to_list()
        assert histories(dataset, part, queries) == published["history"].to_list()
        assert np.array_equal(queries.label.reshape(-1, 10).sum(0), [len(published)] + [0] * 9)
    drawn = given_lists(dataset, "valid", 1, each="event")
    items, popular = lists(dataset, drawn), dataset.popularity(1)
    assert all(len(set(row)) == 10 for row in items)
    rows, span = dataset.part("valid"), pl.read_parquet(folder / "games_valid.parquet")["timestamp"]
    assert (rows.time[drawn.first] >= span.min()).all()
    assert (rows.time[drawn.first] < pl.read_parquet(folder / "games_test.parquet")["timestamp"].min()).all()
    negative = drawn.item.reshape(-1, 10)[:, 1:].ravel()
    expected = (popular**2).sum() / popular.sum()  # what an item drawn in proportion to popularity has
    assert 0.7 < popular[negative].mean() / expected < 1.3
    assert (popular[drawn.item] > 0).all()
    assert not dataset.known(drawn.user, 1, drawn.item.reshape(-1, 10)[:, 1:]).any()
