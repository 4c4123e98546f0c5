"""Values of settings of another type than their owner declares are refused, whoever asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import sources
from isthmus.data.encode import encode
from isthmus.data.rules import make_split
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError
from isthmus.experiment import compare
from isthmus.how import How
from isthmus.layers.encoders import make_encoder
from isthmus.models import available, get_model
from isthmus.recipe import ModelSpec, Recipe
from isthmus.run import build
from isthmus.schema import Schema
from isthmus.values import require_types


def owner(
    whole: int = 1,
    number: float = 0.5,
    truth: bool = False,
    text: str = "a",
    maybe: int | None = None,
    some: Sequence[int] = (1,),
    table: Mapping[str, Any] | None = None,
    one: Literal["x", "y"] = "x",
    either: float | Sequence[float] = 1.0,
    path: str | Path = "",
    anything: Any = None,
    bare=None,  # type: ignore[no-untyped-def]
) -> None:
    """With a setting of every kind."""


FIT = {
    "whole": [0, -3, np.int64(4)],
    "number": [0, 1.5, np.float32(2)],
    "truth": [True, np.bool_(False)],
    "text": ["", "b"],
    "maybe": [None, 3],
    "some": [[], (), [1, 2], range(3)],
    "table": [None, {}, {"a": object()}],
    "one": ["x", "y"],
    "either": [1, 2.5, [1, 2.5]],
    "path": ["a", Path("a")],
    "anything": [object()],
    "bare": [object()],
}
UNFIT = {
    "whole": [1.0, True, "1", None, [1]],
    "number": ["1", None, False, [1.0]],
    "truth": [0, 1, "true", None],
    "text": [3, None, ["a"]],
    "maybe": ["none", 1.5],
    "some": [3, "123", [1.5], ["a"], [None], {1: 2}],
    "table": ["{}", [], 3],
    "one": ["z", 1, None],
    "either": ["1", ["a"], None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIT.items() for value in values])
def test_what_fits_passes(name: str, value: Any) -> None:
    require_types(owner, {name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNFIT.items() for value in values])
def test_what_does_not_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        require_types(owner, {"bare": 1, name: value}, "this")
    assert caught.value.came == f"this: {name} = {value!r}"
    assert repr(inspect.signature(owner).parameters[name].default) in caught.value.do


@given(value=st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.lists(st.integers() | st.text(), max_size=3))
def test_python_s_own_values_fit_one_plain_type_at_most(value: Any) -> None:
    def fits(kind: Any) -> bool:
        def asks(x: Any) -> None: ...

        asks.__annotations__ = {"x": kind}
        try:
            require_types(asks, {"x": value})
        except ConfigError:
            return False
        return True

    assert sum(fits(kind) for kind in (float, bool, str, type(None), Sequence[int | str])) == 1
    assert fits(int) <= fits(float)


def test_a_list_s_kind_and_a_choice_are_told() -> None:
    for name, words in {
        "some": "a list, each a whole number",
        "one": "'x', 'y'",
        "maybe": "a whole number, or none",
        "table": "a table",
    }.items():
        with pytest.raises(ConfigError, match=words):
            require_types(owner, {name: UNFIT[name][0]})


def test_names_that_cannot_be_found_are_not_judged_and_the_others_are() -> None:
    def later(x: int, y: int) -> None: ...

    later.__annotations__["x"] = "NoSuchName"
    require_types(later, {"x": "anything"})
    with pytest.raises(ConfigError, match="y = 'anything'"):
        require_types(later, {"y": "anything"})


@pytest.fixture(scope="module")
def schema() -> Schema:
    return make_world(2, users=30, items=20, events=200, seed=0).events.schema


@pytest.mark.parametrize("name", available())
def test_every_model_refuses_a_text_for_every_number(name: str, schema: Schema) -> None:
    numbers = {key: p.default for key, p in inspect.signature(get_model(name)).parameters.items() if type(p.default) in (int, float, tuple)}
    for key in (*numbers, "item_rows"):
        with pytest.raises(ConfigError, match=f"model '{name}': {key} = "):
            build(name, schema, {key: "abc"})


ASKED: dict[str, Callable[[], Any]] = {
    "lr": lambda: How(lr="fast"),  # type: ignore[arg-type]
    "epochs": lambda: How.of({"epochs": 2.5}),
    "dropout": lambda: make_encoder("sasrec", 8, {"dropout": "much"}),
    "seed": lambda: sources.load("world", seed="seven"),
    "valid": lambda: make_split(make_world(2, users=30, items=20, events=200, seed=0).events, "random", {"valid": "some"}),
}


@pytest.mark.parametrize("name", ASKED)
def test_whoever_is_asked_refuses(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .*\n  expected: a (whole )?number"):
        ASKED[name]()


def test_a_split_s_unknown_argument_is_told() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no argument 'valud'.*did you mean 'valid'"):
        make_split(make_world(2, users=30, items=20, events=200, seed=0).events, "random", {"valud": 0.1})


def test_a_recipe_refuses_before_anything_is_trained_and_takes_shared_rows(tmp_path: Path) -> None:
    world = make_world(2, users=60, items=40, events=900, seed=0)

    def run(**args: Any) -> Any:
        fit = {"epochs": 1, "progress": False, "device": "cpu", "threads": 1}
        line = ModelSpec("dnn", args=args, control=None)
        return compare(Recipe("one", "world", (line,), task="ctr", seeds=(0,), fit=fit), tmp_path / "out", events=world.events)

    with pytest.raises(ConfigError, match="model 'dnn': hidden = 'wide'"):
        run(hidden="wide")
    assert not (tmp_path / "out" / "parts").exists()
    run(hidden=[8], item_rows=40)


@pytest.mark.parametrize(
    ("args", "came"),
    [
        ({"dim": 0}, "dim = 0"),
        ({"dim": -2}, "dim = -2"),
        ({"dim": 0, "id_dropout": 0.0}, "dim = 0"),
        ({"hidden": [4, 0]}, r"hidden = \[4, 0\]"),
    ],
)
def test_nothing_is_built_of_no_width(args: Any, came: str, tmp_path: Path) -> None:
    events = make_world(2, users=30, items=20, events=200, seed=0).events
    sized = encode(events, make_split(events), tmp_path / "data").schema
    with pytest.raises(ConfigError, match=came):
        build("dnn", sized, args)


@pytest.mark.parametrize("name", ["weight_decay", "table_decay", "temperature", "checkpoint_minutes", "seed"])
def test_what_counts_or_weighs_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = -1\n  expected: 0 or more"):
        How.of({name: -1})
