"""Shared-Bottom and DNN: what domains share, and what they do not."""

from __future__ import annotations

import torch

from isthmus.batch import Batch
from isthmus.models.dnn import DNN
from isthmus.models.shared_bottom import SharedBottom
from isthmus.schema import Schema


def test_equals_the_bottom_and_each_rows_own_tower(schema: Schema, batch: Batch) -> None:
    model = SharedBottom(schema).eval()
    with torch.no_grad():
        h = model.network.bottom(model.inputs(batch))
        expected = torch.cat([model.network.towers.specialise(0)(h[:3]), model.network.towers.specialise(1)(h[3:])]).squeeze(-1)
        torch.testing.assert_close(model(batch).logit, expected)


def test_a_domain_trains_the_bottom_and_its_own_tower_alone(schema: Schema, batch: Batch) -> None:
    model = SharedBottom(schema)
    alone = Batch(batch.user[3:], batch.item[3:], batch.domain[3:], (0, 0, 2), history=batch.history[3:])
    model(alone).logit.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.network.bottom.parameters())
    for p in model.network.towers.parameters():
        assert torch.equal(p.grad[0], torch.zeros_like(p[0]))
        assert p.grad[1].abs().sum() > 0


def test_dnn_tells_domains_apart_by_their_embedding_alone(schema: Schema, batch: Batch) -> None:
    model = DNN(schema).eval()
    moved = Batch(batch.user, batch.item, torch.zeros(5, dtype=torch.int64), (0, 5, 5), history=batch.history)
    with torch.no_grad():
        assert not torch.allclose(model(batch).logit[3:], model(moved).logit[3:])
        model.inputs.domain.weight.zero_()
        assert torch.equal(model(batch).logit, model(moved).logit)
