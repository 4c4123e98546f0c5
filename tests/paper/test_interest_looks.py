"""What DADIN and MiNet show of themselves: weights of interests by label, and how far domains lie apart."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from isthmus.data.batches import batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.order import Plan
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.insight import Insight
from isthmus.layers.alignment import a_distance
from isthmus.layers.from_data import fill
from isthmus.models.dadin import DADIN
from isthmus.models.minet import MiNet
from isthmus.report.looks import look


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    events = make_world(("films", "books"), users=60, items=40, events=2000).events
    return encode(events, global_time(events), tmp_path_factory.mktemp("looks") / "data")


def built(model: type[DADIN] | type[MiNet], data: Dataset, **args: object) -> DADIN | MiNet:
    torch.manual_seed(3)
    found = model(data.schema, dim=4, **args)  # type: ignore[arg-type]
    fill(found, data)
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return found


def of(looks: list[Insight]) -> dict[str, Insight]:
    return {insight.name: insight for insight in looks}


@pytest.mark.parametrize("model", [DADIN, MiNet])
def test_weights_of_interests_are_means_over_validation_rows_by_label(data: Dataset, model: type[DADIN] | type[MiNet]) -> None:
    found = built(model, data)
    shown = pl.DataFrame(of(found.insights(data))["interests"].rows)
    assert found.training, "the mode before comes back"
    assert shown["interest"].unique().sort().to_list() == ["elsewhere", "here", "profile"]
    found.eval()
    for domain, name in enumerate(data.schema.domain_names):
        plan = Plan(batch_size=10_000, domains=(domain,), cross=True)
        (batch,) = batches(data, "valid", found.needs, plan, prefetch=0)
        assert found.attention is not None
        assert batch.label is not None
        with torch.no_grad():
            weights = found.attention.weights(found.interests(batch).flatten(0, 1))
        for label, words in ((1, "clicked"), (0, "not clicked")):
            mine = shown.filter(rows=f"{name}, {words}")["weight"].to_list()
            assert mine == pytest.approx(weights[batch.label.flatten() == label].mean(0).tolist(), rel=1e-4)


def test_dadin_shows_how_far_domains_lie_apart_before_and_after(data: Dataset) -> None:
    found = built(DADIN, data)
    assert isinstance(found, DADIN)
    looks = of(found.insights(data))
    assert list(looks) == ["interests", "a_distance", "h_spec", "h_DA"]
    with torch.no_grad():
        sides = []
        for domain in (0, 1):
            plan = Plan(batch_size=10_000, domains=(domain,), cross=True)
            (batch,) = batches(data, "valid", found.needs, plan, prefetch=0)
            sides.append(found.eval().features(batch))
    shown = {row["features"]: row["distance"] for row in looks["a_distance"].rows}
    for number, layer in enumerate(("h_spec", "h_DA")):
        assert shown[layer] == pytest.approx(a_distance(sides[0][number], sides[1][number]), abs=1e-6)  # type: ignore[arg-type]
    assert {row["rows"] for row in looks["h_DA"].rows} == {f"{d}, {y}" for d in ("films", "books") for y in ("clicked", "not clicked")}
    assert all("<svg" in look(insight) for insight in looks.values())


def test_what_is_switched_off_is_not_shown(data: Dataset) -> None:
    assert list(of(built(DADIN, data, domain_agnostic=False).insights(data))) == ["interests", "a_distance", "h_spec"]
    assert "interests" not in of(built(DADIN, data, interest_attention=False).insights(data))
    assert built(MiNet, data, interest_attention=False).insights(data) == []
