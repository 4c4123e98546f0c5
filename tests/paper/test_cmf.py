"""CMF: one user vector for all domains."""

from __future__ import annotations

import torch

from isthmus.batch import Batch
from isthmus.models.cmf import CMF
from isthmus.schema import Schema


def test_score_by_hand(schema: Schema, batch: Batch) -> None:
    model = CMF(schema, dim=2)
    model.biases.level = torch.tensor([10.0, 20.0])
    with torch.no_grad():
        model.users.weight[3] = torch.tensor([1.0, 2.0, 0.5])
        model.items.weight[4] = torch.tensor([3.0, 1.0, 0.25])  # item 4 in a
        model.items.weight[6 + 5] = torch.tensor([-1.0, 1.0, 0.125])  # item 5 in b
    found = model(batch).logit
    assert found[1, 0] == 10 + 0.5 + 0.25 + 5  # user 3, item 4, domain a
    assert found[3, 0] == 20 + 0.5 + 0.125 + 1  # the same user, item 5, domain b


def test_the_unknown_leaves_level_and_known_biases(schema: Schema, batch: Batch) -> None:
    model = CMF(schema)
    model.biases.level = torch.tensor([3.0, 4.0])
    with torch.no_grad():
        model.items.weight[:, -1] = 0.5
        model.items.weight[0] = 0.0
    batch.user[:], batch.item[:, 1] = 1, 1
    expected = torch.tensor([[3.5, 3.0]] * 3 + [[4.5, 4.0]] * 2)
    assert torch.equal(model(batch).logit.detach(), expected)


def test_a_domain_trains_the_users_of_both(schema: Schema, batch: Batch) -> None:
    model = CMF(schema)
    before = model(batch).logit.detach()
    model(Batch(batch.user[3:], batch.item[3:], batch.domain[3:], (0, 0, 2))).logit.sum().backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= weight.grad
    changed = (model(batch).logit.detach() != before).any(1)
    assert changed.tolist() == [False, True, False, True, True]  # user 3 is in a too
