"""A made-up world with a known bridge: tastes in one domain are those in the other, turned by one rotation for all users."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.fit import Run, fit
from isthmus.how import How
from isthmus.model import Model
from isthmus.models.emcdr import EMCDR
from isthmus.models.ptupcdr import PTUPCDR
from isthmus.run import build
from isthmus.score import score
from isthmus.task import get_task


@dataclass(frozen=True)
class BridgeWorld:
    """Ratings in two domains; the second domain's tastes are the first one's, turned by one rotation for all users.

    Every user has training events in ``source``.  The first 40 have none in ``target``, but validation or test events there.

    Attributes:
        dataset: encoded.
        how: settings that suffice to learn it.
    """

    dataset: Dataset
    how: How

    def correlation(self, model: Model) -> float:
        """Of scores and truth (but for noise of a tenth of its deviation) over the test rows, all of users new in the target."""
        frame = score(model, self.dataset, "test", task=get_task("rating"), how=self.how).frame
        assert set(frame["state"]) == {"new"}
        return float(np.corrcoef(frame["score"], frame["label"])[0, 1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> BridgeWorld:
    users, items, cold, width, each = 240, 50, 40, 4, 25
    rng = np.random.default_rng(0)
    taste, rotation = rng.standard_normal((users, width)), np.linalg.qr(rng.standard_normal((width, width)))[0]
    user, parts = np.repeat(np.arange(users), each), []
    for name, tastes in (("source", taste), ("target", taste @ rotation.T)):
        vectors = rng.standard_normal((items, width)) / 2
        item = np.concatenate([rng.permutation(items)[:each] for _ in range(users)])
        part = np.where((name == "target") & (user < cold), np.where(user < cold // 4, "valid", "test"), "train")
        columns = {
            "user": [f"u{u}" for u in user],
            "item": [f"{name} {i}" for i in item],
            "domain": [name] * len(user),
            "time": np.where(part == "train", rng.integers(0, 1000, len(user)), 2000),
            "label": 3 + (tastes[user] * vectors[item]).sum(1) + 0.1 * rng.standard_normal(len(user)),
            "part": part,
        }
        parts.append(pl.DataFrame(columns))
    frame = pl.concat(parts)
    events = read_events(frame.drop("part"), user="user", item="item", domain="domain", time="time", label="label")
    dataset = encode(events, split.given(events, frame["part"]), tmp_path_factory.mktemp("bridge") / "data")
    how = How(epochs=20, batch_size=512, lr=2e-2, history_length=20, device="cpu", threads=1, progress=False)
    return BridgeWorld(dataset, how)


def trained(world: BridgeWorld, name: str, stages: int | None = None, **settings: Any) -> Run:
    """The first stages only, or all."""
    model = build(name, world.dataset.schema, {"dim": 4, **settings}, seed=0)
    chosen = model.stages()[:stages]
    model.stages = lambda: chosen
    return fit(model, world.dataset, get_task("rating"), world.how)


@pytest.mark.parametrize(
    ("name", "settings"), [("cmf", {}), ("emcdr", {"mapping": "mlp"}), ("sscdr", {}), ("sscdr", {"share": 0.0, "weight": 0.0})]
)
def test_users_new_in_a_domain_are_known_by_their_other_one(world: BridgeWorld, name: str, settings: dict[str, Any]) -> None:
    assert world.correlation(trained(world, name, **settings).model) > 0.8


def test_emcdr_finds_the_bridge(world: BridgeWorld) -> None:
    model = trained(world, "emcdr", mapping="linear").model
    assert isinstance(model, EMCDR)
    assert world.correlation(model) > 0.9
    weight, bias = model.mapping.parameters()
    with torch.no_grad():
        weight.copy_(torch.eye(5).expand(2, -1, -1))
        bias.zero_()
    assert world.correlation(model) < 0.5, "spaces learnt apart have nothing in common"


def test_ptupcdr_finds_the_bridge(world: BridgeWorld) -> None:
    model = trained(world, "ptupcdr").model
    assert isinstance(model, PTUPCDR)
    assert world.correlation(model) > 0.9
    assert model.meta.last is not None
    assert model.meta.last.bias is not None
    with torch.no_grad():
        model.meta.last.weight.zero_()
        model.meta.last.bias.copy_(torch.eye(5).flatten().expand(2, -1))
    assert world.correlation(model) < 0.5, "spaces learnt apart have nothing in common"


@pytest.mark.parametrize(
    ("name", "bridge"), [("emcdr", ("mapping",)), ("sscdr", ("mapping",)), ("ptupcdr", ("attention", "attend", "meta"))]
)
def test_stage_two_leaves_stage_one_as_it_is(world: BridgeWorld, name: str, bridge: tuple[str, ...]) -> None:
    short = replace(world, how=replace(world.how, epochs=3))
    one, two = (trained(short, name, stages).model.state_dict() for stages in (1, 2))
    changed = {key for key in one if not torch.equal(one[key], two[key])}
    assert changed == {key for key in one if key.split(".")[0] in bridge}


def test_users_new_in_a_domain_do_not_judge_stage_one(world: BridgeWorld) -> None:
    log = trained(world, "emcdr").log
    first = [entry for entry in log if entry["stage"] == "factors"]
    assert len(first) == world.how.epochs
    assert all(entry["metrics"] == {} and entry["best"] for entry in first)
    assert all("rmse" in entry["metrics"] for entry in log if entry["stage"] == "mapping")
