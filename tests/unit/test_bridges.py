"""What models with a bridge share: factors by domain, who uses which, mappings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.encode import encode
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError
from isthmus.layers.bridges import BridgedUsers, Chosen, Factors, Mapping, choose, item_side, mean_of, user_side
from isthmus.layers.domain import DomainLinear
from isthmus.schema import Domain, Entity, Schema

SCHEMA = Schema(Entity("user", (), 6, 8), Entity("item", (), 6, 8), (Domain("a"), Domain("b"), Domain("c")), label="click")


def rows(user: list[int], domain: list[int]) -> Batch:
    offsets = tuple(int(n) for n in np.searchsorted(domain, np.arange(4)))
    return Batch(torch.tensor(user), torch.full((len(user), 1), 2), torch.tensor(domain), offsets)


@pytest.fixture
def users() -> BridgedUsers:
    """User 2 has events in a and b, 3 in c alone, 4 in all, 5 nowhere; row (user, domain) is [10 user + domain, user]."""
    found = BridgedUsers(SCHEMA, 1)
    found.present[2, :2] = found.present[3, 2] = found.present[4] = True
    with torch.no_grad():
        for d in range(3):
            for u in range(2, 6):
                found.factors.weight[6 * d + u] = torch.tensor([10.0 * u + d, u])
    return found


def refused(batch: Batch, chosen: Chosen) -> Tensor:
    """A bridge that marks what goes over it."""
    return torch.full((len(chosen.user), 2), -1.0)


def test_factors_have_a_row_for_each_domain_and_zeros_for_what_training_never_saw() -> None:
    factors = Factors(SCHEMA.item, 3, 4)
    assert factors.weight.shape == (18, 5)
    assert torch.equal(factors(torch.tensor([[0, 1, 6, 7]]), 2), torch.zeros(1, 4, 5))
    assert torch.equal(factors(torch.tensor([0]), torch.tensor([-1])), torch.zeros(1, 5))
    found = factors(torch.tensor([2, 2, 5]), torch.tensor([0, 1, 2]))
    assert torch.equal(found, factors.weight[[2, 8, 17]])
    assert found[:, :-1].std() > 0.01
    assert torch.equal(found[:, -1], torch.zeros(3))


def test_sides_multiply_to_level_and_biases_and_product() -> None:
    user, item = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[3.0, -1.0, 0.25]])
    assert (user_side(user, torch.tensor([4.0])) * item_side(item)).sum() == 4 + 0.5 + 0.25 + 1 * 3 - 2 * 1


def test_chosen_rows_keep_their_order_by_domain() -> None:
    batch = rows([2, 3, 4, 5, 2], [0, 0, 1, 2, 2])
    chosen = choose(batch, torch.tensor([False, True, False, True, True]))
    assert chosen.place.tolist() == [1, 3, 4]
    assert chosen.user.tolist() == [3, 5, 2]
    assert chosen.domain.tolist() == [0, 2, 2]
    assert chosen.offsets == (0, 1, 1, 3)
    assert choose(batch, torch.zeros(5, dtype=torch.bool)).offsets == (0, 0, 0, 0)


def test_the_source_is_the_mean_over_the_other_domains_with_events(users: BridgedUsers) -> None:
    batch = rows([2, 3, 4, 5, 2, 4], [0, 0, 1, 1, 2, 2])
    found = users.source(choose(batch, torch.ones(6, dtype=torch.bool)))
    # 2 in a: b alone; 3 in a: c; 4 in b: a and c; 5: nowhere; 2 in c: a and b; 4 in c: a and b
    assert found.tolist() == [[21, 2], [32, 3], [41, 4], [0, 0], [20.5, 2], [40.5, 4]]
    assert not found.requires_grad


def test_who_uses_which_factor(users: BridgedUsers) -> None:
    batch = rows([2, 3, 5, 4, 7, 1, 2], [0, 0, 0, 1, 1, 2, 2])
    found = users(batch, refused)
    assert found.tolist() == [[20, 2], [-1, -1], [0, 0], [41, 4], [0, 0], [0, 0], [-1, -1]]
    assert users.overlapping(batch).place.tolist() == [0, 3]


def test_rows_over_the_bridge_train_no_factor(users: BridgedUsers) -> None:
    users(rows([2, 3, 2], [0, 0, 2]), refused).sum().backward()
    assert users.factors.weight.grad is not None
    assert users.factors.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2]


def test_who_is_present_is_who_has_training_events(tmp_path: Path) -> None:
    events = make_world(3, users=40, items=20, events=(300, 60, 30), seed=2).events
    dataset = encode(events, split.global_time(events), tmp_path / "data")
    users, train = BridgedUsers(dataset.schema, 2), dataset.part("train")
    users.take(dataset)
    expected = np.zeros(users.present.shape, bool)
    expected[np.asarray(train.user), np.asarray(train.domain)] = True
    assert 0 < expected.mean() < 0.9
    assert np.array_equal(users.present.numpy(), expected)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_mapping_starts_at_zero_and_keeps_domains_apart(kind: str) -> None:
    mapping = Mapping(2, 3, kind)
    x = torch.randn(4, 3)
    assert torch.equal(mapping(x, (0, 1, 4)), torch.zeros(4, 3))
    mapping(x[:1], (0, 1, 1)).sum().backward()
    for layer in (m for m in mapping.modules() if isinstance(m, DomainLinear)):
        assert torch.equal(layer.weight.grad[1], torch.zeros_like(layer.weight[1]))


def test_mappings_by_hand() -> None:
    linear, mlp = Mapping(1, 2, "linear"), Mapping(1, 2, "mlp", hidden=1)
    with torch.no_grad():
        for mapping, values in (
            (linear, ([[[1.0, 2.0], [3.0, 4.0]]], [[10.0, 20.0]])),
            (mlp, ([[[1.0, -1.0]]], [[0.5]], [[[2.0], [3.0]]], [[10.0, 20.0]])),
        ):
            for weight, value in zip(mapping.parameters(), values, strict=True):
                weight.copy_(torch.tensor(value))
    x = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    assert linear(x, (0, 2)).tolist() == [[14, 30], [19, 39]]
    assert mlp(x, (0, 2)).tolist() == [[13, 24.5], [10, 20]]  # hidden: relu(2 - 1 + 0.5), relu(1 - 4 + 0.5)


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        Mapping(1, 2, "linaer")


def test_the_mean_of_none_is_zero() -> None:
    assert mean_of(torch.zeros(0)) == 0
    assert mean_of(torch.tensor([1.0, 2.0, 6.0])) == 3
