"""The ledger on worlds whose answer is known, door to door: real models, trained on related and on unrelated domains."""

from pathlib import Path

import polars as pl
import pytest
from scipy import stats

from isthmus.data.synthetic import World, make_world
from isthmus.experiment import ModelSpec, Recipe, compare

FIT = {"epochs": 6, "batch_size": 256, "lr": 0.01, "patience": 2, "threads": 1, "progress": False}
POPULARITY = (ModelSpec("popularity", control=None), ModelSpec("popularity", "across", {"across": True}, control="popularity"))
DNN = (ModelSpec("popularity", control=None), ModelSpec("dnn", args={"dim": 4, "hidden": [8], "id_dropout": 0.1}))


def verdicts(folder: Path, world: World, models: tuple[ModelSpec, ...], seeds: int) -> dict[str, str]:
    """What the ledger says of the shared model against its control, by domain."""
    split = {"valid": 0.15, "test": 0.3}
    recipe = Recipe(
        "w", "world", models, split="global_time", split_args=split, seeds=tuple(range(seeds)), fit=FIT, metrics=("auc",), resamples=300
    )
    book = compare(recipe, folder, events=world.events, say=lambda _: None).ledger
    found = book.frame.filter((pl.col("against") == "control") & (pl.col("domain") != "all"))
    return dict(zip(found["domain"], found["verdict"], strict=True))


def unrelated(seed: int) -> World:
    """Mostly the same users and all the same items, whose tastes in one domain say nothing of the other."""
    names, users, events = ("large", "small"), (200, 100), (5000, 900)
    return make_world(names, users=users, items=60, events=events, relatedness=0.0, user_overlap=0.8, item_overlap=1.0, seed=seed)


def related(seed: int) -> World:
    """The same users, items and tastes in both domains; the small one has few events."""
    names, events = ("large", "small"), (12_000, 1600)
    return make_world(names, users=200, items=60, events=events, relatedness=1.0, user_overlap=1.0, item_overlap=1.0, seed=seed)


def most(rate: float, worlds: int) -> int:
    """The largest count that chance explains, at 99 %."""
    return int(stats.binom.ppf(0.99, worlds, rate))


@pytest.mark.slow
def test_unrelated_item_popularity_is_never_said_to_help(tmp_path: Path) -> None:
    worlds = 60
    helped = sum("helps" in verdicts(tmp_path / str(seed), unrelated(seed), POPULARITY, 1).values() for seed in range(worlds))
    assert helped <= most(0.05, worlds), helped


@pytest.mark.slow
def test_a_network_on_unrelated_domains_is_not_said_to_help_more_often_than_stated(tmp_path: Path) -> None:
    worlds = 20
    helped = sum("helps" in verdicts(tmp_path / str(seed), unrelated(100 + seed), DNN, 3).values() for seed in range(worlds))
    assert helped <= most(0.05, worlds), helped


@pytest.mark.slow
def test_related_domains_help_the_small_one(tmp_path: Path) -> None:
    worlds = 3
    models = (
        ModelSpec("popularity", control=None),
        ModelSpec("dnn", args={"dim": 16, "hidden": [64]}, fit={"batch_size": 512, "epochs": 8, "patience": 8}),
    )
    helped = sum(verdicts(tmp_path / str(seed), related(seed), models, 5)["small"] == "helps" for seed in range(worlds))
    assert helped == worlds, helped
