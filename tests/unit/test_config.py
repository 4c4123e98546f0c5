"""Recipes: strict TOML, errors that name the nearest right key."""

from pathlib import Path

import pytest

from isthmus.config import parse_recipe, read_recipe
from isthmus.errors import ConfigError

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
    assert (big.label, big.args, big.fit, big.grid) == ("big mmoe", {"experts": 8}, {"lr": 2e-3}, {"dropout": [0.0, 0.2]})
    assert big.control == "single-domain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds", "sedes"), "did you mean 'seeds'"),
        (('task = "retrieval"', "task = 3"), "task = 3"),
        (("seeds = [3, 4]", "seeds = [-1]"), "whole numbers"),
        (('source = "table"', ""), "names no source"),
        (('label = "big mmoe"', 'label = "popularity"'), "more than once"),
        (('label = "big mmoe"', 'control = "nobody"'), "has control 'nobody'"),
        (("grid.dropout = [0.0, 0.2]", "grid.dropout = 0.1"), "a list of values"),
        (('path = "events.parquet"', 'path = "$ISTHMUS_NO_SUCH_VARIABLE/e.parquet"'), "ISTHMUS_NO_SUCH_VARIABLE"),
        (("[data]", "[data"), "is not TOML"),
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
