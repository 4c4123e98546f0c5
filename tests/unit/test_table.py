"""Tables: rows touched, rows left alone, and optimisers that reach dense Adam's quality."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.domain import DomainBatchNorm, DomainLinear, Experts
from isthmus.layers.table import DENSE_LIMIT, RowwiseAdagrad, Table, optimisers


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_is_zero_and_never_learns(sparse: bool) -> None:
    table = Table(5, 3, std=1.0, sparse=sparse)
    found, _ = optimisers(table, 0.1)
    assert table(torch.tensor([[0, 2]]))[0, 0].tolist() == [0, 0, 0]
    table(torch.tensor([0, 0, 2])).sum().backward()
    for optimiser in found:
        optimiser.step()
    assert table.weight[0].tolist() == [0, 0, 0]


def test_a_large_table_is_sparse_by_itself() -> None:
    assert not Table(DENSE_LIMIT // 8, 8).sparse
    assert Table(DENSE_LIMIT // 8 + 1, 8).sparse


def test_adagrad_by_hand() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    optimiser = RowwiseAdagrad([weight], lr=0.5)
    weight.grad = torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.0, 2.0]])
    optimiser.step()
    # row 1: mean square 5; row 2: mean square 2
    expected = torch.tensor([[0.0, 0.0], [-0.5 * 3 / math.sqrt(5), -0.5 / math.sqrt(5)], [0.0, -0.5 * 2 / math.sqrt(2)]])
    torch.testing.assert_close(weight.data, expected)
    weight.grad = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    optimiser.step()
    expected[1] -= 0.5 * 1 / math.sqrt(6)
    torch.testing.assert_close(weight.data, expected)


def test_sparse_and_dense_gradients_give_the_same_rows_even_when_codes_repeat() -> None:
    torch.manual_seed(0)
    start = torch.randn(20, 4)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    both = [RowwiseAdagrad([w], lr=0.1) for w in weights]
    for step in range(3):
        codes = torch.tensor([3, 3, 7, 3, 1 + step])
        for weight, optimiser, sparse in zip(weights, both, (False, True), strict=True):
            optimiser.zero_grad()
            F.embedding(codes, weight, sparse=sparse).square().sum().backward()
            assert weight.grad is not None
            assert weight.grad.is_sparse == sparse
            optimiser.step()
    torch.testing.assert_close(weights[0].data, weights[1].data)
    torch.testing.assert_close(both[0].state[weights[0]]["sum"], both[1].state[weights[1]]["sum"])
    assert both[0].state[weights[0]]["sum"].shape == (20,)
    untouched = [i for i in range(20) if i not in (1, 2, 3, 7)]
    assert torch.equal(weights[1].data[untouched], start[untouched])


def test_adagrad_goes_on_from_its_saved_state() -> None:
    def step(weight: nn.Parameter, optimiser: RowwiseAdagrad) -> None:
        optimiser.zero_grad()
        F.embedding(torch.tensor([1, 2, 2]), weight, sparse=True).square().sum().backward()
        optimiser.step()

    weight = nn.Parameter(torch.arange(8.0).view(4, 2))
    optimiser = RowwiseAdagrad([weight], lr=0.3)
    step(weight, optimiser)
    again = nn.Parameter(weight.detach().clone())
    other = RowwiseAdagrad([again], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    step(weight, optimiser)
    step(again, other)
    assert torch.equal(weight, again)


def test_adagrad_runs_a_closure() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimiser = RowwiseAdagrad([weight])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 4.0
    assert (weight < 1).all()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large = Table(1000, 4, sparse=True)
        self.small = Table(10, 4, sparse=False)
        self.linear = DomainLinear(2, 4, 3)
        self.norm = DomainBatchNorm(2, 3)
        self.experts = Experts(2, 3, (2,))


def test_every_weight_has_one_optimiser_and_tables_have_a_line() -> None:
    net = _Net()
    found, lines = optimisers(net, 1e-3, weight_decay=0.1)
    assert [type(o).__name__ for o in found] == ["RowwiseAdagrad", "AdamW"]
    held = [id(p) for o in found for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert lines[:2] == ["table large: 1,000 x 4, RowwiseAdagrad, lr 0.04", "table small: 10 x 4, dense with the rest, lr 0.001"]
    assert lines[2].startswith("rest: ")


def _idle_step(net: _Net, found: list[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], set[str]]:
    """A step in which every gradient is zero and row 5 of the large table is touched: the weights before, and who moved."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    net.large.weight.grad = torch.sparse_coo_tensor(torch.tensor([[5]]), torch.zeros(1, 4), (1000, 4), check_invariants=False)
    for optimiser in found:
        optimiser.step()
    return before, {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}


def test_decay_reaches_matrices_only() -> None:
    net = _Net()
    found, _ = optimisers(net, 0.5, weight_decay=0.5)
    before, moved = _idle_step(net, found)
    assert moved == {"linear.weight", "experts.weights.0"}
    torch.testing.assert_close(net.linear.weight.data, before["linear.weight"] * 0.75)


def test_rates_of_the_tables() -> None:
    net = _Net()
    assert [o.param_groups[0]["lr"] for o in optimisers(net, 1e-3)[0]] == [4e-2, 1e-3]
    assert [o.param_groups[0]["lr"] for o in optimisers(net, 1e-3, table_lr=0.5)[0]] == [0.5, 1e-3]
    adam = optimisers(net, 1e-3, table_optimiser="adam")[0]
    assert type(adam[0]).__name__ == "SparseAdam"
    assert adam[0].param_groups[0]["lr"] == pytest.approx(4e-3)


def test_a_large_table_swept_by_adam_moves_as_a_dense_one_does() -> None:
    """Repeated codes, several look-ups, padding, and rows that no batch touches but decay does."""
    torch.manual_seed(0)
    large, small = Table(40, 3, std=1.0, sparse=True), Table(40, 3, sparse=False)
    small.load_state_dict(large.state_dict())
    (swept,), lines = optimisers(large, 0.1, table_optimiser="dense", table_decay=0.3)
    plain = torch.optim.AdamW(small.parameters(), lr=0.1, weight_decay=0.3)
    assert "dense with the rest" in lines[0]
    for _ in range(5):
        codes, target = torch.randint(0, 12, (2, 20)), torch.randn(3)
        for table, optimiser in ((large, swept), (small, plain)):
            optimiser.zero_grad()
            ((table(codes[0]) - target).square().sum() + (table(codes[1]) * target).tanh().sum()).backward()
            assert table.weight.grad is not None
            assert table.weight.grad.is_sparse == (table is large), "a gradient for each look-up would be as large as the table"
            optimiser.step()
        torch.testing.assert_close(large.weight, small.weight)
    assert not large.weight[0].any()


def test_decay_of_tables_reaches_touched_rows_of_large_ones_and_all_of_small_ones() -> None:
    net = _Net()
    found, _ = optimisers(net, 0.5, table_lr=0.1, table_decay=0.5)
    before, moved = _idle_step(net, found)
    assert moved == {"large.weight", "small.weight"}
    torch.testing.assert_close(net.large.weight.data[5], before["large.weight"][5] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(net.large.weight.data[6:], before["large.weight"][6:], rtol=0.0, atol=0.0)
    torch.testing.assert_close(net.small.weight.data, before["small.weight"] * (1 - 0.5 * 0.5))
    with pytest.raises(ConfigError, match="decay"):
        optimisers(net, 0.5, table_optimiser="adam", table_decay=0.5)


def test_dense_tables_have_a_rate_of_their_own() -> None:
    net = _Net()
    (only,), _ = optimisers(net, 1e-3, table_lr=0.25, table_optimiser="dense", table_decay=0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in only.param_groups for p in g["params"]}
    assert rates[id(net.large.weight)] == rates[id(net.small.weight)] == (0.25, 0.5)
    assert rates[id(net.linear.weight)] == (1e-3, 0.0)


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_momentum_is_adams_first_beta(kind: str) -> None:
    found, _ = optimisers(_Net(), 1e-3, table_optimiser=kind, momentum=0.25)
    betas = [g["betas"] for optimiser in found for g in optimiser.param_groups if "betas" in g]
    assert set(betas) == {(0.25, 0.999)}
    assert len(betas) == sum(len(o.param_groups) for o in found if not isinstance(o, RowwiseAdagrad))


def test_frozen_weights_are_left_out() -> None:
    net = _Net()
    net.large.weight.requires_grad_(False)
    net.linear.requires_grad_(False)
    found, lines = optimisers(net, 1e-3)
    held = {id(p) for o in found for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in net.parameters() if p.requires_grad}
    assert not any("large" in line for line in lines)


def test_a_wrong_name_meets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="adagrad"):
        optimisers(_Net(), 1e-3, table_optimiser="adagard")


class _Factors(nn.Module):
    """logit = <user, item>: the planted problem below is of this form."""

    def __init__(self, users: int, items: int, dim: int) -> None:
        super().__init__()
        self.user = Table(users, dim, std=0.1, sparse=True)
        self.item = Table(items, dim, std=0.1, sparse=True)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.item(item)).sum(-1)


def _planted(table_optimiser: str, table_lr: float | None = None) -> float:
    """Log loss on unseen pairs after some epochs over the same pairs, in the same order, from the same start."""
    generator = torch.Generator().manual_seed(1)
    users, items, dim = 100, 60, 4
    true = 1.5 * torch.randn(users, dim, generator=generator) @ torch.randn(items, dim, generator=generator).T
    user = torch.randint(1, users, (10_000,), generator=generator)
    item = torch.randint(1, items, (10_000,), generator=generator)
    label = torch.bernoulli(true[user, item].sigmoid(), generator=generator)
    torch.manual_seed(2)
    model = _Factors(users, items, dim)
    found, _ = optimisers(model, 1e-3, table_lr, table_optimiser)  # the loop's own default rate
    best = math.inf
    for _ in range(20):
        for rows in torch.randperm(8_000, generator=generator).split(100):
            for optimiser in found:
                optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(model(user[rows], item[rows]), label[rows]).backward()
            for optimiser in found:
                optimiser.step()
        with torch.no_grad():
            best = min(best, F.binary_cross_entropy_with_logits(model(user[8_000:], item[8_000:]), label[8_000:]).item())
    return best


def test_touched_row_optimisers_at_their_default_rate_reach_dense_adam() -> None:
    dense = _planted("dense")
    assert dense < 0.6  # it learns: a constant gives 0.69
    assert _planted("auto") < dense + 0.01
    assert _planted("adam") < dense + 0.01
    assert _planted("auto", table_lr=1e-3) > dense + 0.05  # at dense Adam's own rate it would not
