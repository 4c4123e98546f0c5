"""Quality by number of events, three ways."""

from __future__ import annotations

import polars as pl
import pytest

from isthmus.adaptation_curve import WAYS, adaptation_curve, curve_insight, summary
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError
from isthmus.how import How

HOW = How(epochs=8, batch_size=256, lr=0.01, patience=None, device="cpu", threads=1, progress=False)


def test_a_related_domain_is_learnt_from_few_events() -> None:
    world = make_world(3, users=300, items=100, events=(8000, 8000, 3000), relatedness=0.95, item_overlap=0.9, user_overlap=0.8, seed=0)
    split = global_time(world.events, valid=0.1, test=0.2)
    frame = adaptation_curve(world.events, split, "domain2", [100, 1500], "star", how=HOW, seeds=[0], say=lambda line: None)
    assert frame.columns == ["events", "way", "seed", "metric", "value", "seconds"]
    assert frame["way"].to_list() == [*WAYS] * 2
    table = summary(frame)
    assert table["events"].to_list() == [100, 1500]
    assert (table["adapted"] > table["from scratch"] + 0.03).all()
    drawn = curve_insight(frame, "domain2")
    assert {row["way"] for row in drawn.rows} == set(WAYS)
    with pytest.raises(ConfigError, match="its training events"):
        adaptation_curve(world.events, split, "domain2", [10**6], "star", how=HOW)


def _three() -> list[tuple[str, float, float]]:
    return [("adapted", 0.68, 1.0), ("from scratch", 0.6, 2.0), ("retrained", 0.7, 8.0)]


def test_shares_by_hand() -> None:
    rows = [(10, way, seed, "auc", value, seconds) for seed in (0, 1) for way, value, seconds in _three()]
    rows[0] = (10, "adapted", 0, "auc", 0.70, 3.0)
    frame = pl.DataFrame(rows, ["events", "way", "seed", "metric", "value", "seconds"], orient="row")
    (line,) = summary(frame).to_dicts()
    assert line["adapted"] == pytest.approx(0.69)
    assert line["share"] == pytest.approx(0.9)
    assert line["time"] == pytest.approx(0.25)
