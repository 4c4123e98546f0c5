"""Recipes: strict TOML, errors that name the nearest right key."""

import tomllib
from pathlib import Path

import pytest

from isthmus.config import CELL, TOP, parse_recipe, published, read_published, read_recipe, recipe_folder
from isthmus.errors import ConfigError
from isthmus.how import How
from isthmus.models import settings
from isthmus.recipe import Paper

GOOD = """
name = "x"
task = "retrieval"
seeds = [3, 4]
metrics = ["ndcg@10"]

[data]
source = "table"
path = "events.parquet"
user = "uid"

[split]
rule = "global_time"
test = 0.2

[fit]
epochs = 7

[[models]]
name = "popularity"
control = "none"

[[models]]
name = "mmoe"
label = "big mmoe"
experts = 8
fit.lr = 2e-3
grid.dropout = [0.0, 0.2]
alone.epochs = 3
grid.fit.epochs = [2, 4]
per_target = true

[paper]
title = "Somebody, Table 3"
metric = "ndcg@10"
note = "private data"

[paper.values."big mmoe (single-domain)"]
uk = 0.25
all = 1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert (recipe.name, recipe.task, recipe.seeds, recipe.metrics) == ("x", "retrieval", (3, 4), ("ndcg@10",))
    assert recipe.source_args == {"path": str(tmp_path / "events.parquet"), "user": "uid"}
    assert (recipe.split, recipe.split_args, recipe.fit) == ("global_time", {"test": 0.2}, {"epochs": 7})
    plain, big = recipe.models
    assert (plain.label, plain.control) == ("popularity", None)
    assert (big.label, big.args, big.fit) == ("big mmoe", {"experts": 8}, {"lr": 2e-3})
    assert (big.training("per-target"), big.training("single-domain")) == ({"lr": 2e-3}, {"lr": 2e-3, "epochs": 3})
    assert big.grid == {"dropout": [0.0, 0.2], "fit.epochs": [2, 4]}
    assert (big.control, big.per_target, plain.per_target) == ("single-domain", True, False)
    assert recipe.paper == Paper("Somebody, Table 3", "ndcg@10", {"big mmoe (single-domain)": {"uk": 0.25, "all": 1}}, "private data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds", "sedes"), "did you mean 'seeds'"),
        (('task = "retrieval"', "task = 3"), "task = 3"),
        (("seeds = [3, 4]", "seeds = [-1]"), "whole numbers"),
        (("seeds = [3, 4]", "seeds = [3, 4]\nresamples = 99"), "resamples = 99"),
        (('source = "table"', ""), "names no source"),
        (('label = "big mmoe"', 'label = "popularity"'), "more than once"),
        (('label = "big mmoe"', 'control = "nobody"'), "has control 'nobody'"),
        (("grid.dropout = [0.0, 0.2]", "grid.dropout = 0.1"), "a list of values"),
        (("grid.fit.epochs = [2, 4]", "grid.fit.epochs = 3"), "a list of values"),
        (('path = "events.parquet"', 'path = "$ISTHMUS_NO_SUCH_VARIABLE/e.parquet"'), "ISTHMUS_NO_SUCH_VARIABLE"),
        (("[data]", "[data"), "is not TOML"),
        (("per_target = true", "per_target = 1"), "true or false"),
        (("per_target = true", 'control = "popularity"'), "no other line trains on each domain alone"),
        (("alone.epochs = 3", "alone = 3"), "alone"),
        (('title = "Somebody, Table 3"', ""), "title = None"),
        (('note = "private data"', 'notes = "private data"'), "did you mean 'note'"),
        (('metric = "ndcg@10"', 'metric = "ndgc@10"'), "did you mean 'ndcg'"),
        (('metric = "ndcg@10"', 'metric = "recall@10"'), "did you mean|use one of: ndcg@10"),
        (('"big mmoe (single-domain)"]', '"bigmmoe"]'), "did you mean 'big mmoe'"),
        (("uk = 0.25", 'uk = "0.25"'), "'0.25'"),
        (('[paper.values."big mmoe (single-domain)"]', "[paper.values]"), "a table of domains for each label"),
    ],
)
def test_refusals(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_recipe(write(tmp_path, GOOD.replace(*change)))


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        read_recipe(tmp_path / "no.toml")


def test_no_models_and_no_seeds() -> None:
    with pytest.raises(ConfigError, match="without models"):
        parse_recipe({"data": {"source": "table"}})
    with pytest.raises(ConfigError, match="without seeds"):
        parse_recipe({"data": {"source": "table"}, "models": [{"name": "dnn"}], "seeds": []})


RECIPES = sorted(recipe_folder().glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_the_recipes_that_come_along_are_right(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    for spec in recipe.models:
        assert set(spec.args) | {key for key in spec.grid if not key.startswith("fit.")} <= set(settings(spec.name)), spec.label


def test_the_recipe_in_the_docs_is_right_and_has_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    raws = [tomllib.loads(block.split("```")[0]) for block in page.split("```toml")[1:]]
    assert {key for raw in raws for key in raw} == set(TOP)
    for recipe in map(parse_recipe, raws):
        for spec in recipe.models:
            assert set(spec.args) | {key for key in spec.grid if not key.startswith("fit.")} <= set(settings(spec.name)), spec.label
            How.of({**recipe.fit, **spec.fit})
    models, cells = ({key for raw in raws for one in raw.get(kind, []) for key in one} for kind in ("models", "cells"))
    assert {"per_target", "control", "label", "against", "alone"} <= models
    assert cells == set(CELL)


def test_recipes_that_reproduce_a_paper_are_listed_and_found_by_name(tmp_path: Path) -> None:
    assert set(published()) >= {"adi_table3", "adi_ablations_xmrec", "adi_ablations_movielens"}
    assert "xmrec" not in published()
    table = read_published("adi_table3")
    assert table.paper is not None
    assert table.paper.values["ADI"] == {"s1": 0.266, "s2": 0.614, "s3": 0.519, "all": 0.466}
    with pytest.raises(ConfigError, match="did you mean 'adi_table3'"):
        read_published("adi_tabel3")
    with pytest.raises(ConfigError, match=r"has no \[paper\]"):
        read_published("xmrec")
    (tmp_path / "x.toml").write_text("a = [")
    with pytest.raises(ConfigError, match="is not TOML"):
        published(tmp_path)


def test_the_printed_averages_are_those_of_the_values() -> None:
    """A slip of the pen in a table of 28 numbers would show here; the paper rounds to three digits."""
    table = read_published("adi_table3")
    assert table.paper is not None
    for label, values in table.paper.values.items():
        assert values["all"] == pytest.approx((values["s1"] + values["s2"] + values["s3"]) / 3, abs=1.1e-3), label
