"""A trained model in new domains: grown, it scores the old ones as before; adapted, it still does, and nothing else has moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import rich_events
from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.fit import fit
from isthmus.grow import grow
from isthmus.how import How
from isthmus.layers.bridges import BridgedUsers
from isthmus.layers.from_data import fill
from isthmus.layers.growing import rows_of
from isthmus.layers.table import Table
from isthmus.model import Model
from isthmus.models import available, get_model
from isthmus.run import build
from isthmus.stages import Adaptation
from isthmus.task import default_task

VARIANTS = {  # settings under which a model holds other things of its domains
    "adi": [
        {"norm": "batch", "placement": "per_network"},
        {"fusion": "network_mul", "bias": True},
        {"fusion": "sum", "tied": False, "shared": 2},
    ],
    "two_tower": [{"network": name} for name in ("star", "mmoe", "cross_stitch")],
    "star": [{"norm": False}],
    "mmoe": [{"tower_norm": True}],
    "dacdr": [{"heads": 2, "queries": "sequence", "start": "level"}, {"own_attention": ["medium"]}],
    "emcdr": [{"mapping": "mlp"}],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Two domains, and three."""
    folder = tmp_path_factory.mktemp("growth")
    few, every = rich_events(("large", "medium")), rich_events()
    base = encode(few, split.global_time(few), folder / "base")
    return base, encode(every, split.global_time(every), folder / "every", base=base)


def networks() -> list[tuple[str, dict]]:
    names = [name for name in sorted(available()) if not get_model(name).shallow]
    return [(name, args) for name in names for args in ({}, *VARIANTS.get(name, []))]


def shaken(name: str, dataset: Dataset, args: dict) -> Model:
    """A model whose every part has a say."""
    model = build(name, dataset.schema, args, seed=0)
    fill(model, dataset)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
        for table in (m for m in model.modules() if isinstance(m, Table)):
            table.weight[0] = 0.0
        for epoch in range(3):
            model.train()(draw(dataset, model, epoch))
    return model.eval()


def draw(dataset: Dataset, model: Model, epoch: int = 0, part: str = "train", domains: tuple[int, ...] | None = None) -> Batch:
    plan = Plan(batch_size=64, negatives=3, history_length=6, domains=domains, cross=True)
    stream = batches(dataset, part, model.needs, plan, epoch=epoch, prefetch=0)
    batch = next(stream)
    stream.close()
    return batch


def moved(batch: Batch, base: Dataset, every: Dataset) -> Batch:
    """The same batch in the codes of the larger data set."""
    items, users = (
        torch.from_numpy(np.append([0, 1], new.encode(old.ids))).long()
        for old, new in ((base.item_vocabulary, every.item_vocabulary), (base.user_vocabulary, every.user_vocabulary))
    )

    def codes(of: Tensor | None) -> Tensor | None:
        return None if of is None else items[of]

    context = {}
    for name, values in batch.context.items():
        kind = next(f.kind for f in base.schema.context if f.name == name)
        context[name] = values
        if kind != "numeric":  # the base's categories come first
            assert every.field_vocabulary("context", name).ids[: len(base.field_vocabulary("context", name).ids)].to_list() == (
                base.field_vocabulary("context", name).ids.to_list()
            )
    offsets = (*batch.offsets, *[batch.offsets[-1]] * (len(every.schema.domains) - len(base.schema.domains)))
    return dataclasses.replace(
        batch,
        user=users[batch.user],
        item=items[batch.item],
        history=codes(batch.history),
        cross_history=codes(batch.cross_history),
        offsets=offsets,
        context=context,
    )


@torch.no_grad()
def logits(model: Model, batch: Batch) -> Tensor:
    return model.eval()(batch).logit


@pytest.mark.parametrize(("name", "args"), networks())
def test_a_grown_model_scores_old_domains_bit_for_bit(name: str, args: dict, pair: tuple[Dataset, Dataset]) -> None:
    base, every = pair
    model = shaken(name, base, args)
    grown = grow(model, every)
    assert grown.schema == every.schema
    assert {m.training for m in grown.modules()} == {False}
    for part in ("train", "valid", "test"):
        batch = draw(base, model, part=part)
        now, before = logits(grown, moved(batch, base, every)), logits(model, batch)
        if isinstance(getattr(model, "users", None), BridgedUsers):  # who is known in the new domain is carried over from there too
            alone = every.events_of(moved(batch, base, every).user.numpy(), 2) == 0
            now, before = now[alone], before[alone]
        assert torch.equal(now, before), part
    assert logits(grown, draw(every, grown, domains=(2,))).std() > 1e-3, "the new domain has scores too"


@pytest.mark.parametrize(("name", "args"), networks())
def test_adapting_moves_the_new_domains_part_alone(name: str, args: dict, pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    base, every = pair
    grown = grow(shaken(name, base, args), every)
    before = {key: value.clone() for key, value in grown.state_dict().items()}
    batch = moved(draw(base, grown), base, every)
    scores, fresh = logits(grown, batch), logits(grown, draw(every, grown, domains=(2,)))
    adaptation = Adaptation((2,), (base.schema.item.trained, every.schema.item.trained))
    how = How(epochs=2, batch_size=16, lr=0.01, weight_decay=0.1, table_decay=0.1, patience=None, device="cpu", progress=False)
    run = fit(grown, every, default_task(every.schema, grown.tasks), how, tmp_path / "run", adaptation=adaptation)
    rows = rows_of(run.model, adaptation.domains, adaptation.mask(run.model))
    for key, value in run.model.state_dict().items():
        mask = rows.get(key, torch.zeros(len(value) if value.dim() else 1, dtype=torch.bool))
        if mask is not None:
            now, old = (of.reshape(len(mask), -1)[~mask] for of in (value, before[key]))
            assert torch.equal(now.nan_to_num(), old.nan_to_num()), key
    assert torch.equal(logits(run.model, batch), scores), "what the old domains know is as it was"
    assert not torch.equal(logits(run.model, draw(every, grown, domains=(2,))), fresh)
