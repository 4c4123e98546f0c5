"""A trained model in new domains: grown, it scores the old ones as before; adapted, it still does, and nothing else has moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import shake

from isthmus.batch import Batch
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.fit import fit
from isthmus.grow import Translated, grow
from isthmus.how import How
from isthmus.layers.biases import Biases
from isthmus.layers.bridges import BridgedUsers
from isthmus.layers.domain import PerDomain
from isthmus.layers.features import EntityFields
from isthmus.layers.from_data import fill
from isthmus.layers.growing import rows_of
from isthmus.layers.networks.cross_stitch import CrossStitchNetwork
from isthmus.layers.solved import PairTable
from isthmus.model import Model
from isthmus.models import available, get_model
from isthmus.run import build
from isthmus.schema import Domain, Entity, Field, Schema
from isthmus.stages import Adaptation
from isthmus.task import default_task

VARIANTS = {  # settings under which a model holds other things of its domains
    "adi": [
        {"norm": "batch", "placement": "per_network"},
        {"fusion": "network_mul", "bias": True},
        {"fusion": "sum", "tied": False, "shared": 2},
    ],
    "two_tower": [{"network": name} for name in ("star", "mmoe", "cross_stitch", "conet")],
    "star": [{"norm": False}],
    "conet": [{"hidden": (32, 16, 16, 8)}],
    "mmoe": [{"tower_norm": True}],
    "dacdr": [{"heads": 2, "queries": "sequence", "start": "level"}, {"own_attention": ["medium"], "products": True, "numbers": True}],
    "emcdr": [{"mapping": "mlp"}],
    "sasrec": [{"merged": True}],
}


def networks() -> list[tuple[str, dict]]:
    names = [name for name in sorted(available()) if not get_model(name).shallow]
    return [(name, args) for name in names for args in ({}, *VARIANTS.get(name, []))]


def shaken(name: str, dataset: Dataset, args: dict) -> Model:
    """A model whose every part has a say."""
    model = build(name, dataset.schema, args, seed=0)
    fill(model, dataset)
    with torch.random.fork_rng(), torch.no_grad():
        shake(model)
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
        merged_history=codes(batch.merged_history),
        offsets=offsets,
        context=context,
    )


@torch.no_grad()
def logits(model: Model, batch: Batch) -> Tensor:
    return model.eval()(batch).logit


@pytest.mark.parametrize(("name", "args"), networks())
def test_a_grown_model_scores_old_domains_as_before(name: str, args: dict, pair: tuple[Dataset, Dataset]) -> None:
    base, every = pair
    model = shaken(name, base, args)
    grown = grow(model, every)
    assert grown.schema == every.schema
    assert {m.training for m in grown.modules()} == {False}
    for part in ("train", "valid", "test"):
        batch = draw(base, model, part=part)
        now, before = logits(grown, moved(batch, base, every)), logits(model, batch)
        assert torch.equal(logits(Translated(grown, base, every), batch), now), "in the codes of the smaller data set"
        if isinstance(getattr(model, "users", None), BridgedUsers):  # who is known in the new domain is carried over from there too
            alone = every.events_of(moved(batch, base, every).user.numpy(), 2) == 0
            now, before = now[alone], before[alone]
        # Their weights are the same, bit for bit; products that are wider by a domain may add up in another order on some processors.
        torch.testing.assert_close(now, before, rtol=1e-5, atol=1e-5 * float(before.std()), msg=lambda m, p=part: f"{p}: {m}")
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


def test_tables_grow_segment_by_segment_by_hand() -> None:
    old = EntityFields(Entity("item", (Field("a", "categorical", 4), Field("b", "multi", 3)), trained=3, size=5), 1)
    new = EntityFields(Entity("item", (Field("a", "categorical", 5), Field("b", "multi", 5)), trained=5, size=6), 1)
    with torch.no_grad():
        old.table.weight[:, 0] = torch.arange(10.0)  # padding, unknown, one id; a: 3 to 6; b: 7 to 9
        new.grow_from(old)
    assert new.table.weight[:, 0].tolist() == [0, 1, 2, 1, 1, 3, 4, 5, 6, 4, 7, 8, 9, 8, 8]
    # ids 3 and 4 are new; category 4 of a is theirs alone, category 2 is not; of b, the codes 3 and 4
    new.field_rows[:, 0] = torch.tensor([0, 5 + 1, 5 + 2, 5 + 4, 5 + 2, 5 + 3])
    new.multi_offsets[0] = torch.tensor([0, 0, 0, 1, 3, 4, 4])
    new.multi_rows = torch.tensor([10 + 2, 10 + 2, 10 + 3, 10 + 4], dtype=torch.int32)
    mask = new.rows_of((0,), torch.tensor([False, False, False, True, True, False]))["table.weight"]
    assert mask is not None
    assert mask.nonzero().flatten().tolist() == [3, 4, 5 + 4, 10 + 3, 10 + 4]


def test_counts_by_domain_and_item_keep_their_pairs_by_hand() -> None:
    def schema(domains: int, size: int) -> Schema:
        names = tuple(Domain(str(d)) for d in range(domains))
        return Schema(item=Entity("item", (), trained=size, size=size), domains=names, label="rating")

    old, new = Biases(schema(2, 4)), Biases(schema(3, 6))
    old.fill(keys=torch.tensor([2, 4 + 3]), total=torch.tensor([5.0, 6.0, 0.0]), count=torch.tensor([1.0, 2.0, 0.0]))
    old.fill(mean=torch.tensor([3.0, 4.0]), level=torch.tensor([3.0, 4.0]))
    new.fill(keys=torch.tensor([2, 5, 12 + 5]), total=torch.tensor([9.0, 9.0, 7.0, 0.0]), count=torch.tensor([9.0, 9.0, 3.0, 0.0]))
    new.fill(mean=torch.tensor([9.0, 9.0, 2.0]), level=torch.tensor([9.0, 9.0, 2.0]))
    new.grow_from(old)
    assert new.keys.tolist() == [2, 6 + 3, 12 + 5]
    assert (new.total.tolist(), new.count.tolist()) == ([5, 6, 7, 0], [1, 2, 3, 0])
    assert (new.mean.tolist(), new.level.tolist()) == ([3, 4, 2], [3, 4, 2])
    pairs, more = PairTable(4, 1), PairTable(6, 1)
    pairs.solve(torch.tensor([4 + 3, 2]), torch.tensor([[8.0], [7.0]]), torch.tensor([0.5]))
    more.grow_from(pairs)
    assert more(torch.tensor([0, 1, 1, 2]), torch.tensor([2, 3, 2, 3]))[:, 0].tolist() == [7, 8, 0.5, 0.5]


def test_copies_and_stitches_of_new_domains_are_the_mean_by_hand() -> None:
    old, new = (PerDomain(n, lambda: torch.nn.BatchNorm1d(1)) for n in (2, 3))
    with torch.no_grad():
        old.copies[1].weight.fill_(3.0)  # type: ignore[operator]
        done = new.grow_from(old)
    assert new.copies[2].weight.item() == 2.0  # type: ignore[union-attr, operator]
    assert "copies.2.running_mean" in done
    stitched, more = (CrossStitchNetwork(n, 3, out=1, hidden=(2,)) for n in (2, 3))
    with torch.no_grad():
        stitched.alpha[0].copy_(torch.tensor([[0.8, 0.1], [0.3, 0.6]]))
        more.grow_from(stitched)
    expected = torch.tensor([[0.8, 0.1, 0.0], [0.3, 0.6, 0.0], [0.15, 0.05, 0.7]])
    torch.testing.assert_close(more.alpha[0].detach(), expected)
