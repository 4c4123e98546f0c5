"""Every network of ``layers/networks`` as the two towers of a retriever; the defaults are tried with all other models."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import test_models as kit
import torch
from torch import Tensor, nn
from worlds import shake

from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError
from isthmus.fit import fit
from isthmus.layers.domain import DomainBatchNorm
from isthmus.layers.from_data import fill
from isthmus.layers.networks import available, get_network
from isthmus.layers.towers import Towers
from isthmus.models import settings
from isthmus.models.two_tower import TwoTower
from isthmus.run import build, load_run
from isthmus.task import get_task

ARGS: dict[str, dict[str, Any]] = {
    **{name: {"network": name} for name in available()},
    "mmoe, its own way": {"network": "mmoe", "network_args": {"experts": 3, "tower_norm": True}, "residual": False, "temperature": 0.5},
    "star, its own way": {"network": "star", "network_args": {"norm": False, "auxiliary": [5]}, "residual": False, "tied": False},
}
every_network = pytest.mark.parametrize("which", ARGS)


def fresh(which: str, dataset: Dataset) -> TwoTower:
    model = build("two_tower", dataset.schema, ARGS[which], seed=0)
    assert isinstance(model, TwoTower)
    fill(model, dataset)
    return model


@pytest.fixture(scope="module")
def shaken(dataset: Dataset) -> Callable[[str], TwoTower]:
    """A model whose weights and running statistics are no longer where they start."""

    def make(which: str) -> TwoTower:
        model = fresh(which, dataset)
        with torch.random.fork_rng(), torch.no_grad():
            shake(model)
            for epoch in range(3):
                model.train()(kit.draw(dataset, model.needs, epoch=epoch))
        return model.eval()

    return make


@every_network
def test_a_row_alone_scores_as_in_company(which: str, shaken: Callable[[str], TwoTower], dataset: Dataset) -> None:
    model = shaken(which)
    batch = kit.draw(dataset, model.needs)
    together = kit.logits(model, batch)
    assert together.std() > 1e-3
    kit.same(torch.cat([kit.logits(model, kit.take(batch, [row])) for row in range(len(batch))]), together)


@every_network
def test_item_vectors_do_not_depend_on_order_shape_or_company(which: str, shaken: Callable[[str], TwoTower], dataset: Dataset) -> None:
    model, domains = shaken(which), len(dataset.schema.domains)
    item = torch.arange(dataset.schema.item.size).repeat(domains)
    domain = torch.arange(domains).repeat_interleave(dataset.schema.item.size)
    order = torch.randperm(len(item), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ordered = model.item_vector(item, domain)
        mixed = model.item_vector(item[order].view(domains, -1), domain[order].view(domains, -1))
        alone = torch.cat([model.item_vector(item[order[:9]][k : k + 1], domain[order[:9]][k : k + 1]) for k in range(9)])
    assert ordered.std() > 1e-3
    kit.same(mixed.view_as(ordered), ordered[order])
    kit.same(alone, ordered[order[:9]])
    by_domain = ordered.view(domains, dataset.schema.item.size, -1)
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(by_domain)), "an item's vector is its domain's"


@every_network
def test_every_weight_gets_a_gradient(which: str, shaken: Callable[[str], TwoTower], dataset: Dataset) -> None:
    model, task = shaken(which), get_task("retrieval")
    missing = {part for name, p in model.named_parameters() for part in kit.parts_of(model, name, p)}
    for epoch in range(4):
        model.train().zero_grad()
        torch.stack(list(task.loss(model, kit.draw(dataset, model.needs, epoch=epoch)).values())).sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                missing -= {part for part, grad in kit.parts_of(model, name, p.grad).items() if kit.moved(grad)}
    assert not missing


@pytest.mark.parametrize("which", sorted(available()))
def test_learns_a_world_whose_answer_is_known(which: str, known: Callable[[str], kit.Known], tmp_path: Any) -> None:
    world = known("retrieval")
    model = build("two_tower", world.dataset.schema, ARGS[which], seed=0)
    run = fit(model, world.dataset, world.task, world.how, out=tmp_path / "run")
    share = world.learnt(run.model)
    print(f"{which}: {share:.3f}")
    assert share > kit.LEARNT[False]
    batch = kit.draw(world.dataset, model.needs)
    assert torch.equal(kit.logits(load_run(tmp_path / "run").model, batch), kit.logits(run.model, batch)), "read back it is the same"


def test_both_towers_are_the_network_asked_for(dataset: Dataset) -> None:
    def flat(side: nn.Module) -> nn.Module:
        return side.network  # type: ignore[return-value]

    for name in available():
        towers = fresh(name, dataset).towers
        assert type(flat(towers.user_tower)) is type(flat(towers.item_tower)) is get_network(name)
    mine = fresh("mmoe, its own way", dataset).towers
    for side in (mine.user_tower, mine.item_tower):
        assert flat(side).experts.n == 3  # type: ignore[union-attr]
        assert any(isinstance(m, DomainBatchNorm) for m in side.modules())


def test_a_residual_tower_is_the_sum_of_the_fields_and_the_network_through_a_gate(dataset: Dataset) -> None:
    plain, residual = (build("two_tower", dataset.schema, {"network": "ple", "residual": r}, seed=0).eval() for r in (False, True))
    for model in (plain, residual):
        fill(model, dataset)
    assert isinstance(plain, TwoTower)
    assert isinstance(residual, TwoTower)
    item, domain = torch.tensor([3, 5, 2]), torch.tensor([0, 1, 1])
    with torch.no_grad():
        fields: Tensor = plain.towers.item_fields(item, domain)
        torch.testing.assert_close(residual.item_vector(item, domain), fields.sum(1))  # its start
        residual.towers.item_tower.gate.fill_(0.5)  # type: ignore[union-attr]
        torch.testing.assert_close(residual.item_vector(item, domain), 0.5 * plain.item_vector(item, domain) + fields.sum(1))


def test_unknown_networks_and_hyper_parameters_are_answered_with_the_nearest(dataset: Dataset) -> None:
    for args, hint in (({"network": "mmo"}, "'mmoe'"), ({"network": "mmoe", "network_args": {"expert": 3}}, "'experts'")):
        with pytest.raises(ConfigError, match=f"did you mean {hint}"):
            build("two_tower", dataset.schema, args, seed=0)


def test_the_frames_settings_arrive(dataset: Dataset) -> None:
    args = {"dim": 8, "user_id": False, "tied": False, "id_dropout": 0.125, "history_dropout": 0.25, "temperature": 0.5}
    model = build("two_tower", dataset.schema, args, seed=0).eval()
    assert isinstance(model, TwoTower)
    towers = model.towers
    found = (towers.users.dim, towers.user_id, towers.users.id_dropout, towers.history_dropout, towers.temperature)
    assert found == (8, False, 0.125, 0.25, 0.5)
    assert towers.chosen is not towers.items
    fill(model, dataset)
    assert kit.logits(model, kit.draw(dataset, model.needs)).abs().max() <= 1 / 0.5 + 1e-5, "a cosine over the temperature"
    without = build("two_tower", dataset.schema, {"history": False}, seed=0)
    assert isinstance(without, TwoTower)
    assert not any(name.startswith(("history", "elsewhere")) for name in without.towers.user_names)


def test_the_frame_has_the_same_defaults_as_in_adi() -> None:
    frame = settings("two_tower").keys() & settings("adi").keys()
    assert frame >= {"dim", "user_id", "history", "tied", "id_dropout", "history_dropout", "temperature", "residual"}
    assert {key: settings("two_tower")[key] for key in frame} == {key: settings("adi")[key] for key in frame}


@pytest.mark.parametrize("name", ["two_tower", "adi"])
def test_every_argument_of_the_frame_is_passed_on_with_the_same_default(name: str, dataset: Dataset) -> None:
    frame = {k: p.default for k, p in inspect.signature(Towers).parameters.items() if k not in ("schema", "make", "make_item")}
    assert {key: settings(name)[key] for key in frame} == frame
    other = {"dim": 8, "user_id": False, "tied": False, "id_dropout": 0.125, "history_dropout": 0.25, "temperature": 0.5, "bias": True}

    def looks(args: dict[str, Any]) -> list[Any]:
        t = build(name, dataset.schema, args, seed=0).towers  # type: ignore[union-attr]
        assert isinstance(t, Towers)
        values = [t.users.dim, t.user_id, t.history, t.chosen is None, t.users.id_dropout, t.history_dropout, t.temperature]
        return [*values, t.bias is None]

    assert list(frame) == [*list(other)[:2], "history", *list(other)[2:]]
    assert looks({}) == [64, True, True, True, 0.5, 0.0, None, True]
    assert looks(other) == [8, False, True, False, 0.125, 0.25, 0.5, False]
    assert looks({"history": False})[2] is False
