"""Door to door: a table of events -> split -> encode -> fit -> score -> measure -> ledger, in a world whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.split import TEST, Split, global_time
from isthmus.data.synthetic import World, make_world
from isthmus.fit import How, build, fit, load_run
from isthmus.ledger import Entry, ledger
from isthmus.measure import measure
from isthmus.score import Scores, score
from isthmus.task import get_task

CTR = get_task("ctr")


@pytest.fixture(scope="module")
def world() -> World:
    """Two domains with the same tastes; the second one is ten times smaller."""
    shared = {"user_overlap": 1.0, "item_overlap": 1.0, "relatedness": 1.0}
    return make_world(["large", "small"], users=[200, 200], items=[60, 60], events=[16_000, 1_600], **shared, seed=3)


@pytest.fixture(scope="module")
def events(world: World) -> Events:
    """The world's events, through the door that a user's own table takes."""
    frame = world.events.frame()
    return read_events(
        frame,
        user="user",
        item="item",
        domain="domain",
        time="time",
        label="label",
        items=world.events.items,
        item_id="id",
        item_fields=["category"],
        users=world.events.users,
        user_id="id",
        user_fields=["segment"],
    )


@pytest.fixture(scope="module")
def split(events: Events) -> Split:
    return global_time(events)


@pytest.fixture(scope="module")
def data(events: Events, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("walk") / "data"
    encode(events, split, path)
    return Dataset.load(path)


Both = tuple[Scores, Scores]  # of validation and of test


def run(name: str, args: dict, data: Dataset, folder: Path, seed: int = 0, domains: tuple[int, ...] | None = None) -> Both:
    """Fits, reads the run back from its folder, and scores with what was read."""
    how = How(epochs=8, batch_size=512, lr=1e-2, seed=seed, device="cpu", threads=1, progress=False, domains=domains)
    fit(build(name, data.schema, args, seed=seed), data, CTR, how, folder)
    back = load_run(folder)
    valid, test = (score(back.model, data, part, task=CTR, how=back.how, domains=domains) for part in ("valid", "test"))
    return valid, test


@pytest.fixture(scope="module")
def scores(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Both]]:
    """Per seed: a network on all domains, the same on each domain alone, and popularity."""
    root, network = tmp_path_factory.mktemp("runs"), {"dim": 16, "hidden": (64,)}
    found: dict[str, dict[int, Both]] = {"dnn": {}, "dnn alone": {}, "popularity": {0: run("popularity", {}, data, root / "popularity")}}
    for seed in range(4):
        found["dnn"][seed] = run("dnn", network, data, root / f"dnn-{seed}", seed)
        alone = [run("dnn", network, data, root / f"alone-{seed}-{d}", seed, (d,)) for d in (0, 1)]
        valid, test = (Scores.concat([pair[part] for pair in alone]) for part in (0, 1))
        found["dnn alone"][seed] = (valid, test)
    return found


def auc(table: pl.DataFrame, domain: str) -> float:
    return table.filter(metric="auc", domain=domain, state="all")["value"].item()


def test_every_test_row_is_scored_once(split: Split, events: Events, scores: dict[str, dict[int, Both]]) -> None:
    wanted = np.flatnonzero(split.part == TEST)
    assert events.label is not None
    for seeds in scores.values():
        frame = seeds[0][1].frame.sort("row")
        assert frame["row"].to_list() == wanted.tolist()
        assert frame["label"].to_list() == events.label[wanted].tolist()
        assert frame["domain"].to_list() == [events.schema.domain_names[d] for d in events.domain[wanted]]


def test_models_come_near_the_best_reachable_and_do_not_pass_it(
    world: World, events: Events, split: Split, scores: dict[str, dict[int, Both]]
) -> None:
    """The truth ranks best; luck on a finite test part may lift a model a little, never far."""
    table = {name: measure(seeds[0][1], ("auc",), resamples=0) for name, seeds in scores.items()}
    for d, domain in enumerate(events.schema.domain_names):
        best = world.best_auc((split.part == TEST) & (events.domain == d))
        network = auc(table["dnn"], domain)
        assert best - 0.1 < network < best + 0.02
        assert auc(table["popularity"], domain) < network - 0.1
    assert auc(table["popularity"], "large") > 0.55
    assert auc(table["dnn alone"], "small") < auc(table["dnn"], "small") - 0.1  # 1,300 rows are too few to learn from


def test_the_ledger_proves_that_sharing_helped_the_small_domain(scores: dict[str, dict[int, Both]]) -> None:
    entries = [
        Entry(
            name,
            "dnn alone" if name == "dnn" else None,
            name == "popularity",
            {seed: test for seed, (_, test) in seeds.items()},
            {seed: valid for seed, (valid, _) in seeds.items()},
        )
        for name, seeds in scores.items()
    ]
    book = ledger(entries, "auc", resamples=400).frame
    verdict = {row["domain"]: row["verdict"] for row in book.filter(model="dnn", against="control").iter_rows(named=True)}
    assert verdict["small"] == "helps"
    assert verdict["large"] != "hurts"
    over_popularity = book.filter(model="dnn", against="shallow")
    assert set(over_popularity["verdict"]) == {"helps"}
