"""MV-DNN: cosine of a shared view of users and a view of items per domain."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from isthmus.batch import Batch
from isthmus.models.mv_dnn import MVDNN
from isthmus.schema import Schema


def made(schema: Schema) -> MVDNN:
    torch.manual_seed(0)
    model = MVDNN(schema, dim=4, hidden=(5,), temperature=0.5, id_dropout=0.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)
        model.levels.level.copy_(torch.tensor([-1.0, 2.0]))
    return model.eval()


def full(batch: Batch) -> Batch:
    batch.cross_history = torch.zeros_like(batch.history)
    return batch


def test_scores_are_cosines_over_the_temperature_and_the_level(schema: Schema, batch: Batch) -> None:
    model, batch = made(schema), full(batch)
    towers = model.towers
    user = towers.user_tower.network.mlp(towers.user_fields(batch).flatten(1))  # whatever the domain
    for b, c in ((0, 0), (2, 1), (4, 0)):
        d, item = int(batch.domain[b]), batch.item[b, c]
        fields = towers.item_fields(item[None], batch.domain[b : b + 1]).flatten(1)
        view = towers.item_tower.network.networks.specialise(d)(fields)
        expected = F.cosine_similarity(user[b : b + 1], view) / 0.5 + model.levels.level[d]
        torch.testing.assert_close(model(batch).logit[b, c], expected[0])


def test_users_have_one_view_and_items_one_per_domain(schema: Schema, batch: Batch) -> None:
    model, batch = made(schema), full(batch)
    alone = batch.take(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    model(alone).logit.sum().backward()
    views = model.towers.item_tower.network.networks
    assert views.last.weight.grad[0].abs().sum() > 0
    assert torch.equal(views.last.weight.grad[1], torch.zeros_like(views.last.weight[1]))
    assert all(p.dim() < 3 for p in model.towers.user_tower.parameters())  # nothing of it is a domain's own
