"""The ledger on worlds whose answer is known, door to door: real models, trained on related and on unrelated domains."""

from pathlib import Path

import polars as pl
import pytest
from scipy import stats

from isthmus.data.synthetic import make_world
from isthmus.experiment import ModelSpec, Recipe, compare

FIT = {"epochs": 6, "batch_size": 256, "lr": 0.01, "patience": 2, "threads": 1, "progress": False}
POPULARITY = (ModelSpec("popularity", control=None), ModelSpec("popularity", "across", {"across": True}, control="popularity"))
DNN = (ModelSpec("popularity", control=None), ModelSpec("dnn", args={"dim": 4, "hidden": [8], "id_dropout": 0.1}))


def verdicts(
    tmp_path: Path, relatedness: float, seed: int, models: tuple[ModelSpec, ...], seeds: int, events: tuple[int, int] = (5000, 900)
) -> dict[str, str]:
    """What the ledger says of the shared model against its control, by domain."""
    world = make_world(
        ("large", "small"),
        users=(200, 100),
        items=(60, 60),
        events=events,
        relatedness=relatedness,
        user_overlap=0.8,
        item_overlap=1.0,
        seed=seed,
    )
    split = {"valid": 0.15, "test": 0.3}
    recipe = Recipe(
        "w", "world", models, split="global_time", split_args=split, seeds=tuple(range(seeds)), fit=FIT, metrics=("auc",), resamples=300
    )
    book = compare(recipe, tmp_path / str(seed), events=world.events, say=lambda _: None).ledger
    found = book.frame.filter((pl.col("against") == "control") & (pl.col("domain") != "all"))
    return dict(zip(found["domain"], found["verdict"], strict=True))


def most(rate: float, worlds: int) -> int:
    """The largest count that chance explains, at 99 %."""
    return int(stats.binom.ppf(0.99, worlds, rate))


@pytest.mark.slow
def test_unrelated_item_popularity_is_never_said_to_help(tmp_path: Path) -> None:
    worlds = 60
    helped = sum("helps" in verdicts(tmp_path, 0.0, seed, POPULARITY, 1).values() for seed in range(worlds))
    assert helped <= most(0.05, worlds), helped


@pytest.mark.slow
def test_a_network_on_unrelated_domains_is_not_said_to_help_more_often_than_stated(tmp_path: Path) -> None:
    worlds = 20
    helped = sum("helps" in verdicts(tmp_path, 0.0, 100 + seed, DNN, 3).values() for seed in range(worlds))
    assert helped <= most(0.05, worlds), helped


@pytest.mark.slow
def test_related_domains_help_the_small_one(tmp_path: Path) -> None:
    worlds = 4
    helped = sum(verdicts(tmp_path, 1.0, seed, DNN, 5, (12_000, 1500))["small"] == "helps" for seed in range(worlds))
    assert helped >= 3, helped
