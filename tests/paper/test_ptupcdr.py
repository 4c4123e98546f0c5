"""PTUPCDR: characteristics, bridges of one's own, the task-oriented loss, and a known bridge."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from isthmus.batch import Batch, Pool
from isthmus.layers.bridges import choose
from isthmus.models.ptupcdr import PTUPCDR
from isthmus.schema import Domain, Entity, Schema
from isthmus.task import Task, get_task

RATING, CTR, RETRIEVAL = get_task("rating"), get_task("ctr"), get_task("retrieval")


def small(schema: Schema) -> PTUPCDR:
    """One factor and a bias.  Users 2 and 3 live in both domains, user 5 in b alone.

    In a, h reads twice the first number of a vector, and the bridge of p is [[p0, p1], [p0 + p1, 1]].
    """
    model = PTUPCDR(schema, dim=1, hidden=2)
    model.biases.level = torch.tensor([3.0, 4.0])
    model.users.present[2:4] = model.users.present[5, 1] = True
    with torch.no_grad():
        model.users.factors.weight[[2, 3, 8, 9, 11]] = torch.tensor([[1.0, 0.0], [0.5, 1.0], [2.0, 1.0], [-1.0, 1.0], [2.0, 1.0]])
        model.items.weight[[4, 5]] = torch.tensor([[2.0, 0.125], [-1.0, 0.5]])
        model.items.weight[[8, 9]] = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        for weights in (model.attention.parameters(), model.attend.parameters(), model.meta.parameters()):
            for weight in weights:
                weight.zero_()
        first, meta = model.attention.layers[0], model.meta.layers[0]
        first.weight[0], meta.weight[0] = torch.eye(2), torch.eye(2)
        model.attend.weight[0] = torch.tensor([[2.0, 0.0]])
        assert model.meta.last is not None
        model.meta.last.weight[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
        assert model.meta.last.bias is not None
        model.meta.last.bias[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return model


def asked(user: list[int], history: list[list[int]]) -> Batch:
    """Rows of domain a; histories in b."""
    past, items = torch.tensor(history), torch.tensor([[4, 1]] * len(user))
    domain, offsets = torch.zeros(len(user), dtype=torch.int64), (0, len(user), len(user))
    return Batch(torch.tensor(user), items, domain, offsets, cross_history=past, cross_domain=torch.where(past > 0, 1, -1))


def test_scores_by_hand(schema: Schema) -> None:
    found = small(schema)(asked([5, 5, 5, 2, 1], [[0, 2], [2, 3], [0, 0], [0, 2], [0, 0]])).logit
    # p = (1, 2): W = [[1, 2], [3, 1]], her [2, 1] becomes [4, 7]
    torch.testing.assert_close(found[0], torch.tensor([3 + 7 + 0.125 + 4 * 2, 3 + 7]))
    # a = softmax(2, 0): p = (a, 1 + a), W = [[a, 1 + a], [1 + 2 a, 1]]
    a = 1 / (1 + math.exp(-2))
    vector, bias = 2 * a + 1 + a, 2 * (1 + 2 * a) + 1
    torch.testing.assert_close(found[1], torch.tensor([3 + bias + 0.125 + vector * 2, 3 + bias]))
    # no history: p = 0, W = [[0, 0], [0, 1]]
    assert found[2].tolist() == [3 + 1 + 0.125, 3 + 1]
    assert found[3].tolist() == [3 + 0.125 + 1 * 2, 3]  # her own factors
    assert found[4].tolist() == [3 + 0.125, 3]  # nobody


def test_padding_before_a_history_does_not_matter(schema: Schema) -> None:
    model = small(schema)
    assert torch.equal(model(asked([5], [[2, 3]])).logit, model(asked([5], [[0, 0, 2, 3]])).logit)


def test_characteristics_are_those_of_a_padded_softmax() -> None:
    torch.manual_seed(0)
    domains, rows, length = 3, 40, 12
    domain_names = tuple(Domain(name) for name in "abc")
    model = PTUPCDR(Schema(Entity("user", (), 50, 50), Entity("item", (), 9, 11), domain_names, label="click"), dim=3, hidden=5)
    domain, keep = torch.randint(domains, (rows,)).sort().values, torch.rand(rows) < 0.7
    past = torch.randint(1, 11, (rows, length))  # often the same item; 1, 9 and 10 have no vector
    past[torch.arange(length) < torch.randint(length + 1, (rows, 1))] = 0
    past[::7] = 0
    where = (domain[:, None] + torch.randint(1, domains, past.shape)) % domains
    offsets = tuple(torch.searchsorted(domain, torch.arange(domains + 1)).tolist())
    user, item = torch.full((rows,), 2), torch.full((rows, 1), 2)
    batch = Batch(user, item, domain, offsets, cross_history=past, cross_domain=torch.where(past > 0, where, -1))
    found = model.characteristics(batch, choose(batch, keep))

    known = (past > 1) & (past < 9)
    v = model.items.weight.view(domains, 9, 4)[where, past * known] * known[..., None]
    v, real, first, d = v[keep].detach(), (past > 0)[keep], model.attention.layers[0], domain[keep]
    hidden = (torch.einsum("nhw,nlw->nlh", first.weight[d], v) + first.bias[d][:, None]).relu()
    score = torch.einsum("nh,nlh->nl", model.attend.weight[d, 0], hidden)
    weight = torch.nan_to_num(score.masked_fill(~real, -torch.inf).softmax(1))
    expected = (weight[..., None] * v).sum(1)

    assert 0 < (~real.any(1)).sum() < len(real)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for weights in (first.weight, first.bias, model.attend.weight):
        one, two = (torch.autograd.grad(x, weights, slope, retain_graph=True)[0] for x in (found, expected))
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, two)


def stage_two(model: PTUPCDR, batch: Batch, task: Task) -> torch.Tensor:
    loss = model.stages()[1].loss
    assert loss is not None
    return torch.stack(list(loss(model, batch, task.loss).values())).sum()


def rating(batch: Batch) -> Batch:
    return replace(batch, item=batch.item[:, :1], label=torch.full((len(batch), 1), 4.0))


def test_the_loss_is_the_tasks_over_the_bridge(schema: Schema) -> None:
    model = small(schema)
    batch = rating(asked([2], [[0, 2]]))  # lives in both: [2, 1] over [[1, 2], [3, 1]] is [4, 7]
    score = torch.tensor(3 + 7 + 0.125 + 4 * 2)
    assert stage_two(model, batch, RATING) == (score - 4) ** 2
    assert stage_two(model, batch, RATING.with_absolute_error(0.5)) == (score - 4) ** 2 + 0.5 * (score - 4)
    torch.testing.assert_close(stage_two(model, replace(batch, label=torch.ones(1, 1)), CTR), torch.log1p((-score).exp()))
    torch.testing.assert_close(stage_two(model, replace(batch, label=torch.zeros(1, 1)), CTR), score)
    other = torch.tensor(3 + 7 + 0.5 - 4)  # item 5
    expected = torch.logaddexp(score, other) - score
    ranked = replace(batch, item=torch.tensor([[4, 5]]), label=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(stage_two(model, ranked, RETRIEVAL), expected)
    pool = Pool(torch.tensor([4, 5]), torch.zeros(2, dtype=torch.int64), (0, 2, 2), torch.tensor([0]))
    torch.testing.assert_close(stage_two(model, replace(batch, pool=pool), RETRIEVAL), expected)
    torch.testing.assert_close(stage_two(model, replace(batch, pool=replace(pool, item=torch.tensor([5, 4]), own=torch.tensor([1]),
        log_q=torch.zeros(2))), RETRIEVAL), expected)  # fmt: skip


@pytest.mark.parametrize("task", [RATING, CTR], ids=lambda task: task.name)
def test_rows_without_a_source_weigh_nothing(schema: Schema, task: Task) -> None:
    model = small(schema)
    model.users.present[4, 0] = True  # lives in a alone
    alone, company = rating(asked([2, 3], [[0, 2], [3, 2]])), rating(asked([4, 2, 1, 3], [[0, 0], [0, 2], [0, 0], [3, 2]]))
    torch.testing.assert_close(stage_two(model, company, task), stage_two(model, alone, task))
    weighted = replace(company, weight=torch.tensor([5.0, 1.0, 7.0, 0.0]))
    torch.testing.assert_close(stage_two(model, weighted, task), stage_two(model, rating(asked([2], [[0, 2]])), task))
    none = stage_two(model, rating(asked([4, 1], [[0, 0], [0, 0]])), task)
    assert none == 0
    none.backward()
    bridge = model.stages()[1].weights
    assert bridge is not None
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in bridge)
