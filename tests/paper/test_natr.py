"""NATR: what is transferred and both attentions by hand; a target's loss never reaches what a source knows."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.models.natr import NATR, KnownElsewhere, PairMaps
from isthmus.schema import PADDING, Domain, Schema

LEVEL = torch.tensor([-1.0, 2.0])
KNOWN = {0: (2, 3, 4), 1: (2, 5)}  # items with training events, by domain: item 2 is in both


def three(schema: Schema) -> Schema:
    return dataclasses.replace(schema, domains=(*schema.domains, Domain("c")))


def train_part(pairs: list[tuple[int, int]]) -> Any:
    """A data set whose training part holds (item, domain) pairs."""
    item, domain = np.array(pairs).T
    return SimpleNamespace(part=lambda name: {"train": SimpleNamespace(item=item, domain=domain)}[name])


def made(schema: Schema, known: dict[int, tuple[int, ...]] = KNOWN) -> NATR:
    """A model whose weights are far from 0, in evaluation."""
    torch.manual_seed(0)
    model = NATR(schema, dim=3, attention=4)
    model.elsewhere.take(train_part([(item, d) for d, items in known.items() for item in items]))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)
        model.users.weight[PADDING] = model.items.weight[PADDING] = 0.0
        model.levels.level[:2] = LEVEL
    return model.eval()


def test_what_domains_know_comes_from_the_training_part(schema: Schema) -> None:
    items = KnownElsewhere(three(schema))
    items.take(train_part([(2, 0), (2, 1), (3, 0), (3, 0), (4, 2)]))
    found = items(torch.tensor([2, 2, 2, 3, 3, 4, 5, PADDING]), torch.tensor([0, 1, 2, 0, 1, 0, 0, 0]))
    assert found.tolist() == [
        [False, True, False],  # in 0, known in 1
        [True, False, False],
        [True, True, False],
        [False, False, False],  # known in 0 alone, which is where it is asked for
        [True, False, False],
        [False, False, True],
        [False, False, False],
        [False, False, False],
    ]


def test_old_domains_of_a_grown_model_take_nothing_from_new_ones(schema: Schema) -> None:
    old, new = KnownElsewhere(schema), KnownElsewhere(three(schema))
    old.take(train_part([(2, 0), (3, 1)]))
    new.take(train_part([(2, 0), (2, 1), (2, 2), (3, 2)]))
    new.grow_from(old)
    found = new(torch.tensor([2, 2, 2, 3, 3]), torch.tensor([0, 1, 2, 0, 2]))
    assert found.int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_maps_by_hand() -> None:
    maps = PairMaps(3, 1)
    with torch.no_grad():
        maps.weight.copy_(torch.tensor([[99.0, 2, 3], [4, 99, 5], [6, 7, 99]])[..., None, None])
    x = torch.tensor([[1.0, 10, 100]]).expand(4, 3)[..., None]
    known = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    # (2 * 10 + 3 * 100) / 2;   3 * 100;   (4 * 1 + 5 * 100) / 2;   nobody knows it
    torch.testing.assert_close(maps(x, known, (0, 2, 4, 4))[:, 0], torch.tensor([160.0, 300, 252, 0]))


def test_maps_grow_by_their_sources_by_hand() -> None:
    old, new = PairMaps(2, 1), PairMaps(3, 1)
    with torch.no_grad():
        old.weight.copy_(torch.tensor([[9.0, 2], [4, 9]])[..., None, None])
        new.grow_from(old)
    assert new.weight[..., 0, 0].tolist() == [[9, 2, 3], [4, 9, 3], [4, 2, 3]]


def test_an_item_unknown_elsewhere_transfers_nothing(schema: Schema, batch: Batch) -> None:
    model = made(schema)
    event, row = model.transferred(batch)
    # histories: 2;  3 and 4, which domain a alone knows;  none;  5, b's own;  2 and 3
    assert row.tolist() == [0, 4, 4]
    items = model.items.weight.view(2, 6, 4)[..., :3]
    w = model.maps.weight
    expected = [w[0, 1] @ items[1, 2], w[1, 0] @ items[0, 2], w[1, 0] @ items[0, 3]]
    torch.testing.assert_close(event, torch.stack(expected))
    before = model(batch).logit
    with torch.no_grad():  # what a knows of items 4 and 5 reaches nobody's taste, as b's item 5 reaches nobody in b
        model.maps.weight += 1
    after = model(batch).logit
    assert torch.equal(after[1:4], before[1:4])
    assert not torch.isclose(after[[0, 4]], before[[0, 4]]).any()


def test_with_nothing_transferred_it_is_a_factorisation_of_its_own_domain(schema: Schema, batch: Batch) -> None:
    model = made(schema, {0: (2, 3), 1: (4, 5)})
    blank = dataclasses.replace(batch, history=torch.zeros_like(batch.history))
    users, items = model.users.weight.view(2, 6, 4)[batch.domain, batch.user], model.items.weight.view(2, 6, 4)
    item = items[batch.domain[:, None], batch.item]
    expected = LEVEL[batch.domain, None] + users[:, None, 3] + item[..., 3] + torch.einsum("bd,bcd->bc", users[:, :3], item[..., :3])
    torch.testing.assert_close(model(blank).logit, expected)


def hidden_layer(first: Tensor, bias: Tensor, last: Tensor, v: Tensor, q: Tensor) -> Tensor:
    return last @ (first @ torch.cat([v, q, v * q]) + bias).relu()


@pytest.mark.parametrize("domains", [2, 3])
def test_both_attentions_written_out(schema: Schema, batch: Batch, domains: int) -> None:
    batch.history[1, 1] = 2  # of row 1: 3, which b does not know, and 2
    known = {**KNOWN, 2: (2, 3)}
    schema = schema if domains == 2 else three(schema)
    batch.offsets = (*batch.offsets, *[5] * (domains - 2))
    model, expected = made(schema, {d: known[d] for d in range(domains)}), torch.zeros(5, 2)
    unit, (first, last) = model.item_level, model.domain_level
    item_level = torch.cat([unit.event.weight, unit.query.weight, unit.both.weight], 1), unit.query.bias, unit.rest[-1].weight[0]
    domain_level = first.layers[0].weight, first.layers[0].bias, last.weight[0]
    users, items = (factors.weight.view(domains, 6, 4) for factors in (model.users, model.items))
    for b, c in itertools.product(range(5), range(2)):
        d = int(batch.domain[b])
        (p, b_u), (q, b_i) = users[d, batch.user[b]].split([3, 1]), items[d, batch.item[b, c]].split([3, 1])
        moved = []
        for j in batch.history[b].tolist():
            sources = [s for s in range(domains) if s != d and j in known[s]]
            if sources:
                moved.append(sum(model.maps.weight[d, s] @ items[s, j, :3] for s in sources) / len(sources))
        if moved:
            a = torch.softmax(torch.stack([hidden_layer(*item_level, t, q) for t in moved]), 0)
            z = a @ torch.stack(moved)
            w = torch.softmax(torch.stack([hidden_layer(*domain_level, v, q) for v in (p, z)]), 0)
            p = w[0] * p + w[1] * z
        expected[b, c] = LEVEL[d] + b_u[0] + b_i[0] + p @ q
    torch.testing.assert_close(model(batch).logit, expected)


def test_a_targets_loss_trains_the_maps_but_not_the_sources_vectors(schema: Schema, batch: Batch) -> None:
    model = made(schema)
    model(batch).logit[:3].sum().backward()  # domain a alone
    items, users = model.items.weight.grad.view(2, 6, 4), model.users.weight.grad.view(2, 6, 4)
    assert items[0].any()
    assert not items[1].any()
    assert not users[1].any()
    assert model.maps.weight.grad[0, 1].any()
    assert not model.maps.weight.grad[1].any()
