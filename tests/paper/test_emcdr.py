"""EMCDR: who is served by which factors, the mapping's loss, and a known bridge."""

from __future__ import annotations

import torch

from isthmus.batch import Batch
from isthmus.models.emcdr import EMCDR
from isthmus.schema import Schema
from isthmus.task import get_task

TASK = get_task("rating").loss


def small(schema: Schema) -> EMCDR:
    """One factor and a bias.  User 2 lives in a, 3 in both, 5 in b, 4 nowhere.  Mapping into a: swap; into b: double, then + 1."""
    model = EMCDR(schema, dim=1, mapping="linear")
    model.biases.level = torch.tensor([3.0, 4.0])
    for user, domain in ((2, 0), (3, 0), (3, 1), (5, 1)):
        model.users.present[user, domain] = True
    with torch.no_grad():
        model.users.factors.weight[[2, 3, 6 + 3, 6 + 5]] = torch.tensor([[2.0, 0.5], [1.0, 0.25], [-1.0, 0.5], [3.0, 1.0]])
        model.items.weight[[4, 6 + 4]] = torch.tensor([[2.0, 0.125], [0.5, 0.0]])
        maps = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]])
        for weight, value in zip(model.mapping.parameters(), (maps, torch.tensor([[0.0, 0.0], [1.0, 1.0]])), strict=True):
            weight.copy_(value)
    return model


def asked(user: list[int], domain: list[int]) -> Batch:
    return Batch(torch.tensor(user), torch.tensor([[4, 1]] * len(user)), torch.tensor(domain), (0, domain.count(0), len(domain)))


def test_scores_by_hand(schema: Schema) -> None:
    found = small(schema)(asked([2, 5, 4, 2, 3], [0, 0, 0, 1, 1])).logit
    assert found.tolist() == [
        [3 + 0.5 + 0.125 + 2 * 2, 3 + 0.5],  # her own; the second item was never seen
        [3 + 3 + 0.125 + 1 * 2, 3 + 3],  # from b: [3, 1] -> [1, 3]
        [3 + 0.125, 3],  # nowhere: level and the item's bias
        [4 + 2 + 0 + 5 * 0.5, 4 + 2],  # from a: [2, 0.5] -> [5, 2]
        [4 + 0.5 + 0 - 1 * 0.5, 4 + 0.5],  # in both: her own
    ]


def test_the_loss_is_the_squared_distance_of_overlapping_users(schema: Schema) -> None:
    model = small(schema)
    loss = model.stages()[1].loss
    assert loss is not None
    # user 3 alone overlaps; into a: [-1, 0.5] -> [0.5, -1] for [1, 0.25]; into b: [1, 0.25] -> [3, 1.5] for [-1, 0.5]
    into_a, into_b = 0.5**2 + 1.25**2, 4.0**2 + 1.0**2
    assert loss(model, asked([2, 3], [0, 0]), TASK)["distance"] == into_a
    assert loss(model, asked([2, 3, 3, 5], [0, 0, 1, 1]), TASK)["distance"] == (into_a + into_b) / 2


def test_a_batch_without_overlapping_users_trains_nothing(schema: Schema) -> None:
    model = small(schema)
    loss = model.stages()[1].loss
    assert loss is not None
    found = loss(model, asked([2, 5], [0, 1]), TASK)["distance"]
    assert found == 0
    found.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.mapping.parameters())
