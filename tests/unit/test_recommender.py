"""The three-line face: frames of any kind, files, recommendations, the ledger."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus import Recommender
from isthmus.data.synthetic import make_world
from isthmus.errors import ColumnError, ConfigError

COLUMNS = {"user": "uid", "item": "iid", "domain": "market", "label": "click", "time": "ts"}
FIT = {"epochs": 2, "batch_size": 256, "lr": 0.01, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    world = make_world(2, users=150, items=60, events=2500, relatedness=0.9, seed=5)
    return world.events.frame().rename({canonical: own for canonical, own in COLUMNS.items() if canonical != own})


@pytest.fixture(scope="module")
def fitted(frame: pl.DataFrame) -> Recommender:
    return Recommender("mmoe", fit=FIT, dim=4, hidden=[8], tower=[4]).fit(frame, **COLUMNS)


def test_recommendations_are_the_domain_s_unseen_items_best_first(fitted: Recommender, frame: pl.DataFrame) -> None:
    user, domain = frame["uid"][0], frame["market"][0]
    found = fitted.recommend(user, domain, k=10)
    assert found.columns == ["item", "score"]
    assert len(found) == 10
    assert found["score"].is_sorted(descending=True)
    mine = frame.filter((pl.col("uid") == user) & (pl.col("market") == domain) & (pl.col("click") == 1))["iid"]
    assert not set(found["item"]) & set(mine)
    assert set(found["item"]) <= set(frame.filter(pl.col("market") == domain)["iid"])


def test_an_unknown_user_and_chosen_items(fitted: Recommender, frame: pl.DataFrame) -> None:
    domain = frame["market"][0]
    stranger = fitted.recommend("nobody", domain, k=5)
    assert len(stranger) == 5
    assert np.isfinite(stranger["score"].to_numpy()).all()
    items = [frame["iid"][0], "an item that nobody has seen"]
    ranked = fitted.recommend(frame["uid"][0], domain, items=items)
    assert sorted(ranked["item"]) == sorted(items)


def test_a_retriever_takes_the_task_that_it_can_do(frame: pl.DataFrame) -> None:
    rec = Recommender("adi", fit=FIT, dim=4, hidden=[4]).fit(frame, **COLUMNS)
    assert rec.task is not None
    assert rec.task.name == "retrieval"
    found = rec.recommend(frame["uid"][0], frame["market"][0], k=5)
    assert len(found) == 5
    assert found["score"].is_sorted(descending=True)


def test_pandas_and_files_give_the_same_model(frame: pl.DataFrame, tmp_path: Path) -> None:
    frame.write_parquet(tmp_path / "events.parquet")
    user, domain = frame["uid"][0], frame["market"][0]
    answers = [
        Recommender("dnn", fit=FIT, dim=4, hidden=[8]).fit(source, **COLUMNS).recommend(user, domain)
        for source in (frame, frame.to_pandas(), tmp_path / "events.parquet")
    ]
    assert answers[0].equals(answers[1])
    assert answers[0].equals(answers[2])


def test_the_ledger_compares_with_controls_and_shallow_models(fitted: Recommender) -> None:
    book = fitted.ledger(seeds=(0, 1))
    found = set(book.frame.filter(pl.col("model") == "mmoe").select("against", "reference").rows())
    assert ("control", "mmoe (single-domain)") in found
    assert any(against == "shallow" for against, _ in found)


def test_wrong_use(fitted: Recommender, frame: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mmoe'"):
        Recommender("mmoee")
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        Recommender("mmoe", fit={"epoch": 1})
    with pytest.raises(ConfigError, match="learnt nothing yet"):
        Recommender("mmoe").recommend("u", "d")
    with pytest.raises(ConfigError, match="unknown domain"):
        fitted.recommend(frame["uid"][0], "nowhere")
    with pytest.raises(ConfigError, match="k = 0"):
        fitted.recommend(frame["uid"][0], frame["market"][0], k=0)
    with pytest.raises(ColumnError, match="did you mean 'uid'"):
        Recommender("dnn").fit(frame, **(COLUMNS | {"user": "uidd"}))


def test_a_second_fit_replaces_the_first(frame: pl.DataFrame, tmp_path: Path) -> None:
    rec = Recommender("popularity", folder=tmp_path, fit={"progress": False})
    for part in (frame, frame.filter(pl.col("iid") != frame["iid"][0])):
        rec.fit(part, **COLUMNS)
    assert frame["iid"][0] not in set(rec.recommend("nobody", frame["market"][0], k=100)["item"])


def test_adapting_takes_it_to_a_new_domain_and_leaves_the_old_ones(frame: pl.DataFrame, tmp_path: Path) -> None:
    old, new = frame["market"].unique(maintain_order=True)
    rec = Recommender("mmoe", folder=tmp_path, fit=FIT, dim=4, hidden=[8], tower=[4]).fit(frame.filter(market=old), **COLUMNS)
    user = frame.filter(market=old)["uid"][0]
    before = rec.recommend(user, old, k=5)
    with pytest.raises(ConfigError, match=new):
        rec.recommend(user, new)
    adapted = rec.adapt(frame.rename({"ts": "when"}), time="when", fit={"epochs": 1})
    assert adapted.domains == (new,)
    assert len(adapted.run.log) == 1
    assert [effect.change for effect in adapted.effects] == [0.0]
    assert rec.recommend(user, old, k=5).equals(before)
    assert len(rec.recommend(user, new, k=5)) == 5
    with pytest.raises(ConfigError, match="no domain beside"):
        rec.adapt(frame)
    with pytest.raises(ConfigError, match="learnt nothing"):
        Recommender().adapt(frame)
    assert rec.fit(frame, **COLUMNS).recommend(user, new, k=5).height == 5  # a new fit starts afresh
    assert not (tmp_path / "adapted").exists()
