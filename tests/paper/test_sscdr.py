"""SSCDR: distances, neighbours that stay in order, and the place of a new user."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.models.sscdr import SSCDR
from isthmus.schema import Domain, Entity, Schema
from isthmus.task import get_task


def small(schema: Schema, **settings: float) -> SSCDR:
    """Two dimensions and a bias.  Users 2, 3 and 4 live in both domains, user 5 in b alone.  The mapping into a doubles,
    and adds four times the bias to the first number."""
    model = SSCDR(schema, dim=2, mapping="linear", **settings)  # type: ignore[arg-type]
    model.biases.level = torch.tensor([3.0, 4.0])
    model.users.present[2:5] = model.users.present[5, 1] = True
    with torch.no_grad():
        model.users.factors.weight[[2, 3, 4]] = torch.tensor([[0.0, 0.0, 0.5], [0.0, 2.0, 0.5], [1.0, 1.0, 0.0]])
        model.users.factors.weight[[8, 9, 10, 11]] = torch.tensor([[0.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 1.0, 0.25]])
        model.items.weight[4] = torch.tensor([3.0, 1.0, 0.125])
        model.items.weight[[8, 9, 10]] = torch.tensor([[0.5, 0.0, 9.0], [0.0, 0.75, 9.0], [0.5, 0.5, 9.0]])
        weight, bias = model.mapping.parameters()
        weight.copy_(2 * torch.eye(3).expand(2, -1, -1))
        weight[0, 0, 2] = 4.0
        bias.zero_()
    return model


def asked(user: list[int], history: list[list[int]], label: list[list[float]] | None = None) -> Batch:
    """Rows of domain a; histories in b."""
    items, past = torch.tensor([[4, 1]] * len(user)), torch.tensor(history)
    offsets, domain = (0, len(user), len(user)), torch.zeros(len(user), dtype=torch.int64)
    found = Batch(torch.tensor(user), items, domain, offsets, cross_history=past, cross_domain=torch.where(past > 0, 1, -1))
    return found if label is None else replace(found, cross_label=torch.tensor(label))


def test_scores_by_hand(schema: Schema) -> None:
    found = small(schema)(asked([3, 1], [[2], [0]])).logit
    assert found.tolist() == [
        [3 + 0.5 + 0.125 - (9 + 1), 3 + 0.5 - 4],  # at (0, 2): the item at (3, 1), one never seen at the origin
        [3 + 0.125 - (9 + 1), 3],  # nobody: at the origin
    ]


@pytest.mark.parametrize(
    ("share", "history", "place"),
    [
        (0.0, [2, 3], (3.0, 2.0)),  # her own, (1, 1) with bias 0.25, mapped
        (1.0, [2, 3], (0.5, 0.75)),  # the mean of (1, 0) and (0, 1.5): the items' biases stay out
        (0.5, [2, 3], (1.75, 1.375)),
        (0.5, [0, 2], (2.0, 1.0)),  # padding is no neighbour
        (0.5, [0, 0], (3.0, 2.0)),
    ],
)
def test_a_new_user_lies_between_her_own_place_and_her_neighbours(
    schema: Schema, share: float, history: list[int], place: tuple[float, float]
) -> None:
    distance = (place[0] - 3) ** 2 + (place[1] - 1) ** 2
    found = small(schema, share=share)(asked([5], [history])).logit[0, 0]
    assert found == 3 + 0.5 + 0.125 - distance  # her bias, 0.25, mapped


def test_a_rating_below_the_mean_makes_no_neighbour(schema: Schema) -> None:
    model = small(schema, share=1.0)
    both, liked = asked([5], [[2, 3]], [[5.0, 2.0]]), asked([5], [[0, 2]])
    assert torch.equal(model(both).logit, model(liked).logit)


def losses_of(model: SSCDR, batch: Batch) -> dict[str, float]:
    loss = model.stages()[1].loss
    assert loss is not None
    return {name: value.item() for name, value in loss(model, batch, get_task("rating").loss).items()}


def test_losses_by_hand(schema: Schema) -> None:
    found = losses_of(small(schema, margin=0.5, weight=2.0), asked([2, 3, 5], [[0, 2], [0, 3], [0, 4]]))
    # user 2: (0, 0.5, 0) -> (0, 1, 0) for (0, 0, 0.5): 1.25; user 3: (0, 1, 0) -> (0, 2, 0) for (0, 2, 0.5): 0.25
    assert found["supervised"] == (1.25 + 0.25) / 2
    # items at (1, 0) and (0, 1.5).  User 2, at (0, 0): 0.5 + 1 - 2.25 < 0.  User 3, at (0, 2): 0.5 + 0.25 - 5 < 0.
    assert found["unsupervised"] == 0
    found = losses_of(small(schema, margin=2.0, weight=2.0), asked([2, 3, 5], [[0, 2], [0, 3], [0, 4]]))
    assert found["unsupervised"] == 2 * (2 + 1 - 2.25) / 2


def test_items_that_both_have_and_dislikes_are_in_no_order(schema: Schema) -> None:
    model = small(schema, margin=9.0, weight=1.0)
    assert losses_of(model, asked([2, 3], [[2, 3], [3, 3]]))["unsupervised"] == pytest.approx(9 + 0.25 - 5)  # for user 3: 2 is new
    assert losses_of(model, asked([2, 3], [[0, 2], [0, 2]]))["unsupervised"] == 0
    assert losses_of(model, asked([2, 3], [[0, 2], [0, 3]], [[0.0, 1.0], [0.0, 5.0]]))["unsupervised"] == 0


def test_the_order_of_neighbours_in_random_histories() -> None:
    torch.manual_seed(0)
    domains, rows, length, size = 3, 40, 8, 7
    schema = Schema(Entity("user", (), 60, 60), Entity("item", (), size, size), tuple(Domain(name) for name in "abc"), label="rating")
    model = SSCDR(schema, dim=2, mapping="linear", margin=0.3, weight=1.0)
    model.biases.level = torch.tensor([2.0, 3.0, 1.0])
    for weight in model.mapping.parameters():
        torch.nn.init.normal_(weight)
    model.users.present[:] = torch.rand(60, domains) < 0.8
    domain, user = torch.randint(domains, (rows,)).sort().values, torch.randint(2, 60, (rows,))
    past = torch.randint(2, size, (rows, length))
    past[torch.arange(length) < torch.randint(length + 1, (rows, 1))] = 0
    where = torch.where(past > 0, (domain[:, None] + torch.randint(1, domains, past.shape)) % domains, -1)
    offsets = tuple(torch.searchsorted(domain, torch.arange(domains + 1)).tolist())
    rating = torch.randint(1, 6, past.shape).float()
    batch = Batch(user, user[:, None], domain, offsets, cross_history=past, cross_domain=where, cross_label=rating)

    hinges, strangers, weights = [], 0, [w.detach() for w in model.mapping.parameters()]
    here = [model.users.present[u, d] and model.users.present[u].sum() > 1 for u, d in zip(user, domain, strict=True)]
    for d in range(domains):
        group = [n for n in range(rows) if here[n] and domain[n] == d]
        for n, other in zip(group, group[1:] + group[:1], strict=True):
            x = model.users.factors.weight[60 * d + user[n], :2].detach()
            met = {(where[n, k].item(), past[n, k].item()) for k in range(length)}
            for k in range(length):
                mine, theirs = ((where[m, k].item(), past[m, k].item()) for m in (n, other))
                if mine[1] == 0 or theirs[1] == 0:
                    continue
                if any(rating[m, k] <= model.biases.level[where[m, k]] for m in (n, other)):
                    continue
                if theirs in met:
                    strangers += 1
                    continue
                far, farther = (
                    ((weights[0][d, :2, :2] @ model.items.weight[size * e + i, :2] + weights[1][d, :2] - x) ** 2).sum()
                    for e, i in (mine, theirs)
                )
                hinges.append((0.3 + far - farther).relu())
    assert len(hinges) > 10
    assert strangers > 10
    assert losses_of(model, batch)["unsupervised"] == pytest.approx(torch.stack(hinges).mean().item())


def test_a_batch_without_overlapping_users_trains_nothing(schema: Schema) -> None:
    model = small(schema)
    loss = model.stages()[1].loss
    assert loss is not None
    found = loss(model, asked([5, 1], [[0, 2], [0, 0]]), get_task("rating").loss)
    assert [value.item() for value in found.values()] == [0, 0]
    torch.stack(list(found.values())).sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.mapping.parameters())


@pytest.mark.parametrize("wrong", [{"margin": -1.0}, {"weight": -0.1}, {"share": 1.1}])
def test_numbers_out_of_range_are_refused(schema: Schema, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        small(schema, **wrong)
