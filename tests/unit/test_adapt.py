"""Adapting a trained model to a new domain, from run to run."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from isthmus.adapt import Adapted, Effect, adapt
from isthmus.batch import Batch, Needs, Output
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import CheckpointError, ConfigError, FitError, StorageError
from isthmus.fit import fit, load_run, resume
from isthmus.grow import grow
from isthmus.how import How
from isthmus.layers.domain import DomainLinear
from isthmus.layers.features import Inputs
from isthmus.layers.from_data import fill
from isthmus.model import Model
from isthmus.run import Best, Run, build
from isthmus.schema import Domain, Schema
from isthmus.score import score
from isthmus.task import get_task

HOW = How(epochs=3, batch_size=128, lr=0.01, patience=None, device="cpu", threads=1, progress=False, checkpoint_minutes=1e9)


def of(events: Events, domains: list[int]) -> Events:
    """The events of some domains alone."""
    keep = np.isin(events.domain, domains)
    assert events.time is not None
    assert events.label is not None
    schema = dataclasses.replace(events.schema, domains=tuple(Domain(events.schema.domain_names[d]) for d in domains))
    place = np.array([domains.index(d) if d in domains else -1 for d in range(3)])
    columns: dict[str, Any] = {name: getattr(events, name)[keep] for name in ("user", "item", "time", "label")}
    return dataclasses.replace(events, schema=schema, domain=place[events.domain[keep]].astype(np.int16), **columns)


@dataclasses.dataclass(frozen=True)
class Place:
    """Two old domains; with a new one, all of it and alone."""

    base: Dataset
    every: Dataset
    alone: Dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("adapt")
    events = make_world(3, users=80, items=40, events=(1500, 1500, 900), item_overlap=0.6, seed=2).events
    old, new = of(events, [0, 1]), of(events, [2])
    base = encode(old, global_time(old), folder / "base")
    every = encode(events, global_time(events), folder / "every", base=base)
    return Place(base, every, encode(new, global_time(new), folder / "alone", base=base))


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "shared_bottom"
    model = build("shared_bottom", place.base.schema, {"dim": 4, "hidden": [8], "tower": [4]})
    return fit(model, place.base, get_task("ctr"), HOW, folder)


@pytest.mark.parametrize("events", ["every", "alone"])
def test_old_domains_do_not_change_and_the_new_one_is_learnt(place: Place, trained: Run, events: str, tmp_path: Path) -> None:
    dataset: Dataset = getattr(place, events)
    how = dataclasses.replace(HOW, epochs=12)
    adapted = adapt(trained.folder or "", dataset, place.base, how=how, out=tmp_path / "new")
    assert adapted.domains == ("domain2",)
    assert [e.domain for e in adapted.effects] == ["domain0", "domain1"]
    assert all(e.change == 0 and e.before == e.after and e.rows > 50 for e in adapted.effects)
    untrained = score(grow(trained.model, dataset).eval(), dataset, "train", domains=(2,)).frame
    learnt = score(adapted.run.model, dataset, "train", domains=(2,)).frame

    def loss(frame) -> float:
        return float(np.logaddexp(0, -frame["score"].to_numpy() * (2 * frame["label"].to_numpy() - 1)).mean())

    assert loss(learnt) < loss(untrained) - 0.01
    assert {entry["rows"] for entry in adapted.run.log} == {int(np.diff(dataset.part("train").offsets)[2])}
    assert set(adapted.run.best.domains) == {"domain2"}
    text = adapted.to_text()
    assert "domain0: unchanged" in text
    assert "inputs.domain.weight: 4 of 16" in text
    facts = json.loads((tmp_path / "new" / "adapted.json").read_text())
    assert facts["trained"] == {name: list(sizes) for name, sizes in adapted.trained.items()}
    assert sum(whole for _, whole in adapted.trained.values()) + adapted.frozen == sum(p.numel() for p in adapted.run.model.parameters())


def test_new_items_are_trained_and_the_others_are_not(place: Place, trained: Run) -> None:
    adapted = adapt(trained, place.every, place.base, how=HOW)
    first, end = place.base.schema.item.trained, place.every.schema.item.trained
    table = adapted.run.model.get_parameter("inputs.item.table.weight")
    start = grow(trained.model, place.every).get_parameter("inputs.item.table.weight")
    moved = (table != start).any(1)
    assert end > first
    assert not moved[:first].any()
    assert moved[first:end].any()
    categories = [dataset.item_table.categorical[:, 0] for dataset in (place.base, place.every)]
    alone = set(categories[1][first:end]) - set(categories[1][2:first])  # that no other trained item has
    assert adapted.trained["inputs.item.table.weight"][0] == 4 * (end - first + len(alone - {0}))
    assert "inputs.user.table.weight" not in adapted.trained


def test_the_run_is_a_run(place: Place, trained: Run, tmp_path: Path) -> None:
    adapted = adapt(trained, place.every, place.base, how=HOW, out=tmp_path / "new")
    back = load_run(tmp_path / "new")
    assert back.model.schema == place.every.schema
    for name, value in adapted.run.model.state_dict().items():
        assert torch.equal(value.nan_to_num(), back.model.state_dict()[name].nan_to_num()), name
    again = resume(tmp_path / "new", place.every)  # finished: it is just read
    assert again.best == adapted.run.best
    with pytest.raises(StorageError, match="holds a run already"):
        adapt(trained, place.every, place.base, how=HOW, out=tmp_path / "new")
    assert adapt(trained, place.every, place.base, how=HOW, out=tmp_path / "new", resume=True).effects == adapted.effects
    with pytest.raises(CheckpointError, match="adaptation"):
        fit(grow(trained.model, place.every), place.every, get_task("ctr"), HOW, tmp_path / "new", resume=True)


def test_dacdr_adapts_its_attention_alone(place: Place) -> None:
    model = build("dacdr", place.base.schema, {"dim": 4, "hidden": [8], "tokens": 2})
    fill(model, place.base)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)  # attention is flat where vectors are as small as they start
    run = Run(model.eval(), get_task("ctr"), HOW, Best(0, "auc"), [])
    adapted = adapt(run, place.every, place.base, how=HOW)
    assert adapted.run.model.args["own_attention"] == ["domain2"]
    assert all(e.change == 0 for e in adapted.effects)
    attention = {name for name in adapted.trained if name.endswith(("query.weight", "key.weight", "value.weight"))}
    assert len(attention) == 2 * 2 * 3, "two stacks, two steps, W_Q, W_K, W_V"
    for name in attention:
        weight = adapted.run.model.get_parameter(name)
        assert torch.equal(weight[0], run.model.get_parameter(name)[0]), "the shared one stands still"
        assert not torch.equal(weight[1], weight[0]), name


def test_the_message_says_by_how_much() -> None:
    effect = Effect("books", "auc", 0.6, 0.5, 0.25, 1200)
    assert str(effect) == "books: scores changed by up to 0.25 (1,200 scores, auc 0.6000 -> 0.5000)"
    assert str(dataclasses.replace(effect, change=0.0, after=0.6)) == "books: unchanged (1,200 scores, auc 0.6000)"


# Interruptions


class Trapped(Model):
    """A layer per domain; calls ``trap`` at its ``at``-th training batch."""

    needs: ClassVar[Needs] = Needs(history=True)
    trap: ClassVar[Callable[[], Any]] = lambda: None
    at: ClassVar[int] = 0

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, 4)
        self.out = DomainLinear(len(schema.domains), self.inputs.width, 1)

    def forward(self, batch: Batch) -> Output:
        if self.training:
            type(self).at -= 1
            if type(self).at == 0:
                type(self).trap()
        return Output(self.out(self.inputs(batch).flatten(0, 1), batch.item_offsets).view(batch.item.shape))


def same(one: Adapted | Run, other: Adapted | Run) -> None:
    a, b = (x.run.model if isinstance(x, Adapted) else x.model for x in (one, other))
    for name, value in a.state_dict().items():
        assert torch.equal(value.nan_to_num(), b.state_dict()[name].nan_to_num()), name


@pytest.mark.parametrize("at", [2, 9])
def test_an_interrupted_adaptation_goes_on_to_the_same_bits(place: Place, tmp_path: Path, at: int) -> None:
    torch.manual_seed(0)
    run = fit(Trapped(place.base.schema), place.base, get_task("ctr"), HOW)
    straight = adapt(run, place.every, place.base, how=HOW, out=tmp_path / "straight")
    Trapped.trap, Trapped.at = lambda: signal.raise_signal(signal.SIGINT), at
    with pytest.raises(KeyboardInterrupt):
        adapt(run, place.every, place.base, how=HOW, out=tmp_path / "new")
    Trapped.at = 3
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "new", place.every, Trapped(place.every.schema))
    Trapped.at = 0
    same(straight, adapt(run, place.every, place.base, how=HOW, out=tmp_path / "new", resume=True))


def test_resume_without_a_checkpoint_needs_the_old_run(place: Place, trained: Run, tmp_path: Path) -> None:
    adapt(trained, place.every, place.base, how=HOW, out=tmp_path / "new")
    for name in ("result.json", "model.safetensors", "log.jsonl"):
        (tmp_path / "new" / name).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        resume(tmp_path / "new", place.every)


# What is refused


class Leaky(Trapped):
    """Something moves behind the optimiser's back."""

    count: torch.Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, batch: Batch) -> Output:
        self.count += 1
        return super().forward(batch)


def test_what_moves_behind_the_optimisers_back_is_noticed(place: Place) -> None:
    run = fit(Leaky(place.base.schema), place.base, get_task("ctr"), dataclasses.replace(HOW, epochs=1))
    with pytest.raises(FitError, match="count has moved"):
        adapt(run, place.every, place.base, how=HOW)


class Unruly(Trapped):
    """A weight for each domain, and no rule for it."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.level = torch.nn.Parameter(torch.zeros(len(schema.domains)))


def test_what_does_not_belong_together_is_refused(place: Place, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)level of Unruly.*\(3,\)"):
        grow(Unruly(place.base.schema), place.every)
    with pytest.raises(ConfigError, match="a base of schema"):
        adapt(trained, place.every, place.every)
    with pytest.raises(ConfigError, match="extend nothing"):
        adapt(trained, place.base, place.base)
    with pytest.raises(ConfigError, match="'domain1' is no new domain"):
        adapt(trained, place.every, place.base, domains=["domain1"])
    solved = fit(build("popularity", place.base.schema), place.base, get_task("ctr"), HOW)
    with pytest.raises(ConfigError, match="prior of Popularity"):
        adapt(solved, place.every, place.base)
