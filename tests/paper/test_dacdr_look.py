"""What DACDR attends to for one user, by hand: every event's weight is set to a small whole number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.how import How
from isthmus.inside import AVERAGE, example_users, examples, look_inside
from isthmus.insight import Insight
from isthmus.layers.from_data import fill
from isthmus.models.dacdr import DACDR
from isthmus.models.mmoe import MMoE

WEIGHT = {"a": 3, "b": 1, "c": 2, "d": 1, "e": 1, "f": 4, "g": 5, "h": 6, "i": 7}  # of an item, for books; squared for films
ANN = [("a", "books", "buy"), ("b", "books", "view"), ("c", "films", "view"), ("c", "films", "view")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """bob rates every item in training; ann's last two events are test events; zed has none that anybody may know."""
    rows = [("bob", item, "books", "view", "train") for item in WEIGHT]
    rows += [("bob", "a", "films", "view", "train"), ("bob", "a", "music", "buy", "train")]
    rows += [("ann", *event, "train" if n < 2 else "test") for n, event in enumerate(ANN)]
    rows += [("cy", "e", "music", "buy", "valid"), ("di", "e", "music", "view", "train"), ("zed", "a", "books", "buy", "unused")]
    rows += [("eve", item, "music", "view", "train") for item in "abcde"]
    frame = pl.DataFrame(rows, ["user", "item", "domain", "behaviour", "part"], orient="row")
    frame = frame.with_columns(time=pl.int_range(pl.len()), label=pl.lit(4.0) - pl.int_range(pl.len()) % 3)
    names: Any = {name: name for name in ("user", "item", "domain", "behaviour", "time", "label")}
    events = read_events(frame, **names, label_kind="rating")
    return encode(events, split.given(events, frame["part"]), tmp_path_factory.mktemp("look") / "data")


def make_model(dataset: Dataset, **settings: Any) -> DACDR:
    """Scores are log(weight) for books, twice that for films, 0 for music: all of them even."""
    model = DACDR(dataset.schema, dim=2, tokens=1, hidden=(4,), norm=False, **settings)
    fill(model, dataset)
    step = model.stacks[0].domain
    assert step is not None
    with torch.no_grad():
        for weight in (step.query.weight, step.key.weight):  # type: ignore[union-attr]
            weight.copy_(torch.eye(2).expand_as(weight))
        for weight in model.kinds.parameters():
            weight.zero_()
        for item, weight in WEIGHT.items():
            code = int(dataset.item_vocabulary.encode([item])[0])
            model.items.table.weight[code] = torch.tensor([math.sqrt(2) * math.log(weight), 7.0])
        model.domain.weight[1:] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    return model


def cells(insight: Insight) -> dict[tuple[str, str], tuple[float, float]]:
    """(target, source or event) -> attention, and if it were even."""
    place = insight.x if insight.y == "target" else insight.y
    assert insight.beside == "even"
    return {(str(r["target"]), str(r[place])): (float(r["attention"]), float(r["even"])) for r in insight.rows}


def test_attention_of_one_user_by_hand(data: Dataset) -> None:
    found = look_inside(make_model(data), data, ["ann"])["user ann"]
    mass, by_type, events = map(cells, found)
    # books: buy a 3/3; view b 1/5, c 2/5 twice; each type counts half.  films: b 1/9, c 4/9 twice
    b, film = 0.5 / 5, 0.5 / 9
    even = {"a (books, buy)": 1 / 2, "b (books, view)": 1 / 6, "c (films, view)": 1 / 3}
    expected = {
        "books": {"a (books, buy)": 0.5, "b (books, view)": b, "c (films, view)": 4 * b},
        "films": {"a (books, buy)": 0.5, "b (books, view)": film, "c (films, view)": 8 * film},
        "music": even,
    }
    assert events.keys() == {(target, event) for target in expected for event in even}
    for (target, event), (attention, evenly) in events.items():
        assert attention == pytest.approx(expected[target][event], abs=1e-6)
        assert evenly == pytest.approx(even[event], abs=1e-6)
    assert mass["books", "books"] == pytest.approx((0.5 + b, 2 / 3), abs=1e-6)
    assert mass["books", "films"] == pytest.approx((4 * b, 1 / 3), abs=1e-6)
    assert mass["films", "films"] == pytest.approx((8 * film, 1 / 3), abs=1e-6)
    assert mass["music", "films"] == pytest.approx((1 / 3, 1 / 3), abs=1e-6)
    assert ("books", "music") not in mass, "she has no events there"
    assert by_type["books", "books, buy"] == pytest.approx((0.5, 0.5), abs=1e-6)
    assert by_type["films", "books, view"] == pytest.approx((film, 1 / 6), abs=1e-6)
    assert by_type["films", "films, buy"] == (0, 0)


def test_only_what_the_run_reads_is_looked_at(data: Dataset) -> None:
    """One event of each history: b in books, the second c elsewhere."""
    model = make_model(data)
    (*_, events) = look_inside(model, data, ["ann"], "books", how=How(history_length=1))["user ann"]
    expected = {("books", "c (films, view)"): (2 / 3, 1 / 2), ("books", "b (books, view)"): (1 / 3, 1 / 2)}
    assert cells(events) == {key: pytest.approx(pair, abs=1e-6) for key, pair in expected.items()}
    control = How(domains=(0,))  # trained on books alone: it sees nothing else
    mass = look_inside(model, data, ["ann"], how=control)["user ann"][0]
    assert cells(mass) == {("books", "books"): pytest.approx((1, 1), abs=1e-6)}
    tested = look_inside(model, data, ["ann"], how=How(train_on="tested"))["user ann"][0]
    assert {row["target"] for row in tested.rows} == {"films", "music"}


def test_the_events_with_the_largest_weights_come_first(data: Dataset) -> None:
    """bob's ten views share half of the attention: 1/30 for each unit of weight (3 of a in films besides its 3 in books)."""
    *_, events = look_inside(make_model(data), data, ["bob"], "books")["user bob"]
    sum_of_views = sum(WEIGHT.values()) + WEIGHT["a"]
    assert [(row["event"], pytest.approx(row["attention"], abs=1e-6)) for row in events.rows] == [
        ("a (music, buy)", 0.5),
        *((f"{item} (books, view)", 0.5 * WEIGHT[item] / sum_of_views) for item in "ihgf"),
    ]


def test_a_user_without_events_has_nothing_and_no_nan(data: Dataset) -> None:
    found = look_inside(make_model(data), data, ["zed", "ann"])
    assert found["user zed"] == []
    assert len(found["user ann"]) == 3
    others_only = make_model(data, own_history=False)
    assert look_inside(others_only, data, ["cy"], "music") == {"user cy": []}
    mass = look_inside(others_only, data, ["cy"])["user cy"][0]
    assert {key: value for key, value in cells(mass).items() if value[0]} == {
        (target, "music"): pytest.approx((1, 1)) for target in ("books", "films")
    }


def test_what_cannot_be_looked_at_says_so(data: Dataset, tmp_path: Path) -> None:
    model = make_model(data)
    for users, domain, message in (
        (["anne"], None, r"no user 'anne'(.|\n)*did you mean 'ann'"),
        (["ann"], "musik", "did you mean 'music'"),
        (None, "music", "without users"),
    ):
        with pytest.raises(ConfigError, match=message):
            look_inside(model, data, users, domain)
    with pytest.raises(ConfigError, match=r"MMoE, which has nothing to show of single users(.|\n)*one of: dacdr"):
        look_inside(MMoE(data.schema), data, ["ann"])
    with pytest.raises(ConfigError, match=r"MMoE, which has nothing to show on average(.|\n)*one of: adi, dacdr"):
        look_inside(MMoE(data.schema), data)
    without = DACDR(data.schema, domain_attention=False)
    with pytest.raises(ConfigError, match="'domain_attention': False"):
        look_inside(without, data, ["ann"])
    assert examples(without, data, How()) == []
    smaller = DACDR(read_schema(data, tmp_path))
    with pytest.raises(ConfigError, match="another schema"):
        look_inside(smaller, data)


def read_schema(data: Dataset, folder: Path) -> Any:
    """Of other data with the same domains."""
    frame = pl.DataFrame({"user": ["u", "v"] * 3, "item": ["i"] * 6, "domain": ["books", "films", "music"] * 2, "time": range(6)})
    events = read_events(frame, user="user", item="item", domain="domain", time="time")
    return encode(events, split.given(events, ["train"] * 6), folder / "other").schema


def test_averages_and_examples(data: Dataset) -> None:
    model = make_model(data)
    assert [look.name for look in look_inside(model, data)[AVERAGE]] == ["attention", "attention_lift", "attention_behaviour"]
    # bob has events in three domains, ann four in two, eve five in one, cy and di one each
    assert data.user_vocabulary.decode(example_users(data)).to_list() == ["bob", "ann", "eve"]
    shown = examples(model, data, How())
    assert [look.name for look in shown[:3]] == [f"attention{kind}-user-bob" for kind in ("", "_behaviour", "_events")]
    assert shown[3].title == "Attention by source domain, user ann"
    assert "most domains" in shown[3].note
    assert cells(shown[3]) == cells(look_inside(model, data, ["ann"])["user ann"][0])
