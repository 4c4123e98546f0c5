"""ADI on made-up worlds: what its insights say, and that two domains of one taste learn from each other."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.synthetic import make_world
from isthmus.fit import How, fit
from isthmus.layers.from_data import fill
from isthmus.measure import measure
from isthmus.model import Model
from isthmus.models.adi import ADI
from isthmus.run import build
from isthmus.score import score
from isthmus.task import get_task

RETRIEVAL = get_task("retrieval")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A large and a small market; the same items, users of their own, one taste."""
    world = make_world(
        ("large", "small"),
        users=(500, 120),
        items=60,
        events=(6000, 450),
        label="implicit",
        relatedness=1.0,
        user_overlap=0.0,
        item_overlap=1.0,
        signal=2.0,
        features=True,
        seed=4,
    )
    return encode(world.events, split.global_time(world.events, valid=0.1, test=0.2), tmp_path_factory.mktemp("world") / "data")


def of_domain(dataset: Dataset, model: ADI, domain: int) -> Batch:
    """Every training row of a domain."""
    plan = Plan(batch_size=10_000, domains=(domain,), cross=True)
    return next(batches(dataset, "train", model.needs, plan, shuffle=False, prefetch=0))


@pytest.mark.parametrize(("adaptation", "placement"), [("se", "per_domain"), ("attention", "one"), ("linear", "per_domain")])
def test_insights_are_mean_adaptation_weights(dataset: Dataset, adaptation: str, placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.models.adi.SAMPLE", 10_000)  # all rows, so that the mean has no chance in it
    model = build("adi", dataset.schema, {"dim": 8, "adaptation": adaptation, "placement": placement}, seed=0)
    assert isinstance(model, ADI)
    fill(model, dataset)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    looks = {look.name: look for look in model.train().insights(dataset)}
    assert model.training
    assert looks.keys() == {"adaptation_user", "adaptation_item"}
    model.eval()
    past = ("history id", "history category", "elsewhere id", "elsewhere category")
    for side, tower, names in (
        ("user", model.towers.user_tower, ("id", "segment", "domain", *past)),
        ("item", model.towers.item_tower, ("id", "category", "domain")),
    ):
        w = {k.removeprefix("adapt."): v.numpy() for k, v in tower.state_dict().items()}
        look = looks[f"adaptation_{side}"]
        assert (look.kind, look.x, look.y, look.value) == ("heatmap", "field", "domain", "weight")
        assert [(row["domain"], row["field"]) for row in look.rows] == [(d, name) for d in ("large", "small") for name in names]
        expected = []
        for d in range(2):
            batch, copy = of_domain(dataset, model, d), d if placement == "per_domain" else 0
            towers = model.towers
            with torch.no_grad():
                fields = (towers.user_fields(batch) if side == "user" else towers.item_fields(batch.item[:, 0], batch.domain)).numpy()
            total = np.zeros(len(names))
            for row in fields:
                if adaptation == "linear":
                    total += w["weight"][copy].mean(1)
                elif adaptation == "attention":
                    total += [1 / (1 + np.exp(-(q @ f))) for q, f in zip(w["query"][copy], row, strict=True)]
                else:
                    low = np.maximum(w["squeeze.weight"][copy] @ row.mean(1) + w["squeeze.bias"][copy], 0)
                    total += w["excite.weight"][copy] @ low + w["excite.bias"][copy]
            expected += list(total / len(fields))
        assert [row["weight"] for row in look.rows] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.std(expected) > 1e-2


def test_no_adaptation_no_insight(dataset: Dataset) -> None:
    assert build("adi", dataset.schema, {"dim": 4, "adaptation": "none"}, seed=0).insights(dataset) == []


def found(model: Model, dataset: Dataset, how: How) -> float:
    """Recall@10 in the small domain, the whole catalogue ranked."""
    table = measure(score(model, dataset, "test", task=RETRIEVAL, how=how, domains=[1]), ["recall@10"], resamples=0)
    return float(table.filter((pl.col("domain") == "small") & (pl.col("state") == "all"))["value"].item())


def test_a_small_domain_learns_from_a_large_one_of_the_same_taste(dataset: Dataset) -> None:
    """The users have nothing to do with each other: what passes from one domain to the other is what items are like."""
    results: dict[str, float] = {}
    for name, domains in (("adi", None), ("adi alone", (1,)), ("popularity", None)):
        how = How(epochs=12, batch_size=256, lr=3e-3, device="cpu", threads=1, progress=False, seed=1, domains=domains, targets=(1,))
        model = build(name.split()[0], dataset.schema, {"dim": 16} if "adi" in name else {}, seed=1)
        results[name] = found(fit(model, dataset, RETRIEVAL, how).model, dataset, how)
    print(results)
    assert results["adi"] > results["adi alone"] + 0.05
    assert results["adi"] > results["popularity"] + 0.1
